"""Views for learners: flat and discrete actions, flat observations, the five-value step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.adapters.wrappers import DiscreteAction, FiveValueStep, FlatAction, FlatObservation
from inferencegym_jax.encoding import action_from_box, box_from_action
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS, check_action


@settings(max_examples=80, deadline=None)
@given(box=st.lists(st.floats(-3, 3, width=32), min_size=5, max_size=5))
def test_every_box_is_an_allowed_action(box):
    action = action_from_box(jnp.asarray(box))
    check_action(action)


@settings(max_examples=80, deadline=None)
@given(
    kv=st.floats(0.1, 1.0),
    spec=st.sampled_from((0, 1, 2, 4, 8)),
    batch=st.integers(1, 512),
    disagg=st.booleans(),
    tier=st.integers(0, 2),
)
def test_box_and_action_are_inverse(kv, spec, batch, disagg, tier):
    action = ig.ServeAction(kv, spec, batch, disagg, tier)
    back = action_from_box(box_from_action(action)).to_dict()
    assert back == {**action.to_dict(), "kv_budget": pytest.approx(kv, abs=1e-5)}


def test_box_is_logarithmic_in_batch_size():
    sizes = [int(action_from_box(jnp.array([0, 0, x, 0, 0])).batch_size) for x in (-1.0, 0.0, 1.0)]
    assert sizes == [1, 23, 512]


def test_flat_views_step_as_the_environment_does():
    env, params = ig.make(3)
    view = FlatAction(FlatObservation(env, normalised=False))
    box = jnp.array([0.1, -0.5, 0.4, 0.2, -0.3])
    obs, state = view.reset_seed(5, params)
    plain_obs, plain_state = env.reset_seed(5, params)
    np.testing.assert_array_equal(obs, plain_obs.to_array())
    flat = view.step(None, state, box, params)
    direct = env.step(None, plain_state, action_from_box(box), params)
    np.testing.assert_array_equal(flat[0], direct[0].to_array())
    np.testing.assert_array_equal(flat[5]["final_observation"], direct[5]["final_observation"].to_array())
    assert float(flat[2]) == float(direct[2])
    assert view.observation_space(params).contains(flat[0])
    assert view.action_space(params).contains(view.action_space(params).sample(jax.random.key(0)))


@pytest.mark.parametrize("task, points", [(1, 7 * 4), (2, 7 * 4 * 5), (3, 7 * 4 * 5 * 2 * 3)])
def test_discrete_grid_covers_the_free_knobs(task, points):
    env, params = ig.make(task)
    view = DiscreteAction(env)
    assert view.num_actions == points == view.action_space(params).n
    decoded = jax.vmap(view.decode)(jnp.arange(points))
    check_action(decoded)
    rows = {tuple(np.asarray(getattr(decoded, name))[i].item() for name in vars(decoded)) for i in range(points)}
    assert len(rows) == points
    _, state = view.reset_seed(0, params)
    assert float(view.step(None, state, 3, params)[2]) == float(env.step(None, state, view.decode(3), params)[2])


def test_five_value_step_ends_with_done_and_discount():
    env, params = ig.make(1)
    view = FiveValueStep(FlatAction(FlatObservation(env)))
    _, state = view.reset(jax.random.key(0), params)
    for t in range(200):
        obs, state, _, done, info = view.step(jax.random.key(t), state, jnp.zeros(len(KNOBS)), params)
        assert bool(done) == (t == 199)
    assert float(info["discount"]) == 1.0 and obs.shape == (FLAT_OBSERVATION_SIZE,)


def test_rejax_trains_its_ppo_through_the_five_value_step():
    rejax = pytest.importorskip("rejax")
    env, params = ig.make(1)
    view = FiveValueStep(FlatAction(FlatObservation(env)))
    learner = rejax.PPO.create(
        env=view,
        env_params=params,
        agent_kwargs={"activation": "tanh"},
        num_envs=16,
        num_steps=32,
        num_epochs=2,
        num_minibatches=4,
        total_timesteps=16 * 32 * 8,
        eval_freq=16 * 32 * 4,
        learning_rate=3e-3,
        skip_initial_evaluation=False,
    )
    state, (lengths, returns) = jax.jit(learner.train)(jax.random.key(0))
    assert np.isfinite(np.asarray(returns)).all() and (np.asarray(lengths) <= 200).all()
    assert np.asarray(returns).mean(axis=1)[-1] > np.asarray(returns).mean(axis=1)[0]
    assert int(state.global_step) >= 16 * 32 * 8
