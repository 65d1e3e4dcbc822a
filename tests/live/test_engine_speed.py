"""The engine's speed in a run, read off when tokens came, of engines whose speed is known."""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.live.foretold_again import PARTS, SLOWDOWNS, drift_at_speeds, second_at_speed
from benchmarks.live.kept import columns_of, records_of, traffic_of
from inferencegym_jax.live.scenarios.described import Drift, SecondInstance, scenario_of
from inferencegym_jax.live.scenarios.drift import drift
from inferencegym_jax.live.scenarios.plan_search import FEWEST
from inferencegym_jax.live.scenarios.rivals import BEST, NEXT, OPEN, SWITCHING, TWO
from inferencegym_jax.live.scenarios.second_instance import second_instance
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.engine_speed import Speed, longer_by, speed_of
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.runs import TrialSettings, foretell, run_policy
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import Traffic, poisson_traffic
from inferencegym_jax.models import ServeAction
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.table.latency_table import LatencyTable
from tests.live.fake_engine import Times
from tests.live.test_trial import OUTPUT, SLOW, ideal

SECONDS = 60.0


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return ideal(SLOW, 32)


def served(times: Times, rate: float, prompts: tuple[int, ...] = (64, 192), seed: int = 0) -> list[Record]:
    """Poisson arrivals on an engine of these times, iteration by iteration: every request that waits enters the next
    one, with its whole prompt, and each that runs yields a token at its end, which is seen ``times.extra`` iterations
    later."""
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.uniform(0.0, SECONDS, rng.poisson(rate * SECONDS)))
    lengths = rng.choice(prompts, len(arrivals))
    outputs = rng.integers(16, 49, len(arrivals))
    moments: list[list[float]] = [[] for _ in arrivals]
    sampled = Counter[int]()
    now, entered, running = 0.0, 0, list[int]()
    made: deque[list[int]] = deque([[] for _ in range(times.extra)])
    while entered < len(arrivals) or running or any(made):
        if not running and not any(made):
            now = max(now, float(arrivals[entered]))
        new = list(range(entered, int(np.searchsorted(arrivals, now, "right"))))
        entered += len(new)
        decoding = max(len(running), 1)
        now += (times.a + times.b * decoding + times.c * float(lengths[new].sum())) / 1000.0
        running += new
        made.append(running)
        for one in made.popleft():
            moments[one].append(now + float(rng.uniform(0.0, 2e-4)))  # as a client sees it
        sampled.update(running)
        running = [one for one in running if sampled[one] < outputs[one]]
    return [
        Record(float(at), 0, int(prompt), int(output), "completed", 0.0, token_s=array("d", seen))
        for at, prompt, output, seen in zip(arrivals, lengths, outputs, moments, strict=True)
    ]


@pytest.mark.parametrize("rate", [1.0, 2.5, 6.0])
@pytest.mark.parametrize(("decode", "prompt"), [(1.0, 1.0), (1.15, 1.15), (0.9, 1.2)])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_how_much_slower_iterations_and_prompts_were_is_found_whatever_the_load(
    table: LatencyTable, rate: float, decode: float, prompt: float, extra: int
) -> None:
    times = Times(a=decode * SLOW.a, b=decode * SLOW.b, c=prompt * SLOW.c, extra=extra)
    table = dataclasses.replace(table, metadata=table.metadata | {"first_token_extra_iterations": str(extra)})
    speed = speed_of([served(times, rate), served(times, rate, seed=1)], table)
    assert speed is not None
    assert speed.decode == pytest.approx(decode, rel=0.01)
    assert speed.prompt == pytest.approx(prompt, rel=0.03)


def test_a_machine_that_was_taken_away_for_a_while_is_no_slower_engine(table: LatencyTable) -> None:
    records = served(SLOW, 2.5)
    late = [
        dataclasses.replace(record, token_s=array("d", [at + 3.0 * (at > 30.0) for at in record.token_s]))
        for record in records
    ]
    speed = speed_of([late], table)
    assert speed is not None and speed.decode == pytest.approx(1.0, rel=0.01)


def test_the_speed_of_a_part_of_a_run_is_its_own(table: LatencyTable) -> None:
    slower = Times(a=1.2 * SLOW.a, b=1.2 * SLOW.b, c=1.2 * SLOW.c)
    later = [
        dataclasses.replace(
            record, arrival_s=record.arrival_s + 100.0, token_s=array("d", [at + 100.0 for at in record.token_s])
        )
        for record in served(slower, 2.5, seed=1)
    ]
    run = [*served(SLOW, 2.5), *later]
    first, second, none = longer_by([run], table, 1.0, (0.0, 100.0, 200.0, 300.0))
    assert (first, second) == pytest.approx((1.0, 1.2), rel=0.02) and none is None
    assert longer_by([[]], table, 1.0, (0.0, 1.0)) == [None]


def test_two_engines_are_told_apart_by_who_made_the_tokens(table: LatencyTable) -> None:
    slower = Times(a=1.1 * SLOW.a, b=1.1 * SLOW.b, c=1.1 * SLOW.c)
    both = [served(slower, 2.5, seed=0), served(slower, 2.5, seed=1)]
    run = [*both[0], *(dataclasses.replace(record, on_spare=True) for record in both[1])]
    speed = speed_of([run], table)
    assert speed is not None and (speed.decode, speed.prompt) == pytest.approx((1.1, 1.1), rel=0.03)
    one = speed_of([[*both[0], *both[1]]], table)
    assert one is not None and one.prompt < 0.8  # as if each had met the prompts of both


def test_what_two_engines_cost_each_other_is_told_from_how_fast_they_are(table: LatencyTable) -> None:
    slower = Times(a=1.1 * SLOW.a, b=1.1 * SLOW.b, c=1.1 * SLOW.c)
    both = [served(slower, 9.0, seed=0), served(slower, 9.0, seed=1)]
    run = [*both[0], *(dataclasses.replace(record, on_spare=True) for record in both[1])]
    speed = speed_of([run], table, slowdown=1.1)
    assert speed is not None and (speed.decode, speed.prompt) == pytest.approx((1.0, 1.0), rel=0.03)
    alone = speed_of([served(SLOW, 2.5)], table, slowdown=1.1)  # the other one has nobody
    assert alone is not None and (alone.decode, alone.prompt) == pytest.approx((1.0, 1.0), rel=0.03)
    early = [dataclasses.replace(one, token_s=array("d", [at / 100.0 for at in one.token_s])) for one in both[1]]
    gone = [dataclasses.replace(one, arrival_s=one.arrival_s / 100.0, on_spare=True) for one in early]
    after = speed_of([[*served(SLOW, 2.5), *gone]], table, slowdown=1.5)  # the other one had some in the first second
    assert after is not None and after.decode < 1.1


def test_nothing_is_said_of_a_run_that_does_not_show_it(table: LatencyTable) -> None:
    records = served(SLOW, 2.5)
    assert speed_of([], table) is None and speed_of([[]], table) is None
    assert speed_of([[dataclasses.replace(record, token_s=array("d")) for record in records]], table) is None


def as_sent(traffic: Traffic) -> list[Record]:
    """Requests without the moments of their tokens."""
    columns = (traffic.time_s, traffic.prompt, traffic.output)
    return [Record(float(at), 0, int(p), int(o), "completed") for at, p, o in zip(*columns, strict=True)]


@pytest.mark.ci
def test_requests_of_second_instance_are_foretold_at_the_speed_of_each_run() -> None:
    table, spare, seconds = ideal(SLOW, 32, 8192), SpareTimes(0.5, 0.5, 10.0, slowdown=1.1), 60
    scenario = scenario_of("second-instance")
    assert isinstance(scenario, SecondInstance)
    setting = second_instance(scenario, table, spare, seconds, [0, 1])
    traffics = [setting.traffic(day) for day in (0, 1)]
    plan = dataclasses.asdict(LoadPlan(batch_size=32, average_s=5.0, up_waiting=2.0, hold_s=5.0))
    found = {
        "how": setting.how | {"seconds": seconds, "warmup_s": 5.0},
        "choices": {TWO: {"batch_size": 16}, FEWEST: plan | {"foretold": {"score": 0.9}}},
    }
    found = json.loads(json.dumps(found))
    sent = {name: [as_sent(traffic) for traffic in traffics] for name in (TWO, FEWEST)}
    again = second_at_speed(table, found, sent, 64)
    assert again[TWO].speeds == [None, None] and again[TWO].parts == [[None] * PARTS] * 2
    settings = TrialSettings(warmup_s=5.0, max_num_seqs=64, spare=spare)
    always = ServeAction(batch_size=16, prefill_disagg=True)
    runs = [foretell(table, traffic, always, setting.problem.params, settings) for traffic in traffics]
    objective = Objective((setting.objective.ttft_ms,) * 3, setting.objective.tpot_ms)
    counted = [one for run in runs for one in run.records if one.arrival_s >= 5.0]
    assert again[TWO].on_time_share == pytest.approx(sum(map(objective.met, counted)) / len(counted))
    assert again[TWO].instances == pytest.approx(2.0, abs=0.02)
    assert 1.0 < again[FEWEST].instances < 2.0 and again[FEWEST].on_time_share > 0.5
    crawling = served(Times(a=3.0 * SLOW.a, b=3.0 * SLOW.b, c=3.0 * SLOW.c), 1.0)
    timed = [
        dataclasses.replace(one, token_s=crawling[i].token_s) if i < len(crawling) else one
        for i, one in enumerate(sent[TWO][0])
    ]
    slower = second_at_speed(table, found, {TWO: [timed, sent[TWO][1]]}, 64)[TWO]
    assert slower.speeds[0] is not None and slower.speeds[0].decode > 2.0 and slower.speeds[1] is None
    assert slower.on_time_share < again[TWO].on_time_share - 0.1


def test_requests_of_drift_that_were_sent_are_foretold_at_each_speed(table: LatencyTable) -> None:
    scenario = scenario_of("drift")
    assert isinstance(scenario, Drift)
    setting = drift(scenario, table, 60)
    sent = as_sent(setting.traffic(0))
    kinds = {"long prompts": [4, 0.5], "short prompts": [32, 0.5]}
    found = {
        "how": setting.how | {"seconds": 60, "warmup_s": 5.0},
        "choices": {BEST: [32, 0.5], NEXT: [64, 0.5], SWITCHING: kinds, OPEN: 64},
    }
    shares = drift_at_speeds(table, found, {BEST: [sent], OPEN: [sent[::4]]}, 64)
    assert list(shares) == [BEST, OPEN] and [speed.decode for speed in shares[BEST]] == list(SLOWDOWNS)
    assert shares[BEST][Speed(1.0, 1.0)] > shares[BEST][Speed(1.2, 1.2)] + 0.1
    assert shares[OPEN][Speed(1.0, 1.0)] == 1.0  # a quarter of them: what was sent is foretold, not the scenario's
    seen = served(Times(a=3.0 * SLOW.a, b=3.0 * SLOW.b, c=3.0 * SLOW.c), 1.0)
    own = list(drift_at_speeds(table, found, {NEXT: [seen]}, 64)[NEXT])[-1]
    assert own.decode == pytest.approx(3.0, rel=0.02)


def test_what_is_kept_of_requests_comes_back(table: LatencyTable) -> None:
    records = [*served(SLOW, 2.5), Record(1.0, 0, 64, 8, "failed", error="stall: no token")]
    again = records_of(json.loads(json.dumps(columns_of(records))))
    assert again == records
    assert [len(record.token_s) for record in again] == [len(record.token_s) for record in records]
    before, after = (speed_of([one], table) for one in (records, again))
    assert before is not None and after is not None and after.decode == pytest.approx(before.decode, rel=1e-3)
    lacking = columns_of(records)
    del lacking["token_s"]
    with pytest.raises(ValueError, match="requests: lack token_s"):
        records_of(lacking)
    sent = traffic_of(again, 60.5)
    assert sent.time_s.tolist() == [record.arrival_s for record in records] and len(sent.phase) == 61


@pytest.mark.slow
def test_the_speed_of_a_real_run_is_read_off_its_records(launch: Callable[..., Any]) -> None:
    """Of an engine that sleeps for its iterations, beside a table of one a fifth faster."""
    import inferencegym_jax as ig

    own = Times(a=20.0, b=1.0, c=0.2)
    engine = launch("--a", own.a, "--b", own.b, "--c", own.c)
    table = ideal(Times(a=own.a / 1.2, b=own.b / 1.2, c=own.c / 1.2), OUTPUT)
    _, params = ig.make(1, table=table)
    traffic = poisson_traffic(6.0, 10.0, 64, OUTPUT, seed=1)
    with LiveEnv(Endpoint(engine.url, "fake"), params, lambda _: traffic) as env:
        records, _ = run_policy(env, ig.policies.static(ig.ServeAction(batch_size=512)), 0, traffic)
    assert all(len(record.token_s) == record.tokens for record in records)
    first = records[0]
    assert first.ttft_ms is not None and first.token_s[0] - first.arrival_s == pytest.approx(first.ttft_ms / 1000.0)
    speed = speed_of([records], table)
    assert speed is not None and 1.15 < speed.decode < 1.5  # sleeps of a busy machine are long
