"""Rollouts: the scan's episodes are the step's, statistics are the trajectory's, batches may mix tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.episodes import parallel


def test_rollout_is_the_step_repeated():
    env, params = ig.make(2)
    policy = ig.policies.static(ig.ServeAction(batch_size=100, kv_budget=0.3))
    trajectory = ig.rollout(env, params, policy, np.array([6]))
    obs, state = env.reset_seed(6, params)
    for t in range(30):
        for ours, theirs in zip(jax.tree.leaves(obs), jax.tree.leaves(trajectory.observation), strict=True):
            np.testing.assert_allclose(ours, np.asarray(theirs)[t, 0], rtol=1e-6)
        obs, state, reward, *_ = env.step(None, state, ig.ServeAction(batch_size=100, kv_budget=0.3), params)
        assert float(reward) == pytest.approx(float(trajectory.reward[t, 0]), rel=1e-5)


@pytest.mark.parametrize("task", (1, 2, 3))
def test_statistics_are_the_trajectorys(task):
    env, params = ig.make(task)
    seeds = np.arange(5)
    found = ig.evaluate(env, params, ig.policies.random, seeds)
    t = jax.tree.map(lambda x: np.asarray(x, np.float64), ig.rollout(env, params, ig.policies.random, seeds))
    expected = {
        "total_reward": t.reward.sum(0),
        "mean_tps": t.metrics.tokens_per_sec.mean(0),
        "mean_ttft_p50_ms": t.metrics.ttft_p50_ms.mean(0),
        "mean_ttft_p99_ms": t.metrics.ttft_p99_ms.mean(0),
        "mean_tpot_ms": t.metrics.tpot_ms.mean(0),
        "peak_memory_gb": t.metrics.gpu_memory_gb.max(0),
        "mean_violations": t.metrics.slo_violations.mean(0),
        "mean_violation_rate": t.next_observation.slo_violation_rate.mean(0),
        "total_cost": t.metrics.cost_per_1k.sum(0),
        "batch_jitter": np.diff(t.action.batch_size, axis=0).std(0),
        "kv_jitter": np.diff(t.action.kv_budget, axis=0).std(0),
        "mean_queue": t.workload.queue_depth.mean(0),
        "rejected": t.workload.rejected.sum(0),
        "arrivals": t.workload.arrivals.sum(0),
        "evictions": t.metrics.eviction_events.sum(0),
        "oom_share": t.oom.mean(0),
        "bound_share": (np.abs(t.reward) >= 1).mean(0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=2e-4, atol=2e-4, err_msg=name)


def test_a_batch_may_mix_tasks():
    tasks = [ig.make(i)[1] for i in (1, 2, 3, 2)]
    env, _ = ig.make(1)
    mixed = ig.rollout(env, ig.stack_params(tasks), ig.policies.random, np.array([4, 5, 6, 7]))
    for i, params in enumerate(tasks):
        alone = ig.rollout(env, params, ig.policies.random, np.array([4 + i]))
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(mixed), strict=True):
            a, b = np.asarray(a)[:, 0], np.asarray(b)[:, i]
            if a.dtype.kind == "f":
                np.testing.assert_allclose(a, b, rtol=1e-6)
            else:
                np.testing.assert_array_equal(a, b)


def test_a_policy_may_carry_memory():
    env, params = ig.make(1)

    def ramp(key, observation, carry):
        return ig.ServeAction(batch_size=carry), jnp.minimum(carry + 1, 512)

    shared = ig.rollout(env, params, ramp, np.arange(2), carry=jnp.int32(10)).action.batch_size
    np.testing.assert_array_equal(shared[:3], [[10, 10], [11, 11], [12, 12]])
    own = ig.rollout(env, params, ramp, np.arange(2), carry=jnp.array([1, 100]), carry_axis=0).action.batch_size
    np.testing.assert_array_equal(own[:2], [[1, 100], [2, 101]])


def test_a_policys_key_differs_by_seed_and_step_and_repeats():
    env, params = ig.make(1)

    def noisy(key, observation, carry):
        return ig.ServeAction(kv_budget=jax.random.uniform(key, minval=0.1, maxval=1.0))

    first = np.asarray(ig.rollout(env, params, noisy, np.arange(50)).action.kv_budget)
    assert len(np.unique(first)) > 0.99 * first.size
    np.testing.assert_array_equal(first, ig.rollout(env, params, noisy, np.arange(50)).action.kv_budget)


@pytest.mark.parametrize(
    "seeds, message",
    [
        ([], "at least one seed"),
        (3, "must be a vector"),
        ([[1, 2]], "must be a vector"),
        ([0.5], "must be whole numbers"),
        ([-1], "must be from 0 to"),
        ([2**32], "must be from 0 to"),
    ],
)
def test_bad_seeds_are_told_what_is_allowed(seeds, message):
    env, params = ig.make(1)
    for run in (ig.rollout, ig.evaluate):
        with pytest.raises((TypeError, ValueError), match=message):
            run(env, params, ig.policies.baseline, seeds)


def test_bad_lengths_and_batches_are_told_what_is_allowed():
    env, params = ig.make(1)
    with pytest.raises(ValueError, match="length = 0"):
        ig.rollout(env, params, ig.policies.baseline, [1], length=0)
    with pytest.raises(ValueError, match="one task a seed"):
        ig.rollout(env, ig.stack_params([params] * 3), ig.policies.baseline, [1, 2])


def add(total, step, task):
    """Sums that need the step, the observation after it and the task."""
    reward, seen, late = total
    over = step.metrics.ttft_p50_ms > task.slo_ms[0]
    return reward + step.reward, jax.tree.map(jnp.add, seen, step.next_observation), late + over


def zeros(env):
    return 0.0, jax.tree.map(jnp.zeros_like, env.reset_seed(0)[0]), 0


@pytest.mark.parametrize("count", [3, 1024], ids=["one part", "a part a core"])
def test_fold_sums_the_steps_of_rollout(count):
    env, params = ig.make(3)
    seeds = np.arange(count)
    reward, seen, late = ig.fold(env, params, ig.policies.random, seeds, add, zeros(env), length=30)
    steps = ig.rollout(env, params, ig.policies.random, seeds, length=30)
    np.testing.assert_allclose(reward, steps.reward.sum(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(late, (steps.metrics.ttft_p50_ms > params.slo_ms[0]).sum(axis=0))
    for name in ("queue_depth", "priority_distribution", "cost_so_far"):
        wanted = getattr(steps.next_observation, name).sum(axis=0)
        np.testing.assert_allclose(getattr(seen, name), wanted, rtol=1e-4)


def test_fold_gives_each_environment_its_own_task_and_carry():
    env, _ = ig.make(1)
    tasks = ig.stack_params([ig.make(1 + i)[1] for i in range(3)])

    def policy(key, observation, carry):
        del key, observation
        return ig.ServeAction(batch_size=carry), carry + 1

    def last(total, step, task):
        del total
        return step.action.batch_size, task.task_id

    first = jnp.asarray([10, 20, 30])
    batch, task = ig.fold(env, tasks, policy, [0, 1, 2], last, (0, 0), length=5, carry=first, carry_axis=0)
    assert batch.tolist() == [14, 24, 34]
    assert task.tolist() == [1, 2, 3]


def test_no_more_programs_are_kept_than_said():
    function = jax.jit(lambda add, params, seeds, carry, shared: seeds + np.uint32(add), static_argnums=0)
    _, params = ig.make(1)
    seeds = jnp.arange(4, dtype=jnp.uint32)

    def plus(add: int) -> list[int]:
        return parallel.run(function, (add,), params, seeds, None, axis=0, split=False).tolist()

    try:
        parallel.keep(2)
        assert [plus(1), plus(2), plus(1)] == [[1, 2, 3, 4], [2, 3, 4, 5], [1, 2, 3, 4]]
        assert parallel.count_compiled() == 2
        assert plus(3) == [3, 4, 5, 6] and plus(2) == [2, 3, 4, 5]  # 2 was used least, and went
        assert parallel.count_compiled() == 4
        with pytest.raises(ValueError, match="programs = 0"):
            parallel.keep(0)
    finally:
        parallel.keep(parallel.PROGRAMS_KEPT)
