"""`inferencegym recommend`: what it promises holds request by request, and nothing picked at random is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.cli.app import run
from inferencegym_jax.episodes.static_search import static_actions
from inferencegym_jax.models import KNOBS
from inferencegym_jax.recommend.log_requests import load_requests, stretches
from inferencegym_jax.recommend.recommendation import recommend
from inferencegym_jax.recommend.search import environment
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
    """The promise within 5 % of the reference; the answer at most 2 % below the best of random configurations, replayed
    for the log's first ``seconds``."""
    found = recommend(path, controllers={}).to_dict()
    requests = load_requests(path)
    promised = found["results"]["recommended"]["attainment"]
    truth = replayed(requests, found["recommended"], SLO_MS, MEMORY_GB)
    assert truth == pytest.approx(promised, rel=0.05)
    assert found["goodput"] == pytest.approx(promised * requests.count / requests.seconds)
    env, params = environment(ig.load_table(), requests, MEMORY_GB, None)
    actions = static_actions(env, params)
    picked = np.random.default_rng(8).choice(len(actions), configurations, replace=False)
    best = max(replayed(requests, actions[i], SLO_MS, MEMORY_GB, seconds) for i in picked)
    assert replayed(requests, found["recommended"], SLO_MS, MEMORY_GB, seconds) >= 0.98 * best
    return found


# The whole log under every drawn configuration takes minutes: `python -m tests.tools.whole_log`.
@pytest.mark.slow
def test_the_answer_on_azure_conversations_holds_request_by_request():
    found = check_against_reference(require_log("AzureLLMInferenceTrace_conv.csv"), configurations=50, seconds=300)
    assert found["meets_slo"] and found["searched"] >= 1350
    assert found["results"]["recommended"]["goodput"] > found["results"]["current"]["goodput"]


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    reason="97.8 % are promised and 91.3 % kept: the median TTFT of a prefill GPU is 11 % low (docs/fidelity.md)",
)
def test_the_answer_on_a_made_log_holds_request_by_request(tmp_path: Path):
    check_against_reference(write_log(tmp_path / "log.csv", rate=8.0, seconds=150), configurations=12, seconds=60)


def test_the_command_prints_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = write_log(tmp_path / "log.csv", rate=4.0, seconds=150, prompt=300)
    arguments = ["recommend", "--trace", str(log), "--slo-ttft-ms", "400", "--memory-gb", "40"]
    code = run([*arguments, "--current", "batch_size=16", "--fixed", "quant_tier=0,prefill_disagg=false", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["meets_slo"] is True
    assert set(found["recommended"]) == set(KNOBS) and set(found["flags"]) == {"vllm", "sglang", "tensorrt_llm"}
    assert found["recommended"]["quant_tier"] == 0 and found["recommended"]["prefill_disagg"] is False
    assert found["current"]["batch_size"] == 16
    assert f"--max-num-seqs {found['recommended']['batch_size']}" in found["flags"]["vllm"]
    assert all(found[key] > 0 for key in ("goodput", "ttft_p99_ms", "cost_per_1k"))
    gain = found["gains"]["recommended"]["goodput"]
    difference = found["results"]["recommended"]["goodput"] - found["results"]["current"]["goodput"]
    assert gain["change"] == pytest.approx(difference, abs=1e-9)
    assert "reactive" in found["results"] and "reactive" in found["gains"]

    assert run([*arguments, "--plot", str(tmp_path / "front.svg")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Run: kv_budget=") and "vllm serve" in out and "Pareto front" in out
    assert (tmp_path / "front.svg").stat().st_size > 1000


@pytest.mark.slow
def test_an_objective_that_nothing_meets_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = write_log(tmp_path / "log.csv", rate=4.0, seconds=120)
    assert run(["recommend", "--trace", str(log), "--slo-ttft-ms", "15"]) == 1
    out = capsys.readouterr().out
    assert "No configuration meets the SLO" in out and "comes closest" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trace", "/nowhere.csv"], "no such file"),
        (["--trace", "LOG", "--memory-gb", "3"], "leave no room for a KV cache; must be above 18.56"),
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
def test_bad_input_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    log = write_log(tmp_path / "log.csv", rate=4.0, seconds=150, prompt=300)
    bad = tmp_path / "bad.csv"
    bad.write_text("time_s,prompt_tokens,output_tokens\n0,10,10\n1,-4,10\n")
    places = {"LOG": str(log), "BAD": str(bad)}
    assert run(["recommend", *(places.get(word, word) for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert said in " ".join(captured.err.replace("│", " ").split()) and "Traceback" not in captured.err


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


def test_a_long_log_is_replayed_in_stretches(tmp_path: Path):
    path = write_log(tmp_path / "long.csv", rate=0.5, seconds=20_000)
    requests = load_requests(path)
    starts, length = stretches(load_trace(path))
    assert len(starts) == 6 and length == 1200 and starts[0] == 0 and starts[-1] + length <= 20_000
    assert (np.diff(requests.stretch) >= 0).all() and requests.second.max() < length
    assert np.isinf(requests.gap_ms).sum() == 6
    times = np.loadtxt(path, delimiter=",", skiprows=1)[:, 0]
    times -= np.floor(times[0])  # seconds of the log are counted from its first whole one
    inside = sum(int(((times >= start) & (times < start + length)).sum()) for start in starts)
    assert requests.count == inside


@pytest.mark.parametrize("requests", [1, 2])
def test_a_log_of_one_request_is_answered_and_doubted(tmp_path: Path, requests: int):
    path = tmp_path / "one.csv"
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "1,100,100\n" * requests)
    found = recommend(path, controllers={}, fixed={"kv_budget": 1.0, "spec_length": 0})
    assert found.meets_slo and any("is the unit of its times right" in notice for notice in found.notices)


@pytest.mark.slow
def test_a_load_beyond_any_engine_says_how_many_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_log(tmp_path / "log.csv", rate=80.0, seconds=100)
    found = recommend(path, controllers={}, slo_ttft_ms=20.0, fixed={"prefill_disagg": False})
    assert not found.meets_slo and found.results["recommended"]["goodput"] == 0
    served, most = found.results["recommended"]["tokens_per_sec"], found.results["current"]["tokens_per_sec"]
    assert served > 1.5 * most  # nothing is in time, so what serves most is recommended, not what runs now
    (notice,) = [text for text in found.notices if "such engines" in text]
    wanted = load_trace(path).rate * load_trace(path).mean_output
    assert f"about {int(np.ceil(wanted / served))} such engines" in notice
    knobs = ",".join(f"{name}={str(value).lower()}" for name, value in found.knobs.items())
    run(
        [
            "recommend",
            "--trace",
            str(path),
            "--slo-ttft-ms",
            "20",
            "--current",
            knobs,
            "--fixed",
            "prefill_disagg=false",
        ]
    )
    assert "It is what runs now" in capsys.readouterr().out


def test_an_empty_log_is_refused(tmp_path: Path):
    path = tmp_path / "empty.csv"
    path.write_text("time,prompt,output\n")
    with pytest.raises(TraceError, match="no rows"):
        recommend(path)
