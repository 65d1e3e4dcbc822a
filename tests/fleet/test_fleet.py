"""The fleet's step: conservation, starts, leases and drains by hand, and one GPU that is the single engine."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction, check_fleet_action
from inferencegym_jax.fleet.observation import FLEET_OBSERVATION, FleetObservation
from inferencegym_jax.fleet.rules import fixed, rule
from inferencegym_jax.models import EngineState
from inferencegym_jax.physics.inflow import Arrivals
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.serving import serve_second

DECISIONS = 48


def log(rate: float, seconds: int = 5 * DECISIONS, seed: int = 0) -> ig.RequestLog:
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate * seconds)
    time = np.sort(np.concatenate([[0.0, seconds - 0.01], rng.random(count) * seconds]))
    prompts, outputs = (rng.lognormal(m, 0.7, count + 2).clip(4, 4000).astype(int) for m in (6.0, 4.6))
    return ig.RequestLog.from_arrays(time, prompts, outputs)


@functools.cache
def fleet(rate: float) -> tuple[ig.FleetEnvironment, ig.FleetParams]:
    return ig.make_fleet("fleet-elastic", trace=log(rate))


@functools.partial(jax.jit, static_argnums=0)
def _play(env: ig.FleetEnvironment, params: ig.FleetParams, sizes: jax.Array, prefill: jax.Array) -> Any:
    def body(state: Any, knobs: tuple[jax.Array, jax.Array]) -> Any:
        action = FleetAction(gpus=knobs[0], prefill_gpus=knobs[1])
        seen, state, reward, _, info = env.step_env(None, state, action, params)
        return state, (seen, reward, info["metrics"], info["workload"], info["outcome"], state)

    return jax.lax.scan(body, env.reset_seed(0, params)[1], (sizes, prefill))[1]


def play(rate: float, sizes: Any, prefill: Any = 0, **changes: Any) -> Any:
    env, params = fleet(rate)
    params = params.replace(
        episode_length=np.int32(10 * DECISIONS),
        active=np.ones(4, bool),
        **{name: np.full(np.shape(getattr(params, name)), value, np.float32) for name, value in changes.items()},
    )
    wide = [np.broadcast_to(np.asarray(x, np.int32), DECISIONS) for x in (sizes, prefill)]
    return jax.tree.map(np.asarray, _play(env, params, *wide))


def swinging() -> np.ndarray:
    return np.repeat([3, 6, 2, 5, 1, 8, 4, 3], DECISIONS // 8)


@pytest.mark.parametrize("changes", [{}, {"failures": 60.0}, {"start_s": 0.0, "lease_s": 0.0}])
@pytest.mark.parametrize("prefill", [0, 1])
def test_requests_are_conserved(changes: dict[str, float], prefill: int) -> None:
    sizes = swinging()
    *_, metrics, workload, outcome, state = play(30.0, sizes, np.minimum(prefill, sizes - 1), **changes)
    judged = sum(getattr(outcome, name).sum(-1) for name in ("on_time", "late", "rejected", "failed"))
    came = np.cumsum(workload.arrivals)
    present = outcome.present.sum(-1)
    assert np.abs(came - np.cumsum(judged) - present).max() < 1e-3 * came[-1]
    there = metrics.running + metrics.queue + state.engine.preempted.sum(-1)
    gone = np.cumsum(metrics.completed) + np.cumsum(outcome.rejected.sum(-1))
    assert np.abs(came - gone - there).max() < 1e-3 * came[-1]
    assert outcome.asked.sum(-1) == pytest.approx(workload.arrivals)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 7)), min_size=8, max_size=8),
    failures=st.sampled_from([0.0, 60.0]),
    start_s=st.floats(0.0, 100.0),
    lease_s=st.floats(0.0, 120.0),
)
def test_whatever_is_asked_for_no_request_is_lost_and_every_gpu_is_paid(
    sizes: list[tuple[int, int]], failures: float, start_s: float, lease_s: float
) -> None:
    gpus, prefill = np.repeat(np.asarray(sizes), DECISIONS // 8, axis=0).T
    changes = {"failures": failures, "start_s": start_s, "lease_s": lease_s}
    *_, metrics, workload, outcome, _ = play(30.0, gpus, np.minimum(prefill, gpus - 1), **changes)
    judged = sum(getattr(outcome, name).sum(-1) for name in ("on_time", "late", "rejected", "failed"))
    came = np.cumsum(workload.arrivals)
    assert np.abs(came - np.cumsum(judged) - outcome.present.sum(-1)).max() < 1e-3 * came[-1]
    np.testing.assert_array_equal(metrics.asked, gpus)
    assert (outcome.gpu_seconds >= 5 * gpus - 1e-3).all() and (outcome.gpu_seconds <= 5 * 8 + 1e-3).all()


def test_tokens_are_conserved() -> None:
    """Where nobody waits, tokens made are those asked for, less what the running still have to get."""
    *_, metrics, workload, _, state = play(12.0, 6)
    owed = metrics.running[-1] * state.engine.output[-1]
    asked, made = workload.output_tokens.sum(), metrics.tokens.sum()
    assert asked - 1.5 * owed < made < asked * 1.01


def test_one_gpu_without_starts_is_the_single_engine() -> None:
    """The same numbers as the engine's own step, second by second, to 1e-5, where nobody's output counts as short."""
    env, params = fleet(16.0)
    grid = iterations_of(ig.load_table())
    rows = jnp.asarray(env.trace.rows if env.trace is not None else 0.0)
    knobs = ig.ServeAction(batch_size=128).as_arrays()

    @jax.jit
    def single(rows: jax.Array) -> Any:
        def body(engine: Any, x: Any) -> Any:
            row, is_first = x
            second, engine = serve_second(
                grid,
                engine,
                knobs,
                Arrivals(row[0], row[1], row[2]),
                is_first,
                jnp.asarray(params.class_shares),
                jnp.asarray(params.slo_ttft_ms),
                params.engine,
            )
            return engine, (second.outcome, second.tokens, second.completed, second.preempted)

        first = jnp.arange(len(rows)) == 0
        return jax.lax.scan(body, EngineState.empty(), (rows, first))[1]

    outcome, tokens, completed, preempted = jax.tree.map(np.asarray, single(rows[: 5 * DECISIONS]))
    *_, metrics, _, mine, _ = play(16.0, 1, start_s=0.0, lease_s=0.0, short_outputs=0.0)

    def by_decision(values: np.ndarray) -> np.ndarray:
        return values.reshape(DECISIONS, 5, *values.shape[1:]).sum(axis=1)

    for name in ("asked", "on_time", "late", "rejected", "failed", "tokens_asked", "on_time_tokens", "gpu_seconds"):
        np.testing.assert_allclose(
            getattr(mine, name), by_decision(getattr(outcome, name)), rtol=1e-5, atol=1e-4, err_msg=name
        )
    for name, values in (("tokens", tokens), ("completed", completed), ("preempted", preempted)):
        np.testing.assert_allclose(getattr(metrics, name), by_decision(values), rtol=1e-5, atol=1e-4, err_msg=name)
    assert mine.late.sum() > 1  # the load is such that the objectives bind


def test_gpu_seconds_by_hand() -> None:
    """An idle fleet: what is asked for is paid from the asking, for the least lease, and a start serves after it."""
    sizes = np.full(DECISIONS, 2)
    sizes[4:6] = 5  # asked for at 20 s, given back at 30 s, three leases of 60 s
    sizes[30:] = 3  # asked for at 150 s, serves at 180 s
    seen, _, metrics, _, outcome, _ = play(0.02, sizes, start_s=30.0, lease_s=60.0)
    expected = np.full(DECISIONS, 10.0)
    expected[4:16] = 25.0  # 20 s to 80 s
    expected[30:] = 15.0
    np.testing.assert_array_equal(outcome.gpu_seconds, expected)
    assert seen.serving[3] == 2 and seen.serving[34] == 2 and seen.serving[35] == 3
    assert seen.starting[4] == 3 and seen.draining[6] == 3 and seen.draining[16] == 0
    assert metrics.changed.tolist() == np.abs(np.diff(sizes, prepend=2)).tolist()


def test_asked_for_again_while_it_is_leased_it_goes_on() -> None:
    sizes = np.full(DECISIONS, 1)
    sizes[2:10], sizes[12:] = 2, 2  # serves at 40 s; given back at 50 s, asked for again at 60 s
    seen, *_ = play(0.02, sizes, start_s=30.0, lease_s=60.0)
    assert seen.serving[8] == 2 and seen.serving[10] == 1 and seen.serving[12] == 2


def test_a_drained_gpu_is_paid_until_it_is_empty() -> None:
    sizes = np.full(DECISIONS, 4)
    sizes[20:] = 2
    _, _, _, _, outcome, _ = play(20.0, sizes, start_s=0.0, lease_s=0.0)
    after = outcome.gpu_seconds[20:]
    assert after[0] > 10.0 and after[-1] == 10.0
    assert (np.diff(after) <= 1e-6).all()


def test_failures_lose_service_and_no_request() -> None:
    calm = play(30.0, 4)
    broken = play(30.0, 4, failures=60.0)
    assert broken[2].failures.sum() > 3 and calm[2].failures.sum() == 0
    assert broken[4].on_time.sum() < calm[4].on_time.sum()
    np.testing.assert_array_equal(broken[4].gpu_seconds, calm[4].gpu_seconds)


def test_more_gpus_are_never_worse() -> None:
    share = []
    for gpus in (2, 4, 8):
        outcome = play(30.0, gpus)[4]
        share.append(outcome.on_time.sum() / (outcome.on_time + outcome.late + outcome.rejected).sum())
    assert share == sorted(share) and share[0] < share[-1]


def test_a_prefill_gpu_takes_the_prompts_off_the_others() -> None:
    """Decoding alone, iterations are shorter; a change of role takes time."""
    together, apart = play(20.0, 4, 0), play(20.0, 4, 1)
    assert apart[2].tpot_ms[-1] < together[2].tpot_ms[-1]
    prefill = np.repeat([0, 1], DECISIONS // 2)
    seen, *_ = play(20.0, 4, prefill, role_s=12.0)
    assert seen.serving[DECISIONS // 2 - 1] == 4 and seen.serving[DECISIONS // 2] == 3 and seen.serving[-1] == 4


@pytest.mark.slow
def test_fleets_in_a_batch_are_fleets_alone() -> None:
    env, params = fleet(30.0)
    sizes = np.asarray([2, 5, 7])
    step = jax.jit(lambda s, a: env.step_env(None, s, a, params))
    _, state = env.reset_seed(jnp.zeros(3, jnp.uint32), params)
    ones = [env.reset_seed(0, params)[1] for _ in sizes]
    for _ in range(3):
        seen, state, *_ = step(state, FleetAction(gpus=sizes))
        alone = [step(one, FleetAction(gpus=int(gpus))) for one, gpus in zip(ones, sizes, strict=True)]
        ones = [one[1] for one in alone]
        for i, (mine, *_) in enumerate(alone):
            np.testing.assert_allclose(mine.to_array(), np.asarray(seen.to_array())[i], rtol=1e-4, atol=1e-4)


@pytest.mark.ci
def test_observation_is_in_range_and_one_table() -> None:
    seen = play(60.0, swinging())[0]
    for name, spec in FLEET_OBSERVATION.items():
        values = getattr(seen, name)
        assert np.isfinite(values).all() and values.min() >= spec.low and values.max() <= spec.high, name
    assert list(FLEET_OBSERVATION) == [f for f in FleetObservation.__dataclass_fields__]
    assert list(FLEET_KNOBS) == [f for f in FleetAction.__dataclass_fields__]
    unit = np.asarray(jax.tree.map(jnp.asarray, seen).to_unit())
    assert unit.min() >= 0 and unit.max() <= 1


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"gpus": 9}, "gpus = 9"),
        ({"gpus": 0}, "gpus = 0"),
        ({"gpus": 2.5}, "whole number"),
        ({"gpus": float("nan")}, "gpus = nan"),
        ({"gpus": 4, "prefill_gpus": 4}, "leaves no GPU"),
        ({"gpus": 4, "prefill_gpus": -1}, "prefill_gpus = -1"),
        ({"batch_size": 0}, "batch_size"),
        ({"spec_length": 3}, "spec_length"),
        ({"replicas": 3}, "unknown"),
    ],
)
def test_bad_actions_are_refused(knobs: dict[str, Any], words: str) -> None:
    env, _ = fleet(12.0)
    with pytest.raises((ValueError, TypeError), match=words):
        env.action_of(knobs)


def test_what_is_wrong_in_a_batch_is_named() -> None:
    there = np.asarray([8, 4])
    check_fleet_action(FleetAction(gpus=np.asarray([8, 4])), there)
    with pytest.raises(ValueError, match="gpus = 5: the fleet has 4"):
        check_fleet_action(FleetAction(gpus=np.asarray([8, 5])), there)
    with pytest.raises(ValueError, match="prefill_gpus = 6: leaves no GPU of gpus = 6"):
        check_fleet_action(FleetAction(gpus=np.asarray([2, 6]), prefill_gpus=np.asarray([1, 6])))


def test_more_gpus_than_there_are() -> None:
    env, params = ig.make_fleet("fleet-elastic", gpus=4, busiest=2.0)
    _, state = env.reset_seed(0, params)
    with pytest.raises(ValueError, match="gpus = 5: the fleet has 4"):
        env.step(None, state, FleetAction(gpus=5), params)
    with pytest.raises(TypeError, match="FleetAction"):
        env.step(None, state, ig.ServeAction(), params)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "changes",
    [
        {"start_s": -1.0},
        {"start_s": float("nan")},
        {"lease_s": float("inf")},
        {"gpus": 9},
        {"busiest": 8.5},
        {"busiest": 5.0, "gpus": 4},
        {"slo_tpot_ms": 0.0},
        {"clock": 0.0},
        {"pool": "nobody"},
        {"failures": -1.0},
        {"active_knobs": ("replicas",)},
    ],
)
def test_bad_tasks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes)) if "pool" not in changes else "pool"):
        ig.make_fleet("fleet-elastic", **changes)


def test_a_pool_that_does_not_hold_one_request() -> None:
    long = ig.RequestLog.from_arrays([0.0, 1.0, 2.0], [8000] * 3, [900_000] * 3)
    with pytest.raises(ig.TableError, match="does not hold one mean request"):
        ig.make_fleet("fleet-elastic", trace=long)
    with pytest.raises(TypeError, match=r"trace = \[1.0, 2.0\]: must be the path of a request log, or a RequestLog"):
        ig.make_fleet("fleet-elastic", trace=[1.0, 2.0])  # pyright: ignore[reportArgumentType]


def test_fleets_are_known_by_name() -> None:
    for task in ("fleet-elastic", 802, "fleet-anywhere"):
        env, params = ig.make(task)
        assert isinstance(env, ig.FleetEnvironment) and int(params.task_id) > 800
    with pytest.raises(ValueError, match="no config"):
        ig.make("fleet-elastic", config={"alpha": 1.0})
    for nobody in ("fleet-nowhere", 805, True):
        with pytest.raises(ValueError, match="no such fleet task; there are fleet-elastic, .*, fleet-anywhere"):
            ig.make_fleet(nobody)


@pytest.mark.slow
def test_a_rule_plays_the_fleet_by_rollout() -> None:
    env, params = fleet(30.0)
    params = params.replace(episode_length=np.int32(DECISIONS))
    rows: Any = ig.rollout(env, params, rule(fixed(3)), [0, 0])
    assert np.asarray(rows.action.gpus).tolist() == [[3, 3]] * DECISIONS
    assert np.asarray(rows.truncated)[-1].all()
