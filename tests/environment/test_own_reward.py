"""A reward of one's own: what it gets, what it gives, and that it is part of what an environment is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.environment import Environment
from inferencegym_jax.scoring.reward import reward as shipped_reward


def thrifty(metrics: Any, workload: Any, params: Any) -> Any:
    """Uses a vector's sum, which only a function of one environment may."""
    waiting = workload.queue_depth * jnp.sum(workload.priority_distribution)
    return metrics.tokens_per_sec / params.optimal_tps - 3.0 * metrics.cost_per_1k - 0.01 * waiting


def expected(steps: ig.Trajectory, params: ig.EnvParams) -> np.ndarray:
    metrics, workload = steps.metrics, steps.workload
    waiting = np.asarray(workload.queue_depth) * np.asarray(workload.priority_distribution).sum(axis=-1)
    return (
        np.asarray(metrics.tokens_per_sec) / params.optimal_tps - 3.0 * np.asarray(metrics.cost_per_1k) - 0.01 * waiting
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", [3, 4])
def test_every_step_gives_it_and_nothing_else_changes(task: int) -> None:
    env, params = ig.make(task, reward=thrifty)
    plain, _ = ig.make(task)
    steps, usual = (ig.rollout(one, params, ig.policies.random, np.arange(3), length=20) for one in (env, plain))
    np.testing.assert_allclose(steps.reward, expected(steps, params), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(steps.metrics.tokens_per_sec, usual.metrics.tokens_per_sec)
    np.testing.assert_array_equal(steps.observation.queue_depth, usual.observation.queue_depth)
    assert steps.reward.dtype == jnp.float32 and not np.allclose(steps.reward, usual.reward)


@pytest.mark.ci
def test_a_batch_without_vmap_gives_what_its_members_give() -> None:
    env, params = ig.make(3, reward=thrifty)
    seeds = jnp.arange(4, dtype=jnp.uint32)
    _, states = jax.vmap(env.reset_seed, in_axes=(0, None))(seeds, params)
    actions = ig.ServeAction(**{name: np.full(4, value) for name, value in ig.ServeAction().to_dict().items()})
    together = env.step(None, states, actions, params)[2]
    alone = [env.step(None, env.reset_seed(i, params)[1], ig.ServeAction(), params)[2] for i in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_it_is_part_of_equality_and_hash() -> None:
    table, (_, params) = ig.load_table(), ig.make(1)
    first, second = (Environment(table, params, reward=thrifty) for _ in range(2))
    assert first == second and hash(first) == hash(second) and first == ig.make(1, reward=thrifty)[0]
    plain, shipped = Environment(table, params), Environment(table, params, reward=shipped_reward)
    assert len({first, plain, shipped}) == 3


def test_the_shipped_reward_passed_as_ones_own_gives_the_same_rewards() -> None:
    _, params = ig.make(2)
    rewards = [
        ig.rollout(Environment(ig.load_table(), params, reward=one), params, ig.policies.baseline, np.arange(2)).reward
        for one in (None, shipped_reward)
    ]
    np.testing.assert_allclose(*rewards, rtol=1e-6, atol=1e-6)


def test_single_steps_and_problems_see_it() -> None:
    env, params = ig.make(2, reward=thrifty)
    step = ig.SingleStep(env, params)
    outcome = step.step(step.reset(3).state, step.pack_action(ig.ServeAction()))
    _, state = env.reset_seed(3, params)
    assert outcome.reward == pytest.approx(float(env.step(None, state, ig.ServeAction(), params)[2]), rel=1e-5)
    problem = ig.problem(2, reward=thrifty)
    assert problem.normalisers == ig.problem(2).normalisers and problem.env.reward is thrifty


def by_request(metrics: Any, workload: Any, params: Any, outcome: Any) -> Any:
    """What a class is worth is a sum over a vector, which only a function of one environment may take."""
    late = jnp.sum(outcome.late * jnp.asarray([4.0, 2.0, 1.0])) + jnp.sum(outcome.rejected)
    return (jnp.sum(outcome.on_time) - late) / jnp.maximum(outcome.gpu_seconds, 1.0)


@pytest.mark.slow
def test_a_reward_sees_what_became_of_the_requests_where_it_asks_for_it() -> None:
    env, params = ig.make(4, reward=by_request)
    steps = jax.tree.map(np.asarray, ig.rollout(env, params, ig.policies.random, np.arange(3), length=20))
    one = jax.vmap(jax.vmap(by_request, (0, 0, None, 0)), (0, 0, None, 0))
    paid = one(steps.metrics, steps.workload, params, steps.outcome)
    np.testing.assert_allclose(steps.reward, paid, rtol=1e-5, atol=1e-5)
    assert (steps.reward != 0).any()
    closed, of_closed = ig.make(3, reward=by_request)
    assert not np.asarray(ig.rollout(closed, of_closed, ig.policies.random, np.arange(2), length=5).reward).any()


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, metrics: Any, workload: Any, params: Any) -> Any:
        return metrics.tpot_ms


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (3, "reward = 3: must be a function of"),
        (Unhashable(), "must be hashable"),
        (lambda metrics, workload, params: workload.priority_distribution, r"gives float32 of shape \(3,\)"),
        (lambda metrics, workload, params: workload.queue_depth, r"gives int32 of shape \(\)"),
        (lambda metrics, workload, params: None, "gives None"),
        (lambda metrics, workload, params: (metrics.tpot_ms, 1.0), "must be one float32 number"),
        (lambda metrics: metrics.tpot_ms, "takes 1 positional argument but 3 were given"),
    ],
)
def test_what_is_no_reward_is_named_when_it_is_passed(function: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        ig.make(1, reward=function)


def test_a_python_branch_on_a_value_is_jaxs_own_error_when_it_is_passed() -> None:
    with pytest.raises(jax.errors.TracerBoolConversionError):
        ig.make(1, reward=lambda metrics, workload, params: 1.0 if metrics.tpot_ms > 20 else 0.0)
