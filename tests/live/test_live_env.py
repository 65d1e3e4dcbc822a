"""``LiveEnv`` keeps the environment's contract on a live server, and loses no request."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.live.server.probe import EngineError
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.traffic import Traffic, poisson_traffic, scaled_params, task_traffic
from inferencegym_jax.models import KNOBS

STEP = 0.1


@pytest.fixture(scope="module")
def params() -> Any:
    _, found = ig.make(3)
    return found.replace(slo_ms=np.array([200.0, 2000.0, np.inf], np.float32), episode_length=np.int32(8))


def at_once(count: int, seconds: int = 8, output: int = 4, klass: int = 0) -> Traffic:
    """``count`` requests in the first instant."""
    return Traffic(
        np.zeros(count),
        np.full(count, 16),
        np.full(count, output),
        np.full(count, klass),
        float(seconds),
        np.ones(seconds, np.int64),
    )


@pytest.fixture
def make(engine: Any, params: Any) -> Iterator[Callable[..., LiveEnv]]:
    made: list[LiveEnv] = []

    def build(traffic: Any, url: str = engine.url, **changes: Any) -> LiveEnv:
        endpoint = Endpoint(url, "fake", **changes.pop("endpoint", {}))
        chosen = changes.pop("params", params)
        env = LiveEnv(endpoint, chosen, lambda _: traffic, step_seconds=STEP, **changes)
        made.append(env)
        return env

    yield build
    for env in made:
        env.close()


def test_a_step_answers_what_the_environments_step_answers(make: Callable[..., LiveEnv], params: Any) -> None:
    simulated, _ = ig.make(3)
    observation, state = simulated.reset_seed(3, params)
    expected = simulated.step(None, state, ig.ServeAction(), params)
    env = make(poisson_traffic(20.0, 8, 16, 6, seed=1))
    first, live_state = env.reset_seed(3)
    assert jax.tree.structure(first) == jax.tree.structure(observation)
    got = env.step(None, live_state, ig.ServeAction())
    assert len(got) == len(expected) == 6
    for mine, theirs in zip(got[:2], expected[:2], strict=True):
        assert jax.tree.structure(mine) == jax.tree.structure(theirs)
        assert jax.tree.map(np.shape, mine) == jax.tree.map(np.shape, theirs)
    assert set(expected[5]) <= set(got[5])
    assert jax.tree.structure(got[5]["metrics"]) == jax.tree.structure(expected[5]["metrics"])
    for part in ("workload", "outcome"):
        assert jax.tree.structure(got[5][part]) == jax.tree.structure(expected[5][part])
        assert jax.tree.map(np.shape, got[5][part]) == jax.tree.map(np.shape, expected[5][part])


def test_an_episode_ends_by_truncation_starts_the_next_and_its_log_can_be_graded(make: Callable[..., LiveEnv]) -> None:
    env = make(poisson_traffic(20.0, 8, 16, 6, seed=1))
    _, state = env.reset_seed(5)
    for i in range(8):
        observation, state, reward, terminated, truncated, info = env.step(None, state, ig.ServeAction(batch_size=16))
        assert -1.0 <= float(reward) <= 1.0 and not bool(terminated)
        assert bool(truncated) == (i == 7)
    assert int(state.time) == 0 and int(state.episode) == 1 and float(observation.timestep) == 0.0
    assert float(info["final_observation"].timestep) == 8.0
    assert 0.0 <= ig.grade(3, info["log"])["score"] <= 1.0
    assert {record.outcome for record in info["records"]} == {"completed"}


@pytest.fixture(scope="module")
def open_loop() -> Any:
    _, found = ig.make(4)
    engine = found.engine.replace(slo_tpot_ms=np.array([1000.0, 1000.0, np.inf], np.float32))
    slo = np.array([400.0, 5000.0, np.inf], np.float32)
    shares = np.array([0.4, 0.3, 0.3], np.float32)
    return found.replace(slo_ms=slo, class_shares=shares, engine=engine, episode_length=np.int32(8))


def steps(env: LiveEnv, count: int, action: ig.ServeAction) -> list[Any]:
    """The outcomes of the first ``count`` steps of an episode."""
    _, state = env.reset_seed(0)
    outcomes = []
    for _ in range(count):
        _, state, _, _, _, info = env.step(None, state, action)
        outcomes.append(info["outcome"])
        assert float(info["outcome"].gpu_seconds) == pytest.approx(info["seconds"])  # one GPU
    return outcomes


def total(outcomes: list[Any], name: str) -> np.ndarray:
    """Sum over steps of a count, float[3] where it is by class."""
    return np.sum([getattr(outcome, name) for outcome in outcomes], axis=0)


def test_every_request_is_counted_once_by_class(launch: Callable[..., Any], make: Any, open_loop: Any) -> None:
    slow = launch("--a", 20)
    same = at_once(24, output=8)
    mixed = Traffic(same.time_s, same.prompt, same.output, np.arange(24) % 3, 8.0, same.phase)
    env = make(mixed, url=slow.url, params=open_loop)
    outcomes = steps(env, 7, ig.ServeAction(batch_size=2))
    before = np.zeros(3)
    for outcome in outcomes:
        judged = outcome.on_time + outcome.late + outcome.rejected + outcome.failed
        assert outcome.asked == pytest.approx(judged + outcome.present - before)
        before = outcome.present
    asked, late, done = (total(outcomes, name) for name in ("asked", "late", "on_time"))
    assert asked.tolist() == [8, 8, 8] and total(outcomes, "tokens_asked") == 24 * 8
    records = env.finish()
    assert sum(r.outcome == "completed" for r in records) == 24
    # two at a time, 160 ms each: the fourth pair of the interactive cannot have a first token before 480 ms
    assert late[0] == sum((r.ttft_ms or 0.0) > 400 for r in records if r.klass == 0) >= 2 and late[2] == 0
    assert done[0] + late[0] + outcomes[-1].present[0] == 8
    assert total(outcomes, "on_time_tokens") == 8 * done.sum() and outcomes[0].quality == 1.0


def test_failed_and_rejected_requests_are_not_late(make: Callable[..., LiveEnv], open_loop: Any) -> None:
    wanted = at_once(3, output=5000)  # longer than the engine's context: it refuses
    (first, *_) = steps(make(wanted, params=open_loop), 3, ig.ServeAction(batch_size=8))
    assert first.failed.tolist() == [3, 0, 0] and not first.late.any() and not first.present.any()


def test_tpot_over_its_objective_is_late_at_the_finish(
    launch: Callable[..., Any], make: Callable[..., LiveEnv], open_loop: Any
) -> None:
    slow = launch("--a", 30)
    hurried = open_loop.replace(engine=open_loop.engine.replace(slo_tpot_ms=np.full(3, 1.0, np.float32)))
    outcomes = steps(make(at_once(5, output=6), slow.url, params=hurried), 6, ig.ServeAction(batch_size=8))
    assert total(outcomes, "late")[0] == 5 and not total(outcomes, "on_time").any()


def test_an_open_loop_task_is_rewarded_and_graded_by_request(make: Callable[..., LiveEnv], open_loop: Any) -> None:
    patient = open_loop.replace(slo_ms=np.full(3, np.inf, np.float32))  # however busy this machine is
    env = make(at_once(12, output=3), params=patient)
    _, state = env.reset_seed(5)
    rewards = []
    for _ in range(8):
        _, state, reward, _, _, info = env.step(None, state, ig.ServeAction(batch_size=16))
        rewards.append(float(reward))
    graded = ig.grade(4, info["log"])
    assert graded["breakdown"]["on_time_share"] == 1.0 and 0.0 < graded["score"] <= 1.0
    assert max(rewards) > rewards[-1]  # tokens on time are paid for when they come, GPUs in every second


def test_kv_budget_admits_up_to_that_share_of_the_pool(launch: Callable[..., Any], make: Any, open_loop: Any) -> None:
    slow = launch("--a", 30, "--c", 0)  # a pool of 65,536 tokens
    long = Traffic(np.zeros(12), np.full(12, 4000), np.full(12, 60), np.zeros(12, int), 8.0, np.ones(8, np.int64))
    env = make(long, url=slow.url, params=open_loop)
    active = dict(zip(KNOBS, np.asarray(env.params.active), strict=True))
    assert [name for name, on in active.items() if on] == ["kv_budget", "batch_size"]
    before = slow.state()["started"]
    _, state = env.reset_seed(0)
    _, state, _, _, _, info = env.step(None, state, ig.ServeAction(batch_size=64, kv_budget=0.25))
    assert int(info["workload"].served) == 4  # 4 x 4,000 tokens are 0.244 of the pool, five would be 0.305
    assert int(info["workload"].queue_depth) == 8
    _, state, _, _, _, info = env.step(None, state, ig.ServeAction(batch_size=64))
    assert slow.settled(started=before + 12)["peak_running"] >= 8
    assert {record.outcome for record in env.finish()} == {"completed"}


def test_requests_are_admitted_up_to_batch_size_and_none_is_lost(launch: Callable[..., Any], make: Any) -> None:
    slow = launch("--a", 15)
    env = make(at_once(30, output=4), url=slow.url)
    before = slow.state()["started"]  # the probe's
    _, state = env.reset_seed(0)
    _, state, _, _, _, info = env.step(None, state, ig.ServeAction(batch_size=3))
    workload = info["workload"]
    assert int(workload.arrivals) == 30
    assert int(workload.queue_depth) == 30 - int(workload.served)
    env.step(None, state, ig.ServeAction(batch_size=512))
    records = env.finish()
    assert [record.outcome for record in records] == ["completed"] * 30
    assert slow.state()["started"] - before == 30
    assert slow.state()["peak_running"] > 3  # after the gate was opened
    waits = sorted(record.wait_ms or 0.0 for record in records)
    assert waits[2] < 50.0 < waits[-1]


def test_urgent_classes_overtake_at_the_gate(launch: Callable[..., Any], make: Any) -> None:
    slow = launch("--a", 15)
    low, high = at_once(12, klass=2), at_once(4, klass=0)
    both = Traffic(
        np.zeros(16),
        np.concatenate([low.prompt, high.prompt]),
        np.concatenate([low.output, high.output]),
        np.concatenate([low.klass, high.klass]),
        8.0,
        low.phase,
    )
    env = make(both, url=slow.url)
    _, state = env.reset_seed(0)
    for _ in range(3):
        _, state, *_ = env.step(None, state, ig.ServeAction(batch_size=2))
    env.step(None, state, ig.ServeAction(batch_size=512))
    records = env.finish()
    waits = {klass: [r.wait_ms or 0.0 for r in records if r.klass == klass] for klass in (0, 2)}
    assert len(records) == 16
    assert max(waits[0]) < sorted(waits[2])[2]  # two best-effort ones were inside before the urgent ones came


def test_a_queue_beyond_its_capacity_rejects_and_counts_violations(launch: Callable[..., Any], make: Any) -> None:
    slow = launch("--a", 400)
    env = make(at_once(600, output=2), url=slow.url)
    _, state = env.reset_seed(0)
    *_, info = env.step(None, state, ig.ServeAction(batch_size=1))
    assert int(info["workload"].rejected) == 600 - 1 - 512
    assert int(info["metrics"].slo_violations) >= 87
    records = env.stop()
    outcomes = [record.outcome for record in records]
    assert (outcomes.count("rejected"), outcomes.count("unfinished")) == (87, 513)


def test_a_stalled_stream_times_out_and_counts_as_a_violation(launch: Callable[..., Any], make: Any) -> None:
    healthy = launch()
    env = make(at_once(2, output=500), url=healthy.url, endpoint={"first_token_timeout_s": 5, "stall_timeout_s": 0.15})
    _, state = env.reset_seed(0)
    _, state, *_ = env.step(None, state, ig.ServeAction())
    import os
    import signal

    os.kill(healthy.process.pid, signal.SIGSTOP)  # an engine that hangs
    violations = 0
    for _ in range(4):
        _, state, _, _, _, info = env.step(None, state, ig.ServeAction())
        violations += int(info["metrics"].slo_violations)
    os.kill(healthy.process.pid, signal.SIGCONT)
    records = env.finish()
    assert violations == 2
    assert all(record.outcome == "failed" and "stall" in (record.error or "") for record in records)


def test_knobs_that_a_running_engine_lacks_are_masked(make: Callable[..., LiveEnv]) -> None:
    env = make(poisson_traffic(5.0, 8, 16, 4, seed=1))
    active = dict(zip(KNOBS, np.asarray(env.params.active), strict=True))
    assert [name for name, on in active.items() if on] == ["batch_size"]
    _, state = env.reset_seed(0)
    wanted = ig.ServeAction(batch_size=9, kv_budget=0.3, quant_tier=2, prefill_disagg=True, spec_length=4)
    *_, info = env.step(None, state, wanted)
    assert info["action"].to_dict() == ig.ServeAction(batch_size=9).to_dict()


def test_another_instance_makes_its_knob_active_and_gets_the_requests(launch: Callable[..., Any], make: Any) -> None:
    first, second = launch(), launch()
    instances = {(1, False): Endpoint(second.url, "fake")}
    env = make(poisson_traffic(30.0, 8, 16, 4, seed=1), url=first.url, instances=instances)
    before = second.state()["started"]
    _, state = env.reset_seed(0)
    for _ in range(3):
        _, state, *_ = env.step(None, state, ig.ServeAction(quant_tier=1))
    assert second.state()["started"] > before
    assert first.state()["started"] == 1  # the probe's


def test_a_live_server_cannot_go_back_and_bad_actions_are_refused(make: Callable[..., LiveEnv]) -> None:
    env = make(poisson_traffic(5.0, 8, 16, 4, seed=1))
    _, state = env.reset_seed(0)
    env.step(None, state, ig.ServeAction())
    with pytest.raises(ValueError, match="cannot go back"):
        env.step(None, state, ig.ServeAction())
    _, state = env.reset_seed(0)
    with pytest.raises(ValueError, match="batch_size = 0"):
        env.step(None, state, ig.ServeAction(batch_size=0))


def test_a_server_that_is_not_there_is_said_at_once(make: Callable[..., LiveEnv]) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        make(at_once(1), url="http://127.0.0.1:9")


def test_a_late_caller_gets_a_longer_second_and_rates_divided_by_it(make: Callable[..., LiveEnv]) -> None:
    import time

    env = make(poisson_traffic(20.0, 8, 16, 4, seed=1))
    _, state = env.reset_seed(0)
    _, state, *_ = env.step(None, state, ig.ServeAction())
    time.sleep(4 * STEP)
    *_, info = env.step(None, state, ig.ServeAction())
    assert info["seconds"] >= 4 * STEP
    arrivals = int(info["workload"].arrivals)
    assert arrivals > 0 and float(info["metrics"].tokens_per_sec) <= 6 * arrivals / info["seconds"] + 200


def test_a_wall_clock_that_jumps_changes_nothing(make: Callable[..., LiveEnv], monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(poisson_traffic(40.0, 4, 16, 4, seed=1))
    _, state = env.reset_seed(3)
    true, calls = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: true() + 3600.0 * (-1) ** next(calls))
    for _ in range(4):
        _, state, _, _, _, info = env.step(None, state, ig.ServeAction(batch_size=16))
        assert STEP / 2 < info["seconds"] < 600  # an hour's jump would show, a busy machine does not
    records = env.finish()
    assert next(calls) > 0  # the clock was asked, by whomever
    assert records and {record.outcome for record in records} == {"completed"}
    assert all(0.0 < record.ttft_ms < 60_000 for record in records if record.ttft_ms is not None)


def test_traffic_is_the_simulators_own_draws_and_the_same_for_a_seed() -> None:
    from inferencegym_jax.traffic import calendar as workload

    _, params = ig.make(2)
    one, two = task_traffic(params, 7, 70, 128), task_traffic(params, 7, 70, 128)
    assert np.array_equal(one.time_s, two.time_s) and np.array_equal(one.output, two.output)
    for second in (0, 35, 61):
        draws = workload.draw_traffic(jax.numpy.uint32(7), jax.numpy.int32(second), params)
        inside = (one.time_s >= second) & (one.time_s < second + 1)
        assert inside.sum() == int(draws.class_arrivals.sum())
        assert set(one.prompt[inside]) == {int(draws.prompt_len)}
    assert np.all(np.diff(one.time_s) >= 0)
    assert one.output.mean() == pytest.approx(128, rel=0.05)


def test_scaled_traffic_keeps_its_calendar_and_its_mean_at_low_rates() -> None:
    _, params = ig.make(2)
    scaled = scaled_params(params, 0.04, prompt_scale=0.25, longest_prompt=256)
    many = [task_traffic(scaled, seed, 60, 64) for seed in range(20)]
    calm = np.mean([(t.time_s < 30).sum() for t in many]) / 30
    burst = np.mean([(t.time_s >= 30).sum() for t in many]) / 30
    assert calm == pytest.approx(1.0, rel=0.15) and burst == pytest.approx(3.2, rel=0.1)
    prompts = np.concatenate([t.prompt for t in many])
    assert prompts.max() <= 256 and np.median(prompts) == pytest.approx(np.exp(5.2) / 4, rel=0.15)
    with pytest.raises(ValueError, match="rate_scale = 0"):
        scaled_params(params, 0)
