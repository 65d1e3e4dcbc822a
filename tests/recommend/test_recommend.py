"""`inferencegym recommend`: what it says is what the reference engine finds, and nothing picked at random is better."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import inferencegym_jax as ig
from inferencegym_jax.cli.app import run
from inferencegym_jax.cli.recommending import changed, show, verdict
from inferencegym_jax.episodes.static_search import static_actions
from inferencegym_jax.models import KNOBS
from inferencegym_jax.recommend.candidates import SEARCHED
from inferencegym_jax.recommend.engine_flags import deployment
from inferencegym_jax.recommend.engine_replay import EngineReplay
from inferencegym_jax.recommend.engine_settings import EngineSettings
from inferencegym_jax.recommend.log_requests import load_requests
from inferencegym_jax.recommend.recommendation import Recommendation, recommend
from inferencegym_jax.recommend.request_engine import serve_requests
from inferencegym_jax.recommend.search import environment
from inferencegym_jax.table import profile_of
from inferencegym_jax.table.latency_table import table_from_columns
from inferencegym_jax.traffic.request_log import TraceError, load_trace
from tests.tools.public_logs import require_log
from tests.tools.whole_log import replayed

SLO_MS, MEMORY_GB = 300.0, 40.0


def write_log(path: Path, rate: float, seconds: int, seed: int = 0, prompt: float = 800.0) -> Path:
    """A Poisson log with lognormal prompts and outputs."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, seconds, int(rate * seconds)))
    prompts = np.clip(rng.lognormal(np.log(prompt), 0.8, len(times)), 16, 8000).astype(int)
    outputs = np.clip(rng.lognormal(np.log(150), 0.6, len(times)), 2, 1000).astype(int)
    lines = [f"{t:.4f},{p},{o}" for t, p, o in zip(times, prompts, outputs, strict=True)]
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    return path


def check_against_reference(path: Path, configurations: int, seconds: float) -> dict[str, Any]:
    """The replay is the reference's, the promise within three points of it; the answer at most 3 % below the best of
    random configurations, replayed for the log's first ``seconds``."""
    found = recommend(path, controllers={}, memory_gb=MEMORY_GB).to_dict()
    requests = load_requests(path)
    said, promised = found["attainment"]["replayed"], found["attainment"]["promised"]
    truth = replayed(requests, found["recommended"], SLO_MS, found["engine"]["memory_gb"])
    assert truth == pytest.approx(said, abs=0.01 if found["recommended"]["spec_length"] else 1e-9)  # drafts are drawn
    assert promised == pytest.approx(truth, abs=0.03) and found["agrees"]
    assert found["goodput"] == pytest.approx(said * requests.count / requests.seconds)
    env, params = environment(ig.load_table(), requests, MEMORY_GB, None)
    actions = static_actions(env, params, SEARCHED)
    picked = np.random.default_rng(8).choice(len(actions), configurations, replace=False)
    best = max(replayed(requests, actions[i], SLO_MS, MEMORY_GB, seconds) for i in picked)
    assert replayed(requests, found["recommended"], SLO_MS, MEMORY_GB, seconds) >= 0.97 * best
    return found


# The whole log under every drawn configuration takes minutes: `python -m tests.tools.whole_log`.
@pytest.mark.slow
def test_the_answer_on_azure_conversations_holds_request_by_request():
    found = check_against_reference(require_log("AzureLLMInferenceTrace_conv.csv"), configurations=50, seconds=300)
    assert not found["meets_slo"] and found["searched"] == 270
    assert found["remedies"]["engines"] == 3
    assert found["results"]["recommended"]["goodput"] > found["results"]["current"]["goodput"]


@pytest.mark.slow
def test_the_answer_on_a_made_log_holds_request_by_request(tmp_path: Path):
    check_against_reference(write_log(tmp_path / "log.csv", rate=8.0, seconds=150), configurations=12, seconds=60)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One log for what many tests ask of it, so that its programs are compiled once."""
    return write_log(tmp_path_factory.mktemp("logs") / "log.csv", rate=4.0, seconds=150, prompt=300)


HELD = {"quant_tier": 0, "prefill_disagg": False, "spec_length": 0}


def printed(found: Recommendation) -> str:
    text = io.StringIO()
    show(found, Console(width=200, file=text))
    return text.getvalue()


@pytest.mark.ci
def test_the_command_prints_the_contract(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["recommend", "--trace", str(log), "--slo-ttft-ms", "400", "--memory-gb", "40"]
    arguments += ["--current", "batch_size=16", "--fixed", "quant_tier=0,prefill_disagg=false"]
    code = run([*arguments, "--json", "--plot", str(tmp_path / "front.svg")])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["meets_slo"] is True and found["agrees"] is True and found["remedies"] is None
    assert set(found["recommended"]) == set(KNOBS) and set(found["flags"]) == {"vllm", "sglang", "tensorrt_llm"}
    assert found["recommended"]["quant_tier"] == 0 and found["recommended"]["prefill_disagg"] is False
    assert found["recommended"]["kv_budget"] == 1.0 and found["searched"] == 45  # 9 batch sizes, 5 drafts
    assert found["current"]["batch_size"] == 16
    assert f"--max-num-seqs {found['recommended']['batch_size']}" in found["flags"]["vllm"]
    assert f"--max-model-len {load_requests(log).longest}" in found["flags"]["vllm"]
    assert "--gpu-memory-utilization 0.5" in found["flags"]["vllm"] and found["engine"]["memory_gb"] == 40.0
    assert all(found[key] > 0 for key in ("goodput", "ttft_p99_ms", "cost_per_1k"))
    gain = found["gains"]["recommended"]["goodput"]
    difference = found["results"]["recommended"]["goodput"] - found["results"]["current"]["goodput"]
    assert gain["change"] == pytest.approx(difference, abs=1e-9)
    # what may not change binds the controllers: one GPU each
    assert all(found["results"][name]["gpus"] == 1.0 for name in ("reactive", "trained"))
    assert (tmp_path / "front.svg").stat().st_size > 1000


def test_the_replay_is_of_the_printed_flags(log: Path):
    found = recommend(log, slo_ttft_ms=400.0, memory_gb=33.3, controllers={}, fixed=HELD | {"batch_size": 64})
    words = shlex.split(found.flags["vllm"])
    flag = {name: words[i + 1] for i, name in enumerate(words[:-1]) if name.startswith("--")}
    settings = EngineSettings(
        batch_size=int(flag["--max-num-seqs"]),
        quant_tier=0,
        spec_length=0,
        prefill_gpu=False,
        memory_gb=float(flag["--gpu-memory-utilization"]) * profile_of(ig.load_table()).memory_gb,
        token_budget=int(flag["--max-num-batched-tokens"]),
    )
    requests = load_requests(log)
    served = serve_requests(requests.time_ms, requests.prompt, requests.output, settings, profile_of(ig.load_table()))
    kept = found.results["recommended"]["attainment"]
    assert kept == pytest.approx(float((served.ttft_ms <= 400.0).mean()))
    assert served.pool_tokens == found.engine["pool_tokens"] and served.peak_tokens <= served.pool_tokens
    assert [one["attainment"] for one in found.pareto] == [kept]  # the front is replayed too
    out = printed(found)
    assert out.startswith("Run: kv_budget=1.0")
    both = f"{kept:.2%} of the requests come in time in the replay, {found.results['promised']['attainment']:.2%} were"
    assert both in out and "Pareto front" in out
    assert f"replays on {requests.count} of {requests.count} requests (100.0%)" in out


@pytest.mark.ci
def test_nothing_feasible_has_no_run_line_but_what_would_be(log: Path):
    found = recommend(log, slo_ttft_ms=60.0, memory_gb=40.0, controllers={}, fixed=HELD)
    out = printed(found)
    assert not found.meets_slo and "Run:" not in out and "No configuration meets the SLO" in out
    remedy = found.remedies
    assert remedy is not None and remedy.ttft_ms is not None and remedy.ttft_ms > 60.0
    assert f"on TTFT of {remedy.ttft_ms:.2f} ms" in out or f"on TTFT of {remedy.ttft_ms:.0f} ms" in out
    assert remedy.engines is None and "No number of engines would do" in out  # prompts alone take longer
    again = recommend(log, slo_ttft_ms=remedy.ttft_ms + 1e-6, memory_gb=40.0, controllers={}, fixed=found.knobs)
    assert again.results["recommended"]["attainment"] >= 0.99  # what is said to be met is met


def test_a_load_beyond_one_engine_says_how_many_keep_the_objective(log: Path):
    one_slot = HELD | {"batch_size": 2}
    found = recommend(log, slo_ttft_ms=500.0, memory_gb=40.0, controllers={}, fixed=one_slot)
    remedy = found.remedies
    assert not found.meets_slo and remedy is not None and remedy.engines is not None and remedy.engines > 2
    out = printed(found)
    assert f"spread it over {remedy.engines} engines" in out and "Run:" not in out
    replay = EngineReplay(ig.load_table(), load_requests(log), found.objective, np.ones(5))
    made = deployment(found.knobs, ig.load_table(), 40.0, 9000)
    assert replay.replay(made, remedy.engines).quality.attainment[0] >= 0.99
    assert replay.replay(made, remedy.engines - 1).quality.attainment[0] < 0.99


def test_a_pool_too_small_for_the_requests_is_the_one_reason_that_is_given(log: Path):
    found = recommend(log, slo_ttft_ms=400.0, memory_gb=18.64, controllers={}, fixed=HELD)
    out = printed(found)
    assert not found.meets_slo and found.remedies is not None and found.remedies.longest_request_gb is not None
    assert "are longer than the KV pool" in out and "weights" not in out.split("Note: flags")[0].lower()
    needed = found.remedies.longest_request_gb
    assert f"with --memory-gb {needed:.1f}" in out
    assert profile_of(ig.load_table()).pool_tokens(0, needed) >= load_requests(log).longest


def test_a_loss_is_called_one():
    gain = {"change": -0.3, "low": -0.4, "high": -0.1}
    assert verdict(gain) == "loses" and changed(gain).startswith("-0.3")
    assert verdict({"change": 0.3, "low": 0.1, "high": 0.5}) == "gains"
    assert "neither" in verdict({"change": 0.1, "low": -0.1, "high": 0.3})
    assert verdict({"change": -0.1, "low": None, "high": None}) == "loses"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trace", "/nowhere.csv"], "no such file"),
        (["--trace", "LOG", "--memory-gb", "3"], "leave no room for a KV cache; must be above 8.2"),
        (["--trace", "LOG", "--memory-gb", "100"], "memory_gb = 100.0: must be a number above 0 and at most 80"),
        (["--trace", "LOG", "--fixed", "kv_budget=0.5"], "no engine has a flag"),
        (["--trace", "LOG", "--memory-gb", "nan"], "memory_gb = nan"),
        (["--trace", "LOG", "--slo-ttft-ms", "-1"], "slo_ttft_ms = -1.0"),
        (["--trace", "LOG", "--attainment", "1.5"], "attainment = 1.5"),
        (["--trace", "LOG", "--current", "batch_size=0"], "from 1 to 512"),
        (["--trace", "LOG", "--current", "batch=1"], "unknown knob"),
        (["--trace", "LOG", "--plot", "front.gif"], ".png or .svg"),
        (["--trace", "BAD"], "line 3"),
        ([], "Missing option"),
    ],
)
def test_bad_input_is_said(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    bad = tmp_path / "bad.csv"
    bad.write_text("time_s,prompt_tokens,output_tokens\n0,10,10\n1,-4,10\n")
    places = {"LOG": str(log), "BAD": str(bad)}
    assert run(["recommend", *(places.get(word, word) for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert said in " ".join(captured.err.replace("│", " ").split()) and "Traceback" not in captured.err


@pytest.mark.slow
def test_a_table_of_one_engine_setting_varies_what_it_has(tmp_path: Path):
    from inferencegym_jax.table import vllm_bench as bench_results

    columns = bench_results.columns_of(ig.load_table())
    keep = (columns["spec_length"] == 0) & (columns["quant_tier"] == 0) & (columns["prefill_disagg"] == 0)
    keep &= columns["kv_budget"] == 1.0
    drop = ("spec_length", "quant_tier", "prefill_disagg", "kv_budget")
    pool = {"memory_gb": "80", "weights_gb": "16.06", "kv_bytes_per_token": "131072"}
    small = table_from_columns({name: x[keep] for name, x in columns.items() if name not in drop}, pool)
    log = write_log(tmp_path / "log.csv", rate=3.0, seconds=120, prompt=300)
    found = recommend(log, table=small, controllers={}, slo_ttft_ms=500)
    assert found.searched == 9 and found.knobs["quant_tier"] == 0
    with pytest.raises(ValueError, match="this table has 0"):
        recommend(log, table=small, controllers={}, current={"quant_tier": 1})


def test_requests_are_the_log(tmp_path: Path):
    path = write_log(tmp_path / "log.csv", rate=5.0, seconds=100)
    requests, log = load_requests(path), load_trace(path)
    assert requests.count == log.requests == 500
    assert np.array_equal(np.bincount(requests.second, minlength=log.seconds), log.counts)
    assert np.isinf(requests.gap_ms[0]) and np.isfinite(requests.gap_ms[1:]).all()
    assert requests.prompt.mean() == pytest.approx(log.mean_prompt, rel=1e-5)


def test_requests_of_whole_seconds_are_spread_over_them(tmp_path: Path):
    path = tmp_path / "log.csv"
    rows = [(3, 10), (3, 20), (3, 30), (3, 40), (5, 50), (8, 60), (8, 70)]
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "".join(f"{t},{p},9\n" for t, p in rows))
    requests = load_requests(path)
    assert requests.time_ms.tolist() == [0.0, 250.0, 500.0, 750.0, 2000.0, 5000.0, 5500.0]
    assert np.array_equal(np.bincount(requests.second, minlength=requests.log.seconds), requests.log.counts)
    path.write_text(path.read_text().replace("5,50", "5.5,50"))  # one with decimals: the others are where they say
    assert load_requests(path).time_ms.tolist() == [0.0, 0.0, 0.0, 0.0, 2500.0, 5000.0, 5000.0]


def test_the_requests_of_stretches_are_those_of_the_log(tmp_path: Path):
    path = write_log(tmp_path / "long.csv", rate=0.5, seconds=20_000)
    requests = load_requests(path)
    starts, length = requests.starts, requests.length
    assert length == 1200 and (np.diff(starts) >= length).all()
    assert (np.diff(requests.stretch) >= 0).all() and requests.second.max() < length
    assert np.isinf(requests.gap_ms).sum() == len(starts)
    times = np.loadtxt(path, delimiter=",", skiprows=1)[:, 0]
    times -= np.floor(times[0])  # seconds of the log are counted from its first whole one
    inside = sum(int(((times >= start) & (times < start + length)).sum()) for start in starts)
    assert requests.count == inside
    assert requests.weight.sum() == pytest.approx(requests.log.requests)
    first, end = requests.stretches.hour
    assert requests.in_busiest_hour.sum() == ((times >= first) & (times < end)).sum()


@pytest.mark.slow
def test_a_day_is_judged_by_its_busiest_hour_too(tmp_path: Path):
    rng = np.random.default_rng(3)
    quiet, busy = np.sort(rng.uniform(0, 86_400, 1500)), np.sort(rng.uniform(40_000, 43_600, 2500))
    times = np.sort(np.concatenate([quiet, busy]))
    lines = [f"{t:.3f},{p},{o}" for t, p, o in zip(times, rng.integers(800, 1200, 4000), [150] * 4000, strict=True)]
    path = tmp_path / "day.csv"
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    found = recommend(path, controllers={}, slo_ttft_ms=1000.0, fixed=HELD | {"batch_size": 1})
    # one slot does for the quiet day (two fifths of the requests) and not for the hour with the others
    assert found.busiest_hour < 0.2 and 0.3 < found.results["recommended"]["attainment"] < 0.55
    assert found.traffic["replayed_share"] > 0.6
    out = printed(found)
    assert "Busiest hour" in out and f"{found.busiest_hour:.2%} in time" in out
    rate = found.traffic["replayed_requests"] / found.traffic["replayed_seconds"]
    assert f"{rate:.3g} requests/s" in out and rate > 2 * found.traffic["requests_per_sec"]


@pytest.mark.ci
@pytest.mark.parametrize("requests", [1, 2])
def test_a_log_of_one_request_is_answered_and_doubted(tmp_path: Path, requests: int):
    path = tmp_path / "one.csv"
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "1,100,100\n" * requests)
    found = recommend(path, controllers={}, fixed={"kv_budget": 1.0, "spec_length": 0})
    assert found.meets_slo and any("is the unit of its times right" in notice for notice in found.notices)


def test_an_empty_log_is_refused(tmp_path: Path):
    path = tmp_path / "empty.csv"
    path.write_text("time,prompt,output\n")
    with pytest.raises(TraceError, match="no rows"):
        recommend(path)
