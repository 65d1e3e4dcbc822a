"""``make live`` on an engine that runs already: runs are sent and kept, and any table predicts them afterwards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.live import __main__ as stages
from benchmarks.live import figures, gpu_figures, prediction
from benchmarks.live.prediction import judge
from benchmarks.live.sent import Sent, read_runs, send, write_runs
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.engine_speed import Speed, slowed
from inferencegym_jax.live.trial.runs import TrialSettings, predict
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import poisson_traffic
from inferencegym_jax.table.latency_table import METRICS, LatencyTable, load_table
from tests.live.fake_engine import Times
from tests.live.test_spare_trial import written
from tests.live.test_trial import OUTPUT, TIMES, ideal

SECONDS, WARMUP = 20.0, 4.0


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return ideal(TIMES, OUTPUT)


@pytest.fixture(scope="module")
def runs(table: LatencyTable) -> list[Sent]:
    """Two runs that went exactly as the table foretells."""
    import inferencegym_jax as ig

    _, params = ig.make(1, table=table)
    policy = ig.policies.static(ig.ServeAction(batch_size=512))
    made = []
    for share, rate in ((0.3, 10.0), (1.2, 40.0)):
        traffic = poisson_traffic(rate, SECONDS, 64, OUTPUT, seed=3)
        records = predict(table, traffic, policy, params, TrialSettings(max_num_seqs=64))
        made.append(Sent(64, share, rate, SECONDS, 64, records))
    return made


@pytest.fixture(scope="module")
def found(table: LatencyTable, runs: list[Sent]) -> dict[str, Any]:
    slower = ideal(Times(a=2 * TIMES.a, b=2 * TIMES.b, c=2 * TIMES.c), OUTPUT)
    return judge(table, runs, warmup_s=WARMUP, report=lambda _: None, against=slower)


def test_runs_come_back_from_their_file_as_they_were(tmp_path: Path, runs: list[Sent]) -> None:
    failed = Record(1.0, 0, 64, 8, "failed", error="stall: no token")
    kept = [*runs, Sent(96, 0.5, 2.0, 4.0, 64, [failed])]
    write_runs(tmp_path / "runs.json", kept)
    again = read_runs(tmp_path / "runs.json")
    for before, after in zip(kept, again, strict=True):
        assert dataclasses.replace(after, records=[]) == dataclasses.replace(before, records=[])
        for one, other in zip(before.records, after.records, strict=True):
            assert (one.arrival_s, one.ttft_ms, one.tpot_ms, one.outcome, one.error) == (
                other.arrival_s,
                other.ttft_ms,
                other.tpot_ms,
                other.outcome,
                other.error,
            )
        assert list(after.traffic.time_s) == [record.arrival_s for record in before.records]
    with pytest.raises(FileNotFoundError, match="take the stage send"):
        read_runs(tmp_path / "none.json")


def test_a_table_that_is_the_engine_foretells_its_runs_and_another_one_is_off(found: dict[str, Any]) -> None:
    assert [row["share"] for row in found["rows"]] == [0.3, 1.2]
    for label in ("itl", "ttft", "ttft_p50", "ttft_p90", "ttft_p99", "on_time"):
        assert found[f"{label}_median_error"] == pytest.approx(0.0, abs=1e-9)
    other = found["against"]
    assert other["rows"][0]["itl_measured"] == found["rows"][0]["itl_measured"]
    assert other["rows"][0]["ttft_objective_ms"] == found["rows"][0]["ttft_objective_ms"]
    assert other["rows"][0]["itl_error"] > 0.9  # twice as slow, and more requests at once
    for row in other["iterations"]:
        assert row["decode_ms_against"] == pytest.approx(2 * row["decode_ms_measured"], rel=1e-3)
        assert row["prompt_ms_against"] == pytest.approx(2 * row["prompt_ms_measured"], rel=1e-2)


def test_a_run_on_a_host_that_was_slower_than_when_it_was_measured_is_foretold_at_its_speed(
    table: LatencyTable, runs: list[Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    import inferencegym_jax as ig

    slower = ideal(Times(a=1.3 * TIMES.a, b=1.3 * TIMES.b, c=1.3 * TIMES.c), OUTPUT)
    _, params = ig.make(1, table=slower)
    policy, settings = ig.policies.static(ig.ServeAction(batch_size=512)), TrialSettings(max_num_seqs=64)
    records = predict(slower, runs[0].traffic, policy, params, settings)
    run = Sent(64, 0.3, 10.0, SECONDS, 64, records)
    assert "then" not in judge(table, [run], warmup_s=WARMUP, report=lambda _: None)  # when tokens came is not known
    monkeypatch.setattr(prediction, "speed_of", lambda runs, _: Speed(1.3, 1.3) if runs == [records] else None)
    found = judge(table, [run], warmup_s=WARMUP, report=lambda _: None)
    assert found["itl_median_error"] > 0.2 and found["ttft_median_error"] > 0.2
    for label in ("itl", "ttft", "ttft_p99"):
        assert found["then"][f"{label}_median_error"] == pytest.approx(0.0, abs=0.01)
    assert found["then"]["on_time_median_error"] == 0.0
    text = "\n".join(figures.predicted(found))
    assert "at the engine's speed then |" in text and "| 1.300, 1.300 |" in text
    assert "then" not in judge(table, [*runs[:1], run], warmup_s=WARMUP, report=lambda _: None)


def test_a_slower_engines_table_is_that_of_its_times(table: LatencyTable) -> None:
    slower = ideal(Times(a=1.2 * TIMES.a, b=1.2 * TIMES.b, c=1.5 * TIMES.c), OUTPUT)
    made = slowed(table, Speed(decode=1.2, prompt=1.5))
    tpot = METRICS.index("tpot_ms")
    assert made.values[..., tpot] == pytest.approx(slower.values[..., tpot], rel=1e-5)
    assert json.loads(made.metadata["prefill_ms"]) == pytest.approx(json.loads(slower.metadata["prefill_ms"]))
    with pytest.raises(ValueError, match="has an engine profile"):
        slowed(load_table(), Speed(1.25, 1.25))  # its times are the profile's
    silent = dataclasses.replace(table, metadata={k: v for k, v in table.metadata.items() if k != "prefill_ms"})
    with pytest.raises(ValueError, match="lacks prefill_ms"):
        slowed(silent, Speed(1.25, 1.25))


def test_a_warm_up_that_leaves_nothing_is_refused(table: LatencyTable, runs: list[Sent]) -> None:
    with pytest.raises(ValueError, match="at least 22, twice the warm-up"):
        judge(table, runs, warmup_s=11.0, report=lambda _: None)


def results(found: dict[str, Any]) -> dict[str, Any]:
    measure = {"cells": 8, "seconds": 100.0, "iteration_ms": 7.0, "running_ms": 0.05, "prompt_lengths": [64, 2048]}
    measure |= {"prefill_ms": [3.0, 50.0], "request_overhead_ms": 1.0, "kv_cache_tokens": 400000.0}
    measure |= {"first_token_extra_iterations": 1, "engine": "vllm", "version": "0.20.2"}
    run = {"date": "2026-11-26", "command": "x", "python": "3.12", "gpu": "a GPU, driver 1"}
    return {"run": run, "measure": measure, "predict": found}


def test_a_run_on_a_gpu_has_a_section_and_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]
) -> None:
    page = tmp_path / "live.md"
    page.write_text(f"{figures.BEGIN}\nkept\n{figures.END}\n{figures.BEGIN_GPU}\nold\n{figures.END_GPU}\nbelow\n")
    (tmp_path / "results.json").write_text(json.dumps(results(found)))
    monkeypatch.setattr(figures, "PAGE", page)
    monkeypatch.setattr(figures, "KEPT_GPU", tmp_path / "gpu.json")
    assert [path.name for path in figures.write_figures(tmp_path)] == ["live.md", "gpu.json"]
    text = page.read_text()
    assert "kept" in text and "old" not in text and text.endswith("\nbelow\n")
    assert "a GPU, driver 1; measured on 2026-11-26" in text and "vllm 0.20.2: 8 cells" in text
    assert "| mean ITL, replay | 6 % | 0.0 % |" in text and "published kernels" in text
    assert "| 64 | 1.2 | 40.0 |" in text and "(+100%)" in text
    alone = {key: value for key, value in found.items() if key != "against"}
    assert "published kernels" not in "\n".join(gpu_figures.gpu_block(results(alone)))


def test_the_page_has_the_place_for_a_gpu() -> None:
    text = figures.PAGE.read_text()
    assert text.count(figures.BEGIN_GPU) == 1 and text.index(figures.BEGIN_GPU) < text.index(figures.END_GPU)


def test_shares_and_prompts_are_numbers_above_0() -> None:
    assert stages.numbers("shares", "0.3, 0.6") == [0.3, 0.6]
    assert stages.token_counts("prompts", "96, 192.0") == [96, 192]
    with pytest.raises(typer.BadParameter, match="prompts = 96.5: must be whole numbers of tokens"):
        stages.token_counts("prompts", "96.5,192")
    for wrong, said in (("0.3,x", "shares = 'x'"), ("0", "above 0"), ("nan", "above 0"), ("inf", "above 0")):
        with pytest.raises(typer.BadParameter, match=said):
            stages.numbers("shares", wrong)


@pytest.mark.slow
def test_runs_are_sent_to_an_engine_and_predicted_without_it(
    tmp_path: Path, launch: Callable[..., Any], table: LatencyTable
) -> None:
    engine = launch("--a", TIMES.a, "--b", TIMES.b, "--c", TIMES.c)
    path = tmp_path / "runs.json"
    sent = send(
        Endpoint(engine.url, "fake"),
        table,
        shares=(0.3, 0.5),
        prompts=(64,),
        seconds=6.0,
        max_num_seqs=64,
        path=path,
        report=lambda _: None,
    )
    assert [run.share for run in sent] == [0.3, 0.5]
    engine.process.kill()
    kept = read_runs(path)
    assert all(record.outcome == "completed" for run in kept for record in run.records)
    found = judge(table, kept, warmup_s=2.0, report=lambda _: None)
    assert all(row["speed"]["decode"] > 0.9 for row in found["rows"]) and "then" in found
    printed = stages.predicted(written(table, tmp_path / "t.parquet"), path, 2.0, None)
    assert [row["speed"] for row in printed["rows"]] == [row["speed"] for row in found["rows"]]
    assert found["itl_median_error"] < 0.5 and found["ttft_median_error"] < 1.0  # sleeps of a busy machine are long
