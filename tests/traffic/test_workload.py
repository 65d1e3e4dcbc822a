"""Traffic: the calendar, the queue's bookkeeping, the moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import QUEUE_CAPACITY, Phase
from inferencegym_jax.traffic import calendar as workload

STEPS = jnp.arange(200)
# the tasks of ENVIRONMENT.md, section 4; tasks 4 and up have other dynamics
TASKS = (1, 2, 3)


def random_rollout(task, seeds=64):
    env, params = ig.make(task)
    return params, jax.tree.map(np.asarray, ig.rollout(env, params, ig.policies.random, np.arange(seeds)))


def test_burst_calendar_is_the_tasks():
    t = np.arange(200)
    expected = {1: np.zeros(200, bool), 2: (t // 30) % 2 == 1, 3: t % 120 < 15}
    for task in TASKS:
        burst = jax.vmap(workload.is_burst_at, in_axes=(0, None))(STEPS, ig.make(task)[1])
        np.testing.assert_array_equal(burst, expected[task])


def test_phases_follow_the_calendar():
    for task in TASKS:
        params = ig.make(task)[1]
        phase = np.asarray(jax.vmap(workload.phase_at, in_axes=(0, None))(STEPS, params))
        burst = np.asarray(jax.vmap(workload.is_burst_at, in_axes=(0, None))(STEPS, params))
        np.testing.assert_array_equal(phase == Phase.BURST, burst)
        ends = [t for t in range(1, 200) if burst[t - 1] and not burst[t]]
        for end in ends:
            assert (phase[end : end + 10] == Phase.COOLDOWN).all()
        if not burst[0]:
            assert (phase[:10] == Phase.WARMUP).all()
        if not ends:
            assert (phase[10:] == Phase.STEADY).all()


@pytest.mark.parametrize("task", TASKS)
def test_requests_are_conserved_and_the_queue_stays_in_bounds(task):
    _, trajectory = random_rollout(task)
    w = trajectory.workload
    before = np.concatenate([np.zeros((1, w.queue_depth.shape[1]), int), w.queue_depth[:-1]])
    np.testing.assert_array_equal(before + w.arrivals, w.queue_depth + w.served + w.rejected)
    assert w.queue_depth.min() >= 0 and w.queue_depth.max() <= QUEUE_CAPACITY
    assert (w.rejected[w.queue_depth < QUEUE_CAPACITY] == 0).all()
    assert (w.served <= trajectory.action.batch_size).all()
    full = (w.queue_depth == 0) | (w.served == trajectory.action.batch_size)
    assert full[~trajectory.oom].all()
    assert (w.served[trajectory.oom] == 0).all() and trajectory.oom.any()


def test_the_smallest_batch_fills_the_queue_and_rejects_the_rest():
    env, params = ig.make(3)
    policy = ig.policies.static(ig.ServeAction(batch_size=1))
    w = ig.rollout(env, params, policy, np.arange(8)).workload
    assert int(w.queue_depth.max()) == QUEUE_CAPACITY
    assert int(w.rejected.sum()) > 1000


@pytest.mark.parametrize("task", TASKS)
def test_arrival_rate_is_the_ten_step_moving_average(task):
    _, trajectory = random_rollout(task, 4)
    ema, weight = np.zeros(4), 2 / 11
    for arrivals, reported in zip(trajectory.workload.arrivals, trajectory.workload.arrival_rate, strict=True):
        ema = ema + weight * (arrivals - ema)
        np.testing.assert_allclose(reported, ema, rtol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_bucket_is_numpys_digitize(task):
    _, trajectory = random_rollout(task, 16)
    w = trajectory.workload
    np.testing.assert_array_equal(
        w.prompt_len_bucket, np.digitize(w.mean_prompt_len, [64, 128, 256, 512, 1024, 2048, 4096])
    )


def test_class_shares_are_those_of_the_last_fifty_steps():
    params = ig.make(3)[1]
    seed = jnp.uint32(5)
    counts = np.asarray(jax.vmap(lambda t: workload.draw_class_arrivals(seed, t, params))(STEPS))
    env, _ = ig.make(3)
    w = ig.rollout(env, params, ig.policies.baseline, np.array([5])).workload
    np.testing.assert_array_equal(counts.sum(axis=1), np.asarray(w.arrivals)[:, 0])
    for t in (0, 10, 49, 50, 51, 120, 199):
        window = counts[max(0, t - 49) : t + 1].sum(axis=0)
        np.testing.assert_allclose(np.asarray(w.priority_distribution)[t, 0], window / window.sum(), rtol=1e-5)


def test_tasks_without_classes_report_one_class():
    for task in (1, 2):
        _, trajectory = random_rollout(task, 4)
        shares = trajectory.workload.priority_distribution
        np.testing.assert_allclose(shares, np.broadcast_to([1.0, 0, 0], shares.shape), atol=1e-6)


def test_any_step_can_be_drawn_without_the_ones_before_it():
    env, params = ig.make(2)
    w = ig.rollout(env, params, ig.policies.random, np.array([3])).workload
    for t in (0, 57, 199):
        traffic = workload.draw_traffic(jnp.uint32(3), jnp.int32(t), params)
        assert int(traffic.class_arrivals.sum()) == int(w.arrivals[t, 0])
        assert float(traffic.prompt_len) == pytest.approx(float(w.mean_prompt_len[t, 0]), rel=1e-6)
