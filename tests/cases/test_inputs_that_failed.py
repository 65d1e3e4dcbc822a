"""Inputs that once failed: each is read rightly, or a sentence says what to do. Skipped where the files are absent."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.fidelity.engine_defaults import with_defaults
from inferencegym_jax.fidelity.measured_runs import RunError, read_measured, read_runs
from inferencegym_jax.recommend.log_requests import load_requests
from inferencegym_jax.recommend.recommendation import Recommendation, recommend
from inferencegym_jax.traffic.request_log import TraceError
from tests.tools.public_logs import require_case

ROOT = Path(__file__).resolve().parents[2]
ONE_GPU = {"prefill_disagg": False}
SMALL = (599, 120, 773.8, 160.3)  # requests, seconds, mean prompt, mean output of the same log in several files
kernels = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="the measured kernels are not installed"
)
ignored = pytest.mark.filterwarnings("ignore::UserWarning")


@ignored
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("01-day_peak.csv", (83_293, 86_392, 852.1, 175.0)),
        ("01-peak_only.csv", (50_307, 3_601, 854.2, 174.9)),
        ("03-busy_ms.csv", (24_289, 600, 473.8, 110.0)),
        ("03-busy_ms_short.csv", (2_993, 120, 300.0, 100.0)),
        ("05-nginx.jsonl", SMALL),
        ("05-time_is_duration.csv", SMALL),
        ("09-array.json", SMALL),
        ("09-array_oneline.json", SMALL),
        ("10-t1.csv", (9, 2, 883.3, 117.2)),
        ("10-t2.csv", (10, 2, 855.1, 113.4)),
        *((f"10-t{i}.csv", (11, 2, 817.2, 115.4)) for i in (3, 4, 5)),
        ("11-gz.csv.gz", SMALL),
        ("11-latin1.csv", SMALL),
        ("11-latin1_late.csv", (3_010, 600, 452.1, 50.0)),
        ("11-log.parquet", SMALL),
        ("11-utf16.csv", SMALL),
        ("28.csv", (463, 299, 2995.3, 1505.1)),
    ],
)
def test_every_log_is_read(name: str, right: tuple[int, int, float, float]) -> None:
    log = ig.load_trace(require_case(name))
    assert (log.requests, log.seconds) == right[:2]
    assert (log.mean_prompt, log.mean_output) == pytest.approx(right[2:], abs=0.06)


@ignored
@pytest.mark.parametrize("name", ["03-busy_ms.csv", "03-busy_ms_short.csv"])
def test_of_two_units_both_readings_are_said(name: str) -> None:
    notices = ig.load_trace(require_case(name)).notices
    assert any("taken as milliseconds" in said and "as seconds it would be 0.0" in said for said in notices)


def test_the_busy_hour_of_a_day_is_replayed() -> None:
    day, hour = load_requests(require_case("01-day_peak.csv")), ig.load_trace(require_case("01-peak_only.csv"))
    first, end = day.stretches.hour
    assert day.log.counts[first:end].sum() >= 0.99 * hour.requests
    assert day.in_busiest_hour.sum() >= 1000
    assert day.weight.sum() == pytest.approx(day.log.requests)


def test_two_months_in_seconds_are_read_in_part(tmp_path: Path) -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 61 * 86_400, 200_000))
    path = tmp_path / "months.csv"
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "\n".join(f"{t:.1f},300,100" for t in times))
    with pytest.raises(TraceError, match="Of a longer log read a part: .*--from, --to, --last"):
        ig.load_trace(path)
    assert ig.load_trace(path, last="7d").requests == int((times > times[-1] - 7 * 86_400).sum())
    assert ig.load_trace(path, start="1d", end="2d").seconds <= 86_401


def test_quoted_line_breaks_of_a_large_file_are_read(tmp_path: Path) -> None:
    note = '"one\ntwo, ""three""\n' + "x" * 900 + '"'
    rows = [f"{i * 0.05:.2f},{note},{20 + i % 900},{5 + i % 90}" for i in range(6000)]
    path = tmp_path / "quoted.csv"
    path.write_text("\n".join(["timestamp,note,prompt_tokens,output_tokens", *rows]))
    assert path.stat().st_size > 5 << 20 and ig.load_trace(path).requests == 6000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("20.json", "max_concurrency is 8, and 20 requests/s .* the client held requests back"),
        ("21.json", "90% of its requests failed"),
        ("26-guidellm.json", "a result of guidellm"),
        ("26-llmperf.json", "a result of llmperf"),
        ("26-inference_perf.json", "a result of inference-perf without load_summary.requested_rate"),
        ("26-inferencex_agg.json", "a result of InferenceX"),
    ],
)
def test_runs_that_cannot_be_played_are_left_out_with_the_reason(name: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        read_runs(require_case(name))


def test_genai_perf_is_read() -> None:
    (run,) = read_runs(require_case("26.json"))
    assert (run.rate_rps, run.mean_prompt_tokens, run.mean_output_tokens) == (5.0, 512.0, 128.0)


def test_what_the_engine_chose_itself_is_taken_and_said() -> None:
    for name, assumed in (("25.json", True), ("25-vllm_highload_said.json", False)):
        (run,) = read_runs(require_case(name))
        run, said = with_defaults(run, "NVIDIA H100 80GB HBM3", 85.9)
        assert bool(said) == assumed and run.max_num_seqs == 1024


@kernels
def test_what_a_gpu_is_called_decides_what_is_played() -> None:
    from data.engine_table import completed

    assert read_runs(require_case("23.json"))[0].tp == 4
    runs, _ = read_measured(require_case("23-csv_gpus.csv"))
    refused: dict[str, str] = {}
    for run in runs:
        try:
            completed(run, run.model, None)
        except RunError as error:
            refused[str(run.gpu)] = str(error)
    assert [run.gpu for run in runs if run.gpu not in refused] == ["H100"]
    assert "another card than the one measured" in refused["NVIDIA H100 PCIe"]
    assert "2 GPUs" in refused["2xH100"] and "4 GPUs" in refused["H100x4"]


def advised(name: str, **options: Any) -> Recommendation:
    return recommend(require_case(name), controllers={}, fixed=ONE_GPU | options.pop("fixed", {}), **options)


@pytest.mark.slow
def test_the_answer_for_a_day_holds_in_its_busy_hour() -> None:
    found = advised("01-day_peak.csv")
    told = found.results
    assert abs(told["promised"]["attainment"] - told["recommended"]["attainment"]) <= 0.03 or not found.agrees
    assert not found.meets_slo or found.busiest_hour > 0.9
    assert found.traffic["busiest_hour"]["replayed_requests"] > 1000


@pytest.mark.slow
def test_only_what_the_flags_set_is_promised() -> None:
    found = advised("28.csv", memory_gb=24.0, slo_ttft_ms=1000.0, fixed={"quant_tier": 0, "spec_length": 0})
    told = found.results
    assert found.knobs["kv_budget"] == 1.0
    assert told["recommended"]["tokens_per_sec"] == pytest.approx(told["promised"]["tokens_per_sec"], rel=0.1)


@pytest.mark.slow
def test_more_memory_is_never_worse() -> None:
    log = ROOT / "data" / "example_requests.csv"
    fixed = {"quant_tier": 1, "batch_size": 32, "kv_budget": 1.0, **ONE_GPU}
    kept = []
    for memory_gb in (13.7, 15.0, 20.0):
        found = recommend(log, controllers={}, memory_gb=memory_gb, fixed=fixed)
        assert found.results["recommended"]["out_of_memory"] == 0.0
        kept.append(found.results["recommended"]["attainment"])
    assert kept == sorted(kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("13.py", [], ""),
        ("14.py", [], "no argument 'normalized'|unexpected|normalized"),
        ("15.py", [], "ok\nok\nok\nok"),
        ("17.py", [], r"\[6 1\]|\[1 6\]|reset_mask"),
        ("18.py", ["spawn", "warm"], "ok spawn"),
        ("18.py", ["none", "warm"], "ok|spawn"),
        ("19.py", [], ""),
    ],
)
def test_programs_on_gymnasium_end_rightly_or_say_why(name: str, arguments: list[str], said: str) -> None:
    import re

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(require_case(name)), *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert re.search(said, ran.stdout + ran.stderr), ran.stdout + ran.stderr
    assert said or ran.returncode == 0, ran.stderr
