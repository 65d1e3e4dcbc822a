"""The open loop in the environment: nobody made or lost, each request judged once, limits hold, switching takes time,
and the closed loop is left alone."""

import functools
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.episodes.static_search import follow
from inferencegym_jax.models import KNOBS, EngineState
from inferencegym_jax.table import TableError
from inferencegym_jax.tasks import NOT_NORMALISED, make_params

STEPS = 200
ACTIONS = st.builds(
    lambda kv, spec, batch, disagg, quant: ig.ServeAction(kv, spec, batch, disagg, quant),
    st.floats(0.1, 1.0),
    st.sampled_from(KNOBS["spec_length"].choices),
    st.integers(1, 512),
    st.booleans(),
    st.sampled_from(KNOBS["quant_tier"].choices),
)
EVERY_KNOB = np.ones(len(KNOBS), bool)


def open_params(task, **engine):
    """Params of any task under open-loop dynamics, every knob free, without the search for normalisers."""
    params = make_params(ig.get_task(task), ig.load_table(), NOT_NORMALISED, None, "open_loop")
    changed: dict[str, Any] = {
        name: np.asarray(value, np.float32) for name, value in engine.items() if name != "second_gpu"
    }
    if "second_gpu" in engine:
        changed["second_gpu"] = np.int32(engine["second_gpu"])
    return params.replace(active=EVERY_KNOB, engine=params.engine.replace(**changed))


def columns_of(actions):
    """Knobs of 200 steps as arrays from a list of actions, each held equally long."""
    columns = {name: np.repeat([getattr(a, name) for a in actions], STEPS // len(actions)) for name in KNOBS}
    return ig.ServeAction(**columns).as_arrays()


@functools.cache
def player():
    env, _ = ig.make(4)

    @jax.jit
    def play(seed, actions, params):
        def body(state, action):
            _, state, _, _, info = env.step_env(None, state, action, params)
            return state, (info["workload"], info["outcome"], info["metrics"], state.engine)

        _, state = env.reset_seed(seed, params)
        return jax.lax.scan(body, state, actions)[1]

    return lambda seed, actions, params: jax.tree.map(np.asarray, play(jnp.uint32(seed), actions, params))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    task=st.sampled_from([spec.id for spec in ig.task_specs().values()]),
    actions=st.lists(ACTIONS, min_size=8, max_size=8),
    replica=st.integers(0, 1),
    memory=st.sampled_from([20.0, 28.0, 40.0, 80.0]),
)
@example(  # nobody waits nor arrives when a new weight format stops the engine: only those that ran, to be recomputed
    seed=2812000,
    task=5,
    actions=[
        ig.ServeAction(kv, spec, batch, False, tier)
        for kv, spec, batch, tier in (
            (1.0, 0, 5, 1),
            (1.0, 1, 8, 1),
            (1.0, 1, 8, 1),
            (1.0, 1, 17, 1),
            (0.25, 0, 10, 0),
            (1.0, 0, 1, 0),
            (1.0, 0, 1, 0),
            (1.0, 0, 1, 0),
        )
    ],
    replica=0,
    memory=28.0,
)
@example(  # requests that another weight format stopped are recomputed beside new ones: both take slots
    seed=2552026937,
    task=7,
    actions=[
        ig.ServeAction(kv, spec, 1, second, tier)
        for kv, spec, second, tier in (
            (0.3, 8, True, 0),
            (0.3, 1, True, 1),
            (1.0, 1, True, 1),
            (0.3, 0, False, 0),
            (1.0, 0, True, 1),
            (1.0, 8, True, 0),
            (0.3, 0, False, 1),
            (0.3, 1, False, 1),
        )
    ],
    replica=1,
    memory=20.0,
)
def test_every_request_is_accounted_for(seed, task, actions, replica, memory):
    params = open_params(task, second_gpu=replica, memory_gb=memory)
    traffic, outcome, metrics, engine = player()(seed, columns_of(actions), params)
    for leaf in jax.tree.leaves((traffic, outcome, metrics, engine)):
        assert np.isfinite(leaf).all()
    # whole requests
    arrived, finished, rejected, waiting, running = (
        np.asarray(x, np.int64)
        for x in (traffic.arrivals, traffic.served, traffic.rejected, traffic.queue_depth, traffic.running)
    )
    assert min(x.min() for x in (arrived, finished, rejected, waiting, running)) >= 0
    np.testing.assert_array_equal(np.cumsum(arrived), np.cumsum(finished + rejected) + waiting + running)
    # the outcome, by class
    counts = [np.asarray(getattr(outcome, n), np.float64) for n in ("on_time", "late", "rejected", "failed")]
    assert min(x.min() for x in counts) >= 0
    judged = np.cumsum(sum(counts), axis=0) + outcome.present
    np.testing.assert_allclose(judged, np.cumsum(outcome.asked, axis=0), rtol=1e-4, atol=0.05)
    np.testing.assert_allclose(outcome.asked.sum(axis=-1), arrived, rtol=1e-5)
    # limits
    assert (metrics.gpu_memory_gb <= memory * (1 + 1e-5)).all()
    slots = np.repeat([a.batch_size for a in actions], STEPS // len(actions))
    running_now = engine.phases.sum(axis=-1)
    before = np.concatenate([[0.0], running_now[:-1]])
    most = 2 * slots + 1e-2  # above a cap that fell, nobody enters
    assert (running_now - before)[running_now > most].max(initial=0.0) <= 1e-2


# of the tasks of the mixed batch; a line that grows all through task 6's overload adds its rounding up
TOLERANCE = (1e-5, 1e-5, 1e-5, 1e-5, 5e-5, 5e-5, 1e-5)


@pytest.mark.ci
def test_a_mixed_batch_gives_each_task_the_trajectory_it_has_alone():
    """In a process of its own, compiled as users compile: conftest's flags round otherwise (1.4e-5 in one second)."""
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", f"from {__name__} import compare_mixed; compare_mixed()"]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def compare_mixed():
    env, _ = ig.make(1)
    tasks = [ig.make(t)[1] for t in (1, 4, 3, 5, 6, 7)] + [open_params(2)]
    seeds = np.array([3, 4, 5, 6, 7, 8, 9])
    action = ig.ServeAction(batch_size=48).as_arrays()
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, seeds.shape), action)
    mixed = ig.rollout(env, ig.stack_params(tasks), follow, seeds, length=200, carry=carry, carry_axis=0)
    for i, task in enumerate(tasks):
        alone = ig.rollout(env, task, follow, seeds[i : i + 1], length=200, carry=action)
        for name in ("metrics", "workload"):
            for a, b in zip(*(jax.tree.leaves(getattr(t, name)) for t in (mixed, alone)), strict=True):
                if np.issubdtype(np.asarray(a).dtype, np.integer):
                    np.testing.assert_array_equal(np.asarray(a)[:, i], np.asarray(b)[:, 0])
                else:
                    np.testing.assert_allclose(np.asarray(a)[:, i], np.asarray(b)[:, 0], rtol=TOLERANCE[i], atol=1e-4)


def test_auto_reset_starts_with_an_empty_engine():
    env, params = ig.make(4)
    trajectory = ig.rollout(env, params, ig.policies.baseline, np.array([0]), length=201)
    last, first = (np.asarray(trajectory.workload.running)[i, 0] for i in (199, 200))
    assert last > 8 and first < 8


def test_the_closed_loop_never_touches_the_engine_and_has_no_outcome():
    env, params = ig.make(2)
    state = env.reset_seed(0, params)[1]
    for _ in range(3):
        _, state, *_, info = env.step(None, state, ig.ServeAction(), params)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves((state.engine, info["outcome"])))


def test_another_weight_format_stops_the_engine_for_its_restart():
    actions = [ig.ServeAction(batch_size=128)] * 4 + [ig.ServeAction(batch_size=128, quant_tier=1)] * 4
    _, outcome, metrics, engine = player()(3, columns_of(actions), open_params(4, restart_s=30.0))
    assert (metrics.tokens_per_sec[100:130] == 0).all() and (metrics.tokens_per_sec[131:160] > 0).all()
    assert engine.preempted[100].sum() > 1 and engine.phases[100].sum() == 0 and engine.preempted[140].sum() == 0
    assert outcome.quality[99] == 1.0 and outcome.quality[100] < 1.0
    _, _, at_once, _ = player()(3, columns_of(actions), open_params(4, restart_s=0.0))
    assert (at_once.tokens_per_sec[1:] > 0).all()


def test_an_episode_begins_with_what_its_first_action_asks_for():
    actions = [ig.ServeAction(batch_size=128, quant_tier=2, prefill_disagg=True)]
    _, outcome, metrics, engine = player()(3, columns_of(actions), open_params(4))
    assert (metrics.tokens_per_sec[1:] > 0).all() and (outcome.gpu_seconds == 2.0).all()
    assert (engine.restart_s == 0).all() and (engine.start_s == 0).all()


@pytest.mark.parametrize("role", [0, 1])
def test_a_second_gpu_is_paid_from_the_asking_and_for_its_lease(role):
    one, two = ig.ServeAction(batch_size=128), ig.ServeAction(batch_size=128, prefill_disagg=True)
    columns = columns_of([one])
    columns = columns.replace(prefill_disagg=(jnp.arange(STEPS) >= 50) & (jnp.arange(STEPS) < 55))
    _, outcome, _, _ = player()(5, columns, open_params(4, second_gpu=role, start_s=30.0, lease_s=60.0))
    np.testing.assert_array_equal(outcome.gpu_seconds, 1.0 + ((np.arange(STEPS) >= 50) & (np.arange(STEPS) < 110)))
    _, outcome, metrics, _ = player()(5, columns_of([one, two]), open_params(4, second_gpu=role, start_s=30.0))
    _, _, alone, _ = player()(5, columns_of([one, one]), open_params(4, second_gpu=role))
    np.testing.assert_allclose(metrics.tpot_ms[:130], alone.tpot_ms[:130], rtol=1e-5)  # it does not serve yet
    assert metrics.tpot_ms[140:].mean() < 0.95 * alone.tpot_ms[140:].mean()


def test_other_dynamics_and_impossible_ones_are_refused():
    with pytest.raises(ValueError, match=r"dynamics = 'fluid': must be one of closed_loop, open_loop"):
        ig.make(1, dynamics="fluid")
    with pytest.raises(ValueError, match="served open_loop only"):
        ig.make(4, dynamics="closed_loop")


def test_a_table_that_does_not_say_what_the_gpu_holds_is_refused_before_the_first_step():
    table = ig.load_table()
    bare = type(table)(table.axes, table.values, {"reference_output_length": "128"}, "bare")
    with pytest.raises(TableError, match="memory_gb"):
        ig.make(4, table=bare)
    env, params = ig.make(1, table=bare)
    env.reset_seed(0, params)
    with pytest.raises(TableError, match="memory_gb"):
        env.suited_to(open_params(4))


def test_an_empty_engine_has_the_shapes_of_its_defaults():
    engine = EngineState.empty((7,))
    assert engine.phases.shape == (7, 4) and engine.running.dtype == jnp.int32 and engine.held.dtype == jnp.float32
