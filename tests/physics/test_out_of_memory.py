"""Out of memory serves nobody (tasks 1 to 3): what waited still waits, and no second that ran out gains by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.models import QUEUE_CAPACITY
from inferencegym_jax.physics import closed_loop

TASKS = (1, 2, 3)
SEEDS = np.arange(64)


def random_episodes(task):
    """(env, params, trajectory, queue before each step) of random actions."""
    env, params = ig.make(task)
    rolled = jax.tree.map(np.asarray, ig.rollout(env, params, ig.policies.random, SEEDS))
    queue = rolled.workload.queue_depth
    return env, params, rolled, np.concatenate([np.zeros((1, queue.shape[1]), np.int32), queue[:-1]])


@pytest.mark.parametrize("task", TASKS)
def test_a_second_out_of_memory_serves_nobody_and_rejects_what_does_not_fit(task):
    _, _, rolled, before = random_episodes(task)
    w, out = rolled.workload, rolled.oom
    present = before + w.arrivals
    np.testing.assert_array_equal(w.served[out], 0)
    np.testing.assert_array_equal(w.queue_depth[out], np.minimum(present, QUEUE_CAPACITY)[out])
    np.testing.assert_array_equal(w.rejected[out], np.maximum(present - QUEUE_CAPACITY, 0)[out])
    np.testing.assert_array_equal(rolled.metrics.tokens_per_sec[out], 0.0)
    assert (rolled.metrics.slo_violations[out] >= rolled.action.batch_size[out]).all()
    assert (rolled.metrics.slo_violations[out] >= 5 * w.rejected[out]).all()
    assert 0.1 < out.mean() < 0.6


@pytest.mark.parametrize("task", TASKS)
def test_requests_are_conserved_to_the_request_in_every_second(task):
    _, _, rolled, before = random_episodes(task)
    w = rolled.workload
    np.testing.assert_array_equal(before + w.arrivals, w.queue_depth + w.served + w.rejected)
    served_in_memory = np.minimum(rolled.action.batch_size, before + w.arrivals)
    np.testing.assert_array_equal(w.served[~rolled.oom], served_in_memory[~rolled.oom])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 199),
    queue=st.integers(0, QUEUE_CAPACITY),
    batch=st.integers(1, 512),
    kv=st.floats(0.1, 1.0),
    spec=st.sampled_from((0, 1, 2, 4, 8)),
    disagg=st.booleans(),
    tier=st.sampled_from((0, 1, 2)),
)
def test_one_second_from_any_queue(task, seed, step, queue, batch, kv, spec, disagg, tier):
    action = ig.ServeAction(
        kv_budget=kv, spec_length=spec, batch_size=batch, prefill_disagg=disagg, quant_tier=tier
    ).as_arrays()
    workload, metrics, oom = jax.tree.map(np.asarray, one_second(task)(seed, step, queue, action))
    roomy = jax.tree.map(np.asarray, one_second(task, memory_gb=1e6)(seed, step, queue, action))
    assert workload.served == (0 if oom else min(batch, queue + workload.arrivals))
    assert queue + workload.arrivals == workload.queue_depth + workload.served + workload.rejected
    assert 0 <= workload.queue_depth <= QUEUE_CAPACITY
    # the same second with memory to spare: never fewer served, never fewer tokens, never a longer wait
    assert not roomy[2]
    assert roomy[0].served >= workload.served and roomy[0].queue_depth <= workload.queue_depth
    assert roomy[1].tokens_per_sec >= metrics.tokens_per_sec
    assert roomy[1].ttft_p50_ms <= metrics.ttft_p50_ms
    assert roomy[1].slo_violations <= metrics.slo_violations
    if not oom:
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), roomy, (workload, metrics, oom)))


SECONDS = {}


def one_second(task, memory_gb=None):
    """Compiled (seed, step, queue, action) -> (workload, metrics, oom) of a task, on a GPU of so much memory."""
    if (task, memory_gb) not in SECONDS:
        env, params = ig.make(task)
        params = params if memory_gb is None else params.replace(oom_limit_gb=np.float32(memory_gb))
        _, state = env.reset_seed(0, params)

        @jax.jit
        def run(seed, step, queue, action):
            now = type(state)(**{**vars(state), "seed": seed, "time": step, "queue": queue})
            workload, _, metrics, oom = closed_loop.serve_second(env.grid, now, action, params)
            # memory itself reads what the GPU has at most
            return workload, type(metrics)(**{**vars(metrics), "gpu_memory_gb": jnp.float32(0)}), oom

        SECONDS[task, memory_gb] = lambda seed, step, queue, action: run(
            jnp.uint32(seed), jnp.int32(step), jnp.int32(queue), action
        )
    return SECONDS[task, memory_gb]


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_that_always_runs_out_serves_nobody(task):
    env, params = ig.make(task)
    starved = params.replace(oom_limit_gb=np.float32(1.0))
    rolled = jax.tree.map(np.asarray, ig.rollout(env, starved, ig.policies.baseline, np.arange(4)))
    assert rolled.oom.all() and rolled.workload.served.sum() == 0 and rolled.metrics.tokens_per_sec.sum() == 0
    arrivals = rolled.workload.arrivals.sum(axis=0)
    np.testing.assert_array_equal(rolled.workload.rejected.sum(axis=0), np.maximum(arrivals - QUEUE_CAPACITY, 0))


def test_crashing_does_not_clear_a_burst():
    """Task 3's first burst under an action that runs out in every second with long prompts: the queue is served in
    the seconds that fit alone."""
    env, params = ig.make(3)
    action = ig.ServeAction(batch_size=320, kv_budget=0.25, quant_tier=1)
    rolled = jax.tree.map(np.asarray, ig.rollout(env, params, ig.policies.static(action), np.arange(16)))
    assert 0.2 < rolled.oom.mean() < 0.4
    held = rolled.workload.queue_depth[rolled.oom]
    assert (held >= np.minimum(rolled.workload.arrivals[rolled.oom], QUEUE_CAPACITY)).all() and held.max() > 320
