"""The spare engine in a replay, in the live environment and in a trial: the same knob, and the same bill."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import inferencegym_jax as ig
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.server.combined import Combined
from inferencegym_jax.live.server.probe import EngineError, EngineMetrics
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import ForetoldSpare, SpareTimes
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.outcome import Objective, measures
from inferencegym_jax.live.trial.prediction import replayed
from inferencegym_jax.live.trial.profile_engine import saturation
from inferencegym_jax.live.trial.request import TrialRequest, compare
from inferencegym_jax.live.trial.runs import TrialSettings
from inferencegym_jax.live.trial.traffic import mean_rate, poisson_traffic, scaled_params, task_traffic
from inferencegym_jax.models import KNOBS, ServeAction
from inferencegym_jax.physics.observation import initial_observation
from inferencegym_jax.table.latency_table import METRICS, LatencyTable
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params
from tests.live.conftest import ROOT, Setting, free_port
from tests.live.fake_engine import Times
from tests.live.test_trial import OUTPUT, TIMES, ideal

SECONDS, PROMPT = 40, 96
ITERATION_S = 0.1  # a replay meets a whole second at the end of an iteration, up to so much later


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return ideal(TIMES, OUTPUT)


def served(table: LatencyTable, share: float, ask: Callable[[int], bool], spare: SpareTimes | None) -> Any:
    """Records and paid seconds under a policy that asks for the spare in the seconds that ``ask`` says."""
    traffic = poisson_traffic(share * saturation(table, PROMPT, OUTPUT), SECONDS, PROMPT, OUTPUT, seed=5)
    step = iter(range(10**6))

    def policy(_: Any) -> ServeAction:
        return ServeAction(batch_size=64, prefill_disagg=ask(next(step)))

    slo = (1000.0, math.inf, math.inf)
    found = replayed(table, traffic, policy, slo, initial_observation(), spare=spare)
    return found.records, found.spare_s


def test_a_second_engine_takes_half_of_what_one_cannot_carry(table: LatencyTable) -> None:
    times = SpareTimes(0.0, 0.0, 0.0)
    objective = Objective((1000.0, math.inf, math.inf))
    one, paid = served(table, 1.5, lambda _: False, times)
    two, paid_two = served(table, 1.5, lambda _: True, times)
    assert paid == 0.0 and paid_two == pytest.approx(SECONDS, abs=ITERATION_S)
    missed = [measures(records, SECONDS, objective)["violation_share"] for records in (one, two)]
    assert missed[0] > 0.3 and missed[1] < 0.02
    half, _ = served(table, 0.75, lambda _: False, None)  # two at 1.5 are about as busy as one at 0.75
    itl = [measures(records, SECONDS, objective)["itl_ms"] for records in (two, half)]
    assert itl[0] == pytest.approx(itl[1], rel=0.15)


def test_a_spare_that_nobody_asks_for_changes_nothing(table: LatencyTable) -> None:
    objective = Objective((1000.0, math.inf, math.inf))
    without, paid = served(table, 0.7, lambda _: False, None)
    beside, paid_beside = served(table, 0.7, lambda _: False, SpareTimes(1.0))
    assert paid == paid_beside == 0.0
    one, other = (measures(records, SECONDS, objective) for records in (without, beside))
    assert other == pytest.approx(one, rel=0.01)


def test_it_is_paid_from_the_asking_and_serves_after_its_start(table: LatencyTable) -> None:
    times = SpareTimes(5.0, 0.5, 12.0)
    for asked, paid in ((lambda s: s == 4, 12.5), (lambda s: 4 <= s < 30, 26.5), (lambda s: s >= 4, SECONDS - 4)):
        _, found = served(table, 0.3, asked, times)
        assert found == pytest.approx(paid, abs=2 * ITERATION_S)
    late, _ = served(table, 1.5, lambda s: s >= 4, times)
    waits = {second: [r.ttft_ms or 0.0 for r in late if int(r.arrival_s) == second] for second in (7, 39)}
    assert np.mean(waits[7]) > 3 * np.mean(waits[39])  # the line of the start-up is gone by then


def test_the_foretold_spare_goes_through_the_states_of_the_real_one() -> None:
    spare = ForetoldSpare(SpareTimes(2.0, 1.0, 4.0))
    seen = []
    for now, wanted in ((0.0, True), (1.0, False), (2.0, False), (3.0, True), (3.5, False), (4.0, False), (5.0, False)):
        spare.tick(now)
        spare.ask(wanted)
        seen.append(spare.state)
    assert seen == ["starting", "starting", "draining", "serving", "draining", "stopping", "off"]
    assert spare.billed_s == 5.0
    spare.tick(9.0)
    assert spare.billed_s == 5.0
    with pytest.raises(ValueError, match="start_s = -1"):
        SpareTimes(-1.0)


def test_several_engines_are_read_as_one() -> None:
    combined = Combined()
    first = EngineMetrics(running=3, waiting=1, kv_usage=0.4, kv_cache_gb=4.0, kv_cache_tokens=1000, preemptions=50)
    assert combined.read({"a": first}, {"a"}) == dataclasses.replace(first, preemptions=0.0)
    second = EngineMetrics(running=1, waiting=0, kv_usage=0.2, kv_cache_gb=4.0, kv_cache_tokens=1000, preemptions=900)
    both = combined.read({"a": dataclasses.replace(first, preemptions=52), "b": second}, {"a", "b"})
    assert both is not None  # a spare that comes with an old count has preempted nobody here
    assert (both.running, both.waiting, both.kv_cache_tokens, both.preemptions) == (4, 1, 2000, 2.0)
    assert both.kv_usage == pytest.approx(0.3) and both.kv_cache_gb == 4.0
    drained = combined.read({"a": first, "b": second}, {"a"})
    assert drained is not None and (drained.running, drained.kv_usage, drained.kv_cache_tokens) == (4, 0.4, 1000)
    assert combined.read({}, {"a"}) is None


@pytest.fixture(scope="module")
def params() -> Any:
    _, found = ig.make(7)
    return found.replace(episode_length=np.int32(60))


def test_the_live_environment_leases_it_by_the_same_knob(
    engine: Any,
    params: Any,
    setting: Callable[..., Setting],
) -> None:
    place = setting()
    traffic = poisson_traffic(4.0, 40, 16, 6, seed=1)
    with LiveEnv(Endpoint(engine.url, "fake"), params, lambda _: traffic, step_seconds=0.1, spare=place.spare) as env:
        active = dict(zip(KNOBS, np.asarray(env.params.active), strict=True))
        assert active["prefill_disagg"] and active["batch_size"]
        before = engine.state()["started"]
        _, state = env.reset_seed(0)
        paid: list[tuple[float, float]] = []
        for wanted in [False] * 3 + [True] * 25 + [False] * 12:
            _, state, _, _, _, info = env.step(None, state, ServeAction(prefill_disagg=wanted))
            assert info["action"].prefill_disagg == wanted
            paid.append((float(info["outcome"].gpu_seconds), float(info["seconds"])))
        records = env.finish()
    gpus = [engines / second for engines, second in paid]
    assert gpus[:3] == pytest.approx([1.0] * 3, rel=1e-3) and gpus[-1] == pytest.approx(1.0, rel=1e-3)
    # the spare's clock is read a moment beside the step's, so a step's share is late by what its neighbour's is early
    engines, second = np.sum(paid[4:27], axis=0)
    assert engines / second == pytest.approx(2.0, rel=1e-3)
    assert {record.outcome for record in records} == {"completed"}
    received = sum(line[1] == "received" for line in place.lines())
    assert received > 20 and received + engine.state()["started"] - before == len(records)
    assert {line[3] for line in place.lines() if line[1] == "received"} == {"serving"}


def test_the_live_environment_refuses_a_spare_that_cannot_be_its_knob(engine: Any, params: Any) -> None:
    endpoint = Endpoint(engine.url, "fake")

    def make(spare: SpareSettings, params: Any = params, **more: Any) -> None:
        LiveEnv(endpoint, params, lambda _: poisson_traffic(1.0, 5, 16, 4, seed=1), spare=spare, **more)

    with pytest.raises(ValueError, match="is the upstream"):
        make(SpareSettings(engine.url, start_cmd="x"))
    _, other = ig.make(4)
    with pytest.raises(ValueError, match="no replica that can be leased"):
        make(SpareSettings("http://h:1", start_cmd="x"), other)
    with pytest.raises(ValueError, match="asks for the spare here"):
        make(SpareSettings("http://h:1", start_cmd="x"), instances={(0, True): endpoint})


def test_a_table_without_the_knob_locks_it_but_where_it_is_a_replica(table: LatencyTable) -> None:
    """A replica is the same engine once more, of which a table needs no column; a prefill GPU is not."""
    assert "prefill_disagg" in table.locked_knobs
    for task, free in ((7, True), (4, False), (1, False)):
        params = make_params(get_task(task), table, NOT_NORMALISED)
        assert dict(zip(KNOBS, np.asarray(params.active), strict=True))["prefill_disagg"] == free


def test_a_days_window_is_sent_with_its_own_rises_at_the_scaled_rate() -> None:
    _, params = ig.make(72)  # a day in 24 minutes
    seeds = (0, 1)
    scaled = scaled_params(params, 3.0 / mean_rate(params, seeds, 1440), prompt_scale=0.25)
    assert mean_rate(scaled, seeds, 1440) == pytest.approx(3.0, rel=1e-3)
    sent = [task_traffic(scaled, seed, 1440, 16, 256) for seed in seeds]
    again = task_traffic(scaled, 1, 1440, 16, 256)
    assert np.array_equal(again.time_s, sent[1].time_s) and not np.array_equal(sent[0].time_s, sent[1].time_s)
    assert sum(map(len, sent)) == pytest.approx(2 * 1440 * 3.0, rel=0.05)
    minutes = np.histogram(np.concatenate([x.time_s for x in sent]), np.arange(0, 1441, 60))[0] / 120
    assert minutes.max() > 1.5 * minutes.min()  # hours of the day
    prompts = np.concatenate([x.prompt for x in sent])
    assert prompts.max() == 256 and prompts.min() >= 1 and np.ptp(prompts) > 50
    assert np.all(np.diff(sent[0].time_s) >= 0)


def written(table: LatencyTable, path: Path) -> Path:
    """The table as a file."""
    names = [*METRICS, "batch_size", "prompt_len_bucket"]
    grid = np.meshgrid(table.axes["batch_size"], range(3), indexing="ij")
    columns = dict(zip(names, [*table.values[0, 0, 0, :, 0].reshape(-1, 6).T, *(x.ravel() for x in grid)], strict=True))
    pq.write_table(pa.table(columns).replace_schema_metadata(table.metadata), path)
    return path


@pytest.mark.slow  # real seconds
def test_a_trial_measures_and_foretells_what_a_spare_is_billed(
    launch: Callable[..., Any],
    table: LatencyTable,
    setting: Callable[..., Setting],
    tmp_path: Path,
) -> None:
    engine = launch("--a", TIMES.a, "--b", TIMES.b, "--c", TIMES.c)
    place = setting(lease_s=1.0)
    request = TrialRequest(
        Endpoint(engine.url, "fake"),
        ["batch_size=64", "batch_size=64,prefill_disagg=true"],
        written(table, tmp_path / "t.parquet"),
        task=7,
        load=0.3,
        seconds=8,
        settings=TrialSettings(repeats=1, warmup_s=2.0, pause_s=0.1),
        spare=place.spare,
        beside_s=0.0,
    )
    found = compare(request)
    assert 0.0 < found["how"]["spare"]["start_s"] < 5.0 and found["how"]["spare"]["lease_s"] == 1.0
    one, two = (found["instance_seconds"][name] for name in request.policies)
    assert one["measured"] == pytest.approx(8.0, rel=0.05) and one["predicted"] == 8.0
    assert two["measured"] == pytest.approx(16.0, rel=0.05) and two["predicted"] == pytest.approx(16.0, abs=0.1)
    assert sum(line[1] == "received" for line in place.lines()) > 0


SLOW = Times(a=40.0, b=6.0, c=0.1)  # some requests a second are all that one of these can finish


@pytest.mark.slow  # real seconds
def test_what_one_engine_cannot_carry_two_do_as_it_was_foretold(launch: Callable[..., Any], tmp_path: Path) -> None:
    times = [str(x) for name in ("a", "b", "c") for x in (f"--{name}", getattr(SLOW, name))]
    engine, port = launch(*times), free_port()
    start = f"cd {ROOT} && exec {sys.executable} -m tests.live.fake_engine --port {port} {' '.join(times)}"
    spare = SpareSettings(f"http://127.0.0.1:{port}", start_cmd=start, lease_s=1.0, health_every_s=0.2)
    policies = ["batch_size=64", "batch_size=64,prefill_disagg=true"]
    request = TrialRequest(
        Endpoint(engine.url, "fake"),
        policies,
        written(ideal(SLOW, OUTPUT), tmp_path / "t.parquet"),
        task=7,
        load=1.4,
        prompt_scale=0.1,
        seconds=18,
        slo_ttft_ms=(1500.0, 1500.0, 1500.0),
        settings=TrialSettings(repeats=1, warmup_s=6.0, pause_s=0.1),
        spare=spare,
        beside_s=0.0,
    )
    found = compare(request)
    missed = {
        side: [found[side][name]["violation_share"]["mean"] for name in policies] for side in ("measured", "predicted")
    }
    assert missed["predicted"][0] - missed["predicted"][1] > 0.3
    assert missed["measured"] == pytest.approx(missed["predicted"], abs=0.15)
    for name in policies:
        billed = found["instance_seconds"][name]
        assert billed["measured"] == pytest.approx(billed["predicted"], rel=0.05)


@pytest.mark.slow  # searches normalisers on the table
def test_a_trial_refuses_a_spare_that_does_not_suit(
    table: LatencyTable,
    setting: Callable[..., Setting],
    tmp_path: Path,
) -> None:
    place, path = setting("fail"), written(table, tmp_path / "t.parquet")
    endpoint = Endpoint(place.upstream, "fake")
    with pytest.raises(ValueError, match="has no replica that can be leased"):
        compare(TrialRequest(endpoint, ["baseline"], path, task=2, spare=place.spare))
    with pytest.raises(EngineError, match="the start command ended with status 3"):
        compare(TrialRequest(endpoint, ["baseline"], path, task=7, spare=place.spare))
    with pytest.raises(ValueError, match="is the upstream"):
        TrialRequest(Endpoint(place.spare.url, "fake"), ["baseline"], path, spare=place.spare)
