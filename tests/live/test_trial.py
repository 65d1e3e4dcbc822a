"""Prediction from a table, and a trial on an engine whose times are known: what is foretold is what is measured."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import inferencegym_jax as ig
from inferencegym_jax.cli.trial_report import plot_trial, trial_table, verdict
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.outcome import Objective, measures, ranking, segments, summarise
from inferencegym_jax.live.trial.profile_engine import EngineRequest, EngineTimes, ProfileEngine, saturation
from inferencegym_jax.live.trial.request import TrialRequest, best_batch_size, compare, scenario
from inferencegym_jax.live.trial.request_log import read_log
from inferencegym_jax.live.trial.runs import Trial, TrialSettings, predict, results, run_trial, schedule
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.simulated import request_log, simulate_traffic
from inferencegym_jax.live.trial.traffic import Traffic, poisson_traffic
from inferencegym_jax.models import ServeAction
from inferencegym_jax.policies.policy_runner import PolicyError, PolicyRunner
from inferencegym_jax.table.latency_table import METRICS, LatencyTable, TableError, load_table, table_from_columns
from tests.live.fake_engine import Times
from tests.reference.iteration import load_profile
from tests.reference.serving import serve
from tests.reference.settings import Settings
from tests.reference.traffic import requests_at

TIMES = Times(a=10.0, b=0.5, c=0.1)
SLOW = Times(a=13.0, b=1.2, c=0.86)  # docs/live.md's engine: at 0.6 of saturation 2.6 prompts a second, 165 ms each
OUTPUT = 16


def ideal(
    times: Times,
    output: int,
    pool: int = 1_000_000,
    batch_sizes: tuple[int, ...] = (1, 4, 16, 64),
    prompts: tuple[int, ...] = (64, 128, 256),
) -> LatencyTable:
    """The table that a perfect measurement of ``times`` gives."""
    columns: dict[str, list[float]] = {}
    for n in batch_sizes:
        for bucket, prompt in enumerate(prompts):
            tpot = times.iteration_ms(n, prompt, output)
            first = times.a + times.b * n + times.c * prompt
            row = {"batch_size": n, "prompt_len_bucket": bucket, "ttft_p50_ms": first, "ttft_p99_ms": 2 * first}
            row |= {"tpot_ms": tpot, "tps": 1000 * n / tpot, "gpu_mem_gb": 1.0, "cost_per_1k": 0.05 * tpot / n}
            for name, value in row.items():
                columns.setdefault(name, []).append(float(value))
    prefill = [times.c * prompt for prompt in prompts]
    metadata = {"reference_output_length": str(output), "prefill_ms": json.dumps(prefill)}
    return table_from_columns(columns, metadata | {"kv_cache_tokens": str(pool), "kv_bytes_per_token": "131072"})


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return ideal(TIMES, OUTPUT)


def test_iterations_and_prompts_are_those_of_the_measured_table(table: LatencyTable) -> None:
    times = EngineTimes(table)
    for n in table.axes["batch_size"]:
        for prompt in table.axes["prompt_len_bucket"]:
            decode = times.decode_ms(n, prompt + OUTPUT / 2)
            assert decode == pytest.approx(TIMES.a + TIMES.b * n, rel=2e-3)
            assert times.prompt_ms(prompt) == pytest.approx(TIMES.c * prompt, rel=0.02)
    assert times.pool_tokens == pytest.approx(1e6)
    # without metadata a prompt takes what the TTFT of the smallest batch leaves
    silent = dataclasses.replace(table, metadata={k: v for k, v in table.metadata.items() if k != "prefill_ms"})
    assert silent.digest != table.digest
    assert EngineTimes(silent).prompt_ms(128) == pytest.approx(TIMES.c * 128 * (1.0 - 1.0 / OUTPUT), rel=0.02)


def test_a_table_that_does_not_say_its_pool_is_refused_with_what_to_add(table: LatencyTable) -> None:
    poor = dataclasses.replace(table, metadata={"reference_output_length": str(OUTPUT)})
    with pytest.raises(TableError, match="kv_bytes_per_token"):
        saturation(poor, 96, OUTPUT)


@pytest.mark.parametrize("text", ["[1, 2]", "[1, -2, 3]", "[1, NaN, 3]", "3", '["a", "b", "c"]', "[1, 2"])
def test_a_prefill_that_is_none_is_refused(table: LatencyTable, tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.parquet"
    names = [*METRICS, "batch_size", "prompt_len_bucket"]
    grid = np.meshgrid(table.axes["batch_size"], range(3), indexing="ij")
    columns = dict(zip(names, [*table.values[0, 0, 0, :, 0].reshape(-1, 6).T, *(x.ravel() for x in grid)], strict=True))
    written = pa.table(columns).replace_schema_metadata({"prefill_ms": text})
    pq.write_table(written, path)
    with pytest.raises(TableError, match="prefill_ms = .*must be a JSON list of 3 numbers"):
        load_table(path)


@pytest.fixture(scope="module")
def params() -> Any:
    _, found = ig.make(4)
    return found


def unlimited() -> Any:
    return ig.policies.static(ServeAction(batch_size=512))


def mean(records: list[Record], name: str) -> float:
    return float(np.mean([getattr(r, name) for r in records if r.arrival_s > 5 and getattr(r, name) is not None]))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("prompt", [96, 192])
def test_the_replay_meets_the_closed_form_at_any_load(table: Any, params: Any, share: float, prompt: int) -> None:
    rate = share * saturation(table, prompt, OUTPUT)
    traffic = poisson_traffic(rate, 60.0, prompt, OUTPUT, seed=3)
    records = predict(table, traffic, unlimited(), params, TrialSettings())
    true_rate = len(traffic) / 60.0
    assert mean(records, "tpot_ms") == pytest.approx(TIMES.seen_ms(true_rate, prompt, OUTPUT), rel=0.08)
    assert all(record.outcome == "completed" for record in records) and len(records) == len(traffic)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "prompt", "output", "share"),
    [(TIMES, 96, OUTPUT, 0.6), (SLOW, 192, 32, 0.6), (SLOW, 192, 32, 0.8)],
)
def test_the_open_loop_environment_agrees_with_the_replay(times: Times, prompt: int, output: int, share: float) -> None:
    exact = ideal(times, output)
    _, params = ig.make(4)
    traffic = poisson_traffic(share * saturation(exact, prompt, output), 300.0, prompt, output, seed=3)
    records = predict(exact, traffic, unlimited(), params, TrialSettings())
    simulated = simulate_traffic(exact, traffic, unlimited(), warmup_s=5.0)
    assert simulated["ttft_mean_ms"] == pytest.approx(mean(records, "ttft_ms"), rel=0.05)
    assert simulated["itl_ms"] == pytest.approx(mean(records, "tpot_ms"), rel=0.05)


def test_the_replay_admits_up_to_kv_budget_of_the_pool_and_preempts_beyond_it(params: Any) -> None:
    small = ideal(TIMES, OUTPUT, pool=1000)
    count = 12
    burst = Traffic(
        np.zeros(count), np.full(count, 180), np.full(count, 60), np.zeros(count, int), 5.0, np.ones(5, np.int64)
    )

    def served(**knobs: Any) -> list[Record]:
        return predict(small, burst, ig.policies.static(ServeAction(batch_size=64, **knobs)), params, TrialSettings())

    full, half = served(), served(kv_budget=0.5)
    assert {record.outcome for record in full + half} == {"completed"}
    # five prompts fit the pool and grow beyond it: the youngest is computed again, and waits for that
    gaps = [record.tpot_ms or 0.0 for record in full]
    assert max(gaps) > 1.5 * min(gaps)
    # two prompts and what they grow by stay within half of it
    alone = TIMES.iteration_ms(2, 180, 60)
    assert max(record.tpot_ms or 0.0 for record in half) < 1.5 * alone
    waits = sorted(record.wait_ms or 0.0 for record in half)
    assert waits[1] == 0.0 < waits[2]


def test_traffic_counted_into_seconds_keeps_every_request() -> None:
    traffic = poisson_traffic(7.0, 20.0, 96, OUTPUT, seed=1)
    log = request_log(traffic)
    assert log.counts.sum() == len(traffic) == log.requests and len(log.counts) == 20
    assert log.mean_output == pytest.approx(traffic.output.mean(), rel=1e-5)


def test_a_log_is_sent_row_by_row_and_cut_where_the_run_ends(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("time,prompt_tokens,output_tokens\n10.0,50,5\n11.5,9000,6\n13.0,70,7\n99.0,80,8\n")
    traffic = read_log(log, rate_scale=2.0, longest_prompt=256, seconds=10)
    assert traffic.time_s.tolist() == [0.0, 0.75, 1.5]
    assert traffic.prompt.tolist() == [50, 256, 70] and traffic.output.tolist() == [5, 6, 7]
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_log(tmp_path / "none.csv", 1.0, 256, 10)
    log.write_text("time,prompt_tokens,output_tokens\n10.0,-5,5\n")
    with pytest.raises(ValueError, match="line 2"):
        read_log(log, 1.0, 256, 10)


def test_the_replay_admits_no_more_than_the_policy_says_and_rejects_when_full(table: Any, params: Any) -> None:
    count = 700
    burst = Traffic(
        np.zeros(count), np.full(count, 64), np.full(count, 2), np.zeros(count, int), 5.0, np.ones(5, np.int64)
    )
    one = predict(table, burst, ig.policies.static(ServeAction(batch_size=1)), params, TrialSettings())
    assert [r.outcome for r in one].count("rejected") == count - 1 - 512
    served = sorted(r.ttft_ms or 0.0 for r in one if r.outcome == "completed")
    assert np.diff(served).min() >= TIMES.a  # one after another


def test_saturation_is_the_largest_rate_of_the_closed_form(table: Any) -> None:
    assert saturation(table, 128, OUTPUT) == pytest.approx(
        1000 * 64 / (OUTPUT * TIMES.iteration_ms(64, 128, OUTPUT)), rel=1e-3
    )


@pytest.mark.slow
def test_the_best_static_batch_is_large_where_waiting_is_all_that_counts(table: Any, params: Any) -> None:
    traffic = poisson_traffic(0.8 * saturation(table, 64, OUTPUT), 20.0, 64, OUTPUT, seed=0)
    late = Objective((200.0, math.inf, math.inf))
    assert best_batch_size(table, traffic, params, late, TrialSettings()) >= 16
    smooth = Objective((math.inf,) * 3, itl_ms=15.0)
    assert best_batch_size(table, traffic, params, smooth, TrialSettings()) <= 8


@pytest.mark.slow
def test_a_trial_on_a_real_socket_measures_what_was_predicted(launch: Callable[..., Any], table: Any) -> None:
    engine = launch("--a", TIMES.a, "--b", TIMES.b, "--c", TIMES.c)
    step = 0.25
    policies = {
        "one": ig.policies.static(ServeAction(batch_size=1)),
        "many": ig.policies.static(ServeAction(batch_size=64)),
    }
    settings = TrialSettings(repeats=2, warmup_s=2.0, step_seconds=step)
    rate = 8.0 * step  # a step; eight a real second are more than one slot serves
    trial = run_trial(
        Endpoint(engine.url, "fake"),
        policies,
        ig.problem(2, table=table),
        lambda seed: poisson_traffic(rate, 10, 64, OUTPUT, seed),
        settings,
    )
    assert trial.order == ["one", "many", "many", "one"]
    objective = Objective((400.0, math.inf, math.inf))
    found = results(trial, 10, settings, objective, "one")
    for name in policies:
        measured, predicted = found["measured"][name], found["predicted"][name]
        assert measured["itl_ms"]["mean"] == pytest.approx(predicted["itl_ms"]["mean"], rel=0.3)
    for side in ("measured", "predicted"):
        assert ranking({name: row["goodput"]["mean"] for name, row in found[side].items()}) == ["many", "one"]
    for one, many in zip(trial.measured["one"], trial.measured["many"], strict=True):
        assert [(r.prompt, r.output) for r in one] == [(r.prompt, r.output) for r in many]  # the same traffic


def record(arrival: float, ttft: float | None = 100.0, outcome: str = "completed", klass: int = 0) -> Record:
    return Record(arrival, klass, 10, 10, outcome, 0.0, ttft, 20.0, 10)


def test_goodput_counts_completed_requests_within_their_own_objective() -> None:
    objective = Objective((200.0, 2000.0, math.inf), itl_ms=30.0)
    records = [record(0.0), record(1.0, 300.0), record(2.0, 300.0, klass=1), record(3.0, 9999.0, klass=2)]
    records += [record(4.0, None, "rejected"), record(4.5, 50.0, "failed")]
    found = measures(records, 10.0, objective)
    assert found["goodput"] == pytest.approx(0.3) and found["violation_share"] == pytest.approx(0.5)
    slow = Objective((200.0, 2000.0, math.inf), itl_ms=10.0)
    assert measures(records, 10.0, slow)["goodput"] == 0.0
    assert math.isnan(measures([], 10.0, objective)["violation_share"])


def test_warm_up_is_left_out_and_segments_hold_every_other_request() -> None:
    records = [record(x) for x in np.arange(0.5, 30.0)]
    parts = segments(records, 10.0, 30.0)
    assert [len(part) for part in parts] == [5, 5, 5, 5]


def test_gains_are_paired_and_an_interval_clear_of_zero_is_said() -> None:
    good = [[record(float(x)) for x in range(60)] for _ in range(2)]
    bad = [[record(float(x), 9999.0 if x % 3 == 0 else 100.0) for x in range(60)] for _ in range(2)]
    objective = Objective((200.0, math.inf, math.inf))
    measured = summarise({"baseline": bad, "better": good, "same": bad}, 10.0, 60.0, objective, "baseline")
    gain = measured["better"]["goodput_gain"]
    assert gain["mean"] == pytest.approx(1 / 3, abs=0.05) and 0 < gain["low"] <= gain["mean"] <= gain["high"]
    assert measured["same"]["goodput_gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    found = {"measured": measured, "predicted": measured}
    said = " ".join(verdict(found, "baseline"))
    assert "better has the highest goodput" in said and "clear of 0" in said and "rank as predicted" in said
    swapped = {
        "measured": measured,
        "predicted": {**measured, "baseline": measured["better"], "better": measured["baseline"]},
    }
    assert "Misplaced beyond their intervals" in " ".join(verdict(swapped, "baseline"))
    tie = {name: measured["baseline"] for name in ("baseline", "same")}
    assert "have the same goodput" in " ".join(verdict({"measured": tie, "predicted": tie}, "baseline"))


def test_the_order_of_runs_cancels_drift() -> None:
    plan = schedule(["a", "b", "c"], 2)
    assert plan == [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a")]
    places = {name: sum(i for i, (_, x) in enumerate(plan) if x == name) for name in "abc"}
    assert len(set(places.values())) == 1


def test_a_plot_and_a_table_show_every_policy(tmp_path: Path) -> None:
    runs = {name: [[record(float(x)) for x in range(60)]] for name in ("baseline", "other")}
    summary = summarise(runs, 10.0, 60.0, Objective((200.0,) * 3), "baseline")
    found = {"measured": summary, "predicted": summary}
    plot_trial(found, tmp_path / "trial.png")
    assert (tmp_path / "trial.png").read_bytes()[:4] == b"\x89PNG"
    assert trial_table(found).row_count == 2


@pytest.mark.slow  # searches normalisers on the table, open-loop
def test_the_calendar_is_scaled_to_the_engine(table: Any, tmp_path: Path) -> None:
    request = TrialRequest(
        Endpoint("http://h:1", "m"), ["baseline"], tmp_path / "t.parquet", load=0.5, prompt_scale=0.3
    )
    problem, traffic, how = scenario(request, table)
    scaled = problem.params
    assert float(scaled.burst_rate) / float(scaled.rate) == pytest.approx(80 / 25)
    mean_rate = (float(scaled.rate) + float(scaled.burst_rate)) / 2
    assert mean_rate == pytest.approx(0.5 * how["saturation_requests_per_s"], rel=1e-5)
    assert len(traffic(0)) == pytest.approx(60 * mean_rate, rel=0.3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policies": []}, "none given"),
        ({"policies": ["a", "a"]}, "twice"),
        ({"load": 0}, "load = 0"),
        ({"seconds": 5}, "more than the warm-up"),
    ],
)
def test_a_trial_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    arguments = {"endpoint": Endpoint("http://h:1", "m"), "policies": ["baseline"], "table": tmp_path / "t", **changes}
    with pytest.raises(ValueError, match=said):
        TrialRequest(**arguments)


def test_a_trial_without_its_table_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        compare(TrialRequest(Endpoint("http://h:1", "m"), ["baseline"], tmp_path / "none.parquet"))


@pytest.mark.parametrize("name", ["nobody", "batch_size=0", "batch_size=x", "/etc/hostname"])
def test_a_policy_that_is_none_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="policy = |batch_size = "):
        ig.policies.policy_of(name, ig.problem(2))


def test_policies_by_name_answer_within_the_ranges_and_a_bad_one_is_an_error() -> None:
    from inferencegym_jax.physics.observation import initial_observation

    observation = initial_observation()
    problem = ig.problem(2)

    def asked(name: str) -> ServeAction:
        return PolicyRunner(ig.policies.policy_of(name, problem)).ask(observation)

    assert asked("batch_size=7").batch_size == 7
    assert asked("baseline") == ServeAction()
    for name in ("reactive", "random", "best_static"):
        assert 1 <= asked(name).batch_size <= 512

    def broken(key: Any, seen: Any, carry: Any) -> ServeAction:
        return ServeAction(kv_budget=seen.queue_depth / 0.0)

    with pytest.raises(PolicyError, match="kv_budget = nan"):
        PolicyRunner(broken).ask(observation)


@pytest.mark.parametrize(
    ("rate", "knobs"),
    [(6.0, {"batch_size": 64}), (12.0, {"batch_size": 24}), (9.0, {"batch_size": 256, "kv_budget": 0.1})],
)
def test_the_replay_serves_as_the_reference_engine_does(params: Any, rate: float, knobs: dict[str, Any]) -> None:
    """Two engines that share no code: this one and the plain-Python one that judges the open loop, whose limits are the
    engine's own: a place is taken in the iteration after the one that left it, as at a gate from which there is no way
    to the engine."""
    rng, seconds = np.random.default_rng(4), 60.0
    count = int(rate * seconds)
    prompts = np.clip(rng.lognormal(6.3, 1.0, count), 16, 6000).astype(int)
    outputs = np.clip(rng.lognormal(4.7, 0.7, count), 2, 900).astype(int)
    times = np.sort(rng.uniform(0.0, seconds, count))
    traffic = Traffic(times, prompts, outputs, np.zeros(count, int), seconds, np.ones(60, np.int64))
    shipped = load_table()
    assert shipped.engine is not None
    table = dataclasses.replace(shipped, engine=dataclasses.replace(shipped.engine, path_ms=0.0))
    records = predict(table, traffic, ig.policies.static(ServeAction(**knobs)), params, TrialSettings())
    settings = Settings(**knobs, queue_capacity=512)
    served = serve(requests_at(1000.0 * times, prompts, outputs), settings, load_profile() | {"path_ms": 0.0})
    ttft = np.array([record.ttft_ms for record in records])
    tpot = np.array([record.tpot_ms for record in records])
    assert {record.outcome for record in records} == {"completed"} and not served.rejected.any()
    assert ttft.mean() == pytest.approx(served.ttft_ms.mean(), rel=0.03)
    assert np.percentile(ttft, 99) == pytest.approx(np.percentile(served.ttft_ms, 99), rel=0.05)
    assert tpot.mean() == pytest.approx(served.tpot_ms.mean(), rel=0.02)


def test_a_request_holds_whole_blocks_of_the_pool(table: LatencyTable) -> None:
    def started(block: str) -> tuple[int, float]:
        stated = dataclasses.replace(table, metadata={**table.metadata, "kv_cache_tokens": "970", **blocks(block)})
        engine = ProfileEngine(EngineTimes(stated))
        for _ in range(20):
            engine.submit(EngineRequest(70, 4))
        engine.start()
        usage = engine.metrics().kv_usage
        assert usage is not None
        return len(engine.running), usage

    def blocks(block: str) -> dict[str, str]:
        return {"kv_block_tokens": block} if block else {}

    assert started("") == (13, pytest.approx(13 * 70 / 970))
    assert started("32") == (10, pytest.approx(10 * 96 / 970))  # three blocks each
    for text in ("none", "0", "inf"):
        with pytest.raises(TableError, match="metadata kv_block_tokens"):
            started(text)


def test_a_prompt_costs_an_idle_engine_what_the_table_says_of_one(table: LatencyTable) -> None:
    stated = dataclasses.replace(table, metadata={**table.metadata, "prefill_alone_share": "0.8"})
    plain, other = EngineTimes(table), EngineTimes(stated)
    for chunk in ([(0.0, 256.0)], [(0.0, 64.0), (0.0, 128.0)]):
        assert other.added_ms(0, chunk) == pytest.approx(0.8 * plain.added_ms(0, chunk))
        assert other.added_ms(4, chunk) == plain.added_ms(4, chunk)
    engines = [ProfileEngine(times) for times in (plain, other)]
    for engine in engines:
        engine.submit(EngineRequest(256, 4))
    first, cheaper = (engine.start() for engine in engines)
    assert first - cheaper == pytest.approx(0.2 * plain.added_ms(0, [(0.0, 256.0)]))
    for text in ("none", "0", "nan"):
        with pytest.raises(TableError, match="metadata prefill_alone_share"):
            EngineTimes(dataclasses.replace(table, metadata={**table.metadata, "prefill_alone_share": text}))


def test_what_of_a_trial_is_finished() -> None:
    trial = Trial({"a": [["a0"], ["a1"]], "b": [["b0"]]}, {"a": [], "b": []}, {"a": [1.0, 2.0], "b": [3.0]})  # type: ignore[list-item]
    trial.order = ["a", "b", "a"]
    trial.logs = trial.predicted_logs = {"a": [[], []], "b": [[], []]}
    trial.instance_s = trial.predicted_instance_s = {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    one = trial.finished()
    assert one.measured == {"a": [["a0"]], "b": [["b0"]]} and one.order == ["a", "b"] and one.scores["a"] == [1.0]
    trial.measured["b"].clear()
    assert set(trial.finished().measured) == {"a"} and trial.finished().order == ["a"]
