"""The step and gymnax's base-class behaviour: auto-reset, truncation, clamping, errors, compilation."""

import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.encoding import normalise
from inferencegym_jax.environment import transition
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS, OBSERVATION, plain
from inferencegym_jax.numerics import draws as random

ALL_TASKS = [
    pytest.param(spec.id, marks=[pytest.mark.slow] if spec.episode_length > 200 else [pytest.mark.ci] * (spec.id > 3))
    for spec in ig.task_specs().values()
]


@pytest.mark.parametrize("task", ALL_TASKS)
def test_shapes_dtypes_and_ranges_over_an_episode(task):
    env, params = ig.make(task)
    steps = ig.get_task(task).episode_length
    trajectory = ig.rollout(env, params, ig.policies.random, np.arange(16))
    chex.assert_tree_shape_prefix(trajectory, (steps, 16))
    assert np.asarray(trajectory.truncated).sum(axis=0).tolist() == [1] * 16
    chex.assert_tree_all_finite(trajectory)
    for name, spec in OBSERVATION.items():
        value = np.asarray(getattr(trajectory.next_observation, name))
        assert value.dtype == np.float32
        assert value.min() >= spec.low and value.max() <= spec.high, name
    assert trajectory.reward.dtype == jnp.float32
    assert np.abs(np.asarray(trajectory.reward)).max() <= 1
    for name in ("eviction_events", "slo_violations"):
        assert getattr(trajectory.metrics, name).dtype == jnp.int32
    flat = jax.jit(type(trajectory.next_observation).to_array)(trajectory.next_observation)
    assert flat.shape == (steps, 16, FLAT_OBSERVATION_SIZE) and flat.dtype == jnp.float32
    np.testing.assert_array_equal(flat[..., 9:12], trajectory.next_observation.priority_distribution)
    assert jax.eval_shape(normalise, trajectory.next_observation).shape == (steps, 16, FLAT_OBSERVATION_SIZE)


def test_reset_by_key_supplies_a_seed_and_nothing_else():
    env, params = ig.make(1)
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        obs, state = env.reset(key, params)
        chex.assert_trees_all_equal((obs, state), env.reset_seed(state.seed, params))
    assert int(env.reset(jax.random.key(3), params)[1].seed) != int(env.reset(jax.random.key(4), params)[1].seed)
    obs, _ = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(0), 5), params)
    assert obs.queue_depth.shape == (5,) and obs.priority_distribution.shape == (5, 3)


def test_the_key_of_a_step_is_ignored():
    env, params = ig.make(3)
    _, state = env.reset_seed(1, params)
    a = env.step(jax.random.key(0), state, ig.ServeAction(), params)
    b = env.step(jax.random.key(9), state, ig.ServeAction(), params)
    chex.assert_trees_all_equal(a, b)


def test_episode_truncates_at_200_and_auto_resets_to_a_derived_seed():
    env, params = ig.make(2)
    trajectory = ig.rollout(env, params, ig.policies.baseline, np.array([11]), length=450)
    truncated = np.asarray(trajectory.truncated)[:, 0]
    assert np.flatnonzero(truncated).tolist() == [199, 399]
    assert not np.asarray(trajectory.terminated).any()
    assert float(trajectory.next_observation.timestep[199, 0]) == 200
    assert float(trajectory.observation.timestep[200, 0]) == 0
    second = random.episode_seed(jnp.uint32(11), jnp.int32(1))
    fresh = ig.rollout(env, params, ig.policies.baseline, np.array([int(second)]))
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: np.asarray(x)[200:400], trajectory.metrics), jax.tree.map(np.asarray, fresh.metrics)
    )
    first = ig.rollout(env, params, ig.policies.baseline, np.array([11]))
    assert not np.array_equal(first.workload.arrivals, fresh.workload.arrivals)


def test_a_step_past_the_end_changes_nothing():
    env, params = ig.make(1)
    _, state = env.reset_seed(0, params)
    for _ in range(200):
        _, state, *_ = env.step_env(None, state, ig.ServeAction(), params)
    again = env.step_env(None, state, ig.ServeAction(batch_size=512), params)
    chex.assert_trees_all_equal(again[1], state)
    assert float(again[2]) == 0.0
    assert bool(env.is_truncated(again[1], params))


BAD_ACTIONS = [
    ({"batch_size": 0}, "batch_size = 0: must be a whole number from 1 to 512"),
    ({"batch_size": 513}, "batch_size = 513: must be a whole number from 1 to 512"),
    ({"batch_size": 31.5}, "batch_size = 31.5: must be a whole number"),
    ({"batch_size": 10**400}, "batch_size = 1000"),
    ({"kv_budget": 0.05}, "kv_budget = 0.05: must be a number from 0.1 to 1"),
    ({"kv_budget": float("nan")}, "kv_budget = nan: must be a number from 0.1 to 1"),
    ({"kv_budget": float("inf")}, "kv_budget = inf: must be a number from 0.1 to 1"),
    ({"spec_length": 3}, "spec_length = 3: must be one of 0, 1, 2, 4, 8"),
    ({"quant_tier": 3}, "quant_tier = 3: must be one of 0, 1, 2"),
    ({"quant_tier": "FP16"}, "quant_tier = 'FP16': must be one of 0, 1, 2"),
    ({"prefill_disagg": 1}, "prefill_disagg = 1: must be true or false"),
    ({"spec_length": None}, "spec_length = None: must be one of"),
]


@pytest.mark.parametrize("fields, message", BAD_ACTIONS)
def test_an_action_out_of_range_names_knob_value_and_range(fields, message):
    env, params = ig.make(3)
    _, state = env.reset_seed(0, params)
    for step in (env.step, env.step_env):
        with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
            step(None, state, ig.ServeAction(**fields), params)
    assert not env.action_space(params).contains(ig.ServeAction(**fields))


def test_something_else_than_an_action_is_told_so():
    env, params = ig.make(1)
    _, state = env.reset_seed(0, params)
    with pytest.raises(TypeError, match="pass a ServeAction"):
        env.step(None, state, {"batch_size": 1}, params)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5, "7", None, np.int64(-1)])
def test_a_seed_out_of_range_is_told_the_range(seed):
    env, params = ig.make(1)
    with pytest.raises(ValueError, match="must be a whole number from 0 to 4294967295"):
        env.reset_seed(seed, params)


@pytest.mark.parametrize(
    "given_fields, edge",
    [
        ({"batch_size": 9999}, {"batch_size": 512}),
        ({"batch_size": -5}, {"batch_size": 1}),
        ({"kv_budget": 7.0}, {"kv_budget": 1.0}),
        ({"kv_budget": -1.0}, {"kv_budget": 0.1}),
        ({"spec_length": 99}, {"spec_length": 8}),
        ({"quant_tier": 5}, {"quant_tier": 2}),
        ({"quant_tier": -3}, {"quant_tier": 0}),
    ],
)
def test_a_traced_value_out_of_range_is_clamped_at_the_edge(given_fields, edge):
    env, params = ig.make(3)
    _, state = env.reset_seed(0, params)
    inside = jax.jit(lambda action: env.step(None, state, action, params)[1:4])
    clamped = inside(ig.ServeAction(**given_fields).as_arrays())
    chex.assert_trees_all_equal(clamped, inside(ig.ServeAction(**edge).as_arrays()))


@pytest.mark.parametrize("task", (1, 2))
def test_locked_knobs_are_forced_to_the_baselines_value(task):
    env, params = ig.make(task)
    locked = env.action_space(params).locked
    assert set(locked) == set(KNOBS) - set(ig.get_task(task).active_knobs)
    _, state = env.reset_seed(0, params)
    other = {"spec_length": 8, "prefill_disagg": True, "quant_tier": 2}
    turned = ig.ServeAction(**{name: other[name] for name in locked})
    chex.assert_trees_all_equal(
        env.step(None, state, turned, params)[1:4], env.step(None, state, ig.ServeAction(), params)[1:4]
    )


def test_every_active_knob_changes_something():
    env, params = ig.make(3)
    _, state = env.reset_seed(0, params)
    base = plain(env.step(None, state, ig.ServeAction(), params)[5]["metrics"])
    for change in (
        {"kv_budget": 0.3},
        {"batch_size": 99},
        {"spec_length": 4},
        {"prefill_disagg": True},
        {"quant_tier": 1},
    ):
        assert plain(env.step(None, state, ig.ServeAction(**change), params)[5]["metrics"]) != base


@settings(max_examples=25, deadline=None)
@given(
    task=st.sampled_from((1, 2, 3)),
    seed=st.integers(0, 2**32 - 1),
    kv=st.floats(0.1, 1.0),
    batch=st.integers(1, 512),
    spec=st.sampled_from((0, 1, 2, 4, 8)),
    disagg=st.booleans(),
    tier=st.integers(0, 2),
)
def test_any_action_on_any_seed_gives_a_finite_bounded_step(task, seed, kv, batch, spec, disagg, tier):
    env, params = ig.make(task)
    _, state = env.reset_seed(seed, params)
    action = ig.ServeAction(kv, spec, batch, disagg, tier)
    observation, after, reward, _, _, info = env.step(None, state, action, params)
    chex.assert_tree_all_finite((observation, reward, info))
    assert env.observation_space(params).contains(observation)
    assert -1 <= float(reward) <= 1
    assert int(after.time) == 1
    assert int(info["metrics"].eviction_events) == int(np.floor(np.float32(1 - np.float32(max(kv, 0.1))) * after.queue))


def test_rollout_with_new_seeds_or_another_task_compiles_nothing():
    env, params = ig.make(1)
    ig.rollout(env, params, ig.policies.random, np.arange(3))
    records = []

    class Watch(logging.Handler):
        def emit(self, record):
            records.append(record)

    handler = Watch()
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            ig.rollout(env, params, ig.policies.random, np.arange(3) + 77)
            other_env, other = ig.make(2)
            ig.rollout(other_env, other, ig.policies.random, np.arange(3))
            assert not [r for r in records if "rollout" in r.getMessage()]
            ig.rollout(env, params, ig.policies.random, np.arange(4))
            assert [r for r in records if "rollout" in r.getMessage()]  # the watch sees a compilation when there is one
    finally:
        logger.removeHandler(handler)


def test_vmapped_step_traces_once_per_shape():
    env, params = ig.make(3)
    traces = []

    def counted(state, action):
        traces.append(1)
        return env.step(None, state, action, params)[2]

    step = jax.jit(jax.vmap(counted))
    begin = jax.jit(jax.vmap(lambda seed: env.reset_seed(seed, params)[1]))
    draw = jax.jit(jax.vmap(env.action_space(params).sample))
    for start in (0, 50):
        step(begin(jnp.arange(6) + start), draw(jax.random.split(jax.random.key(start), 6)))
    assert len(traces) == 1


def test_environments_over_equal_tables_are_equal_and_their_step_is_pure():
    env, params = ig.make(1)
    other, _ = ig.make(3)
    assert env == other and hash(env) == hash(other)
    _, state = env.reset_seed(5, params)
    action = ig.ServeAction(batch_size=77).as_arrays()
    first, second = (jax.jit(functools.partial(transition, e.grid))(state, action, params) for e in (env, other))
    chex.assert_trees_all_equal(first, second)


def test_no_double_precision_anywhere():
    env, params = ig.make(3)
    closed = jax.make_jaxpr(lambda s: env.step(None, env.reset_seed(s, params)[1], ig.ServeAction(), params))(
        jnp.uint32(0)
    )
    assert not jax.config.read("jax_enable_x64")
    assert all(aval.dtype.itemsize <= 4 for aval in closed.out_avals)
