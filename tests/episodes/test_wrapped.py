"""A wrapper handed to rollout, fold or evaluate is played, not looked through; so it is through SingleStep."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.wrappers import DiscreteAction, FiveValueStep, FlatAction, FlatObservation, Wrapper
from inferencegym_jax.encoding import action_from_box, normalise
from inferencegym_jax.episodes.wrapped import suited

SEEDS = np.arange(2)


class Scaled(Wrapper):
    """Everybody's first wrapper: the reward times a number."""

    def __init__(self, env: Any, scale: float):
        super().__init__(env)
        self.scale = scale

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        observation, state, reward, *rest = self._env.step(key, state, action, params)
        return observation, state, self.scale * reward, *rest

    def step_env(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        observation, state, reward, *rest = self._env.step_env(key, state, action, params)
        return observation, state, self.scale * reward, *rest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counted:
    """A wrapper's own state around the environment's."""

    inner: Any
    calls: Any


class Counting(Wrapper):
    """One with a state of its own, as a wrapper that remembers has."""

    def reset_seed(self, seed: Any, params: Any = None) -> Any:
        observation, state = self._env.reset_seed(seed, params)
        return observation, Counted(state, jnp.zeros_like(state.time))

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        observation, inner, reward, *rest = self._env.step(key, state.inner, action, params)
        return observation, Counted(inner, state.calls + 1), reward + state.calls, *rest

    def step_env(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        observation, inner, reward, *rest = self._env.step_env(key, state.inner, action, params)
        return observation, Counted(inner, state.calls + 1), reward + state.calls, *rest


class Foreign:
    """As people write one without this library: it passes attributes on, ``suited_to`` among them."""

    def __init__(self, env: Any):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        observation, state, reward, *rest = self._env.step(key, state, action, params)
        return observation, state, reward - 7.0, *rest


@pytest.fixture(scope="module")
def bare() -> tuple[Any, Any, Any]:
    env, params = ig.make(2)
    return env, params, ig.rollout(env, params, ig.policies.random, SEEDS, length=8)


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda env: Scaled(Scaled(env, 3.0), 0.5), lambda reward: 1.5 * reward),
        (Foreign, lambda reward: reward - np.float32(7.0)),
    ],
    ids=["stacked", "foreign"],
)
def test_its_rewards_are_those_of_rollout(wrap: Any, expected: Any, bare: Any) -> None:
    env, params, usual = bare
    found = ig.rollout(wrap(env), params, ig.policies.random, SEEDS, length=8)
    np.testing.assert_allclose(found.reward, expected(np.asarray(usual.reward)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.metrics.tokens_per_sec, usual.metrics.tokens_per_sec)


def test_and_those_of_fold_and_evaluate_which_is_a_fold(bare: Any) -> None:
    env, params, usual = bare
    rewards = np.asarray(usual.reward) + np.arange(8, dtype=np.float32)[:, None]
    statistics = ig.evaluate(Counting(env), params, ig.policies.random, SEEDS, length=8)
    np.testing.assert_allclose(statistics.total_reward, rewards.sum(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics.mean_tps, usual.metrics.tokens_per_sec.mean(axis=0), rtol=1e-5)


def test_a_wrapper_of_somebody_elses_is_compiled_for_the_tasks_dynamics_too(bare: Any) -> None:
    env, params, _ = bare
    foreign = Foreign(env)
    twin = suited(foreign, params)
    assert isinstance(twin, Foreign) and twin._env.dynamics == "closed_loop" and env.dynamics == "mixed"
    assert suited(foreign, params) is twin and foreign._env is env


def test_wrappers_that_differ_in_an_attribute_are_not_one_program() -> None:
    env, _ = ig.make(2)
    weights = np.ones(3)
    assert Scaled(env, 2.0) == Scaled(env, 2.0) and hash(Scaled(env, 2.0)) == hash(Scaled(env, 2.0))
    assert Scaled(env, 2.0) != Scaled(env, 3.0)
    assert Scaled(env, weights) == Scaled(env, weights) != Scaled(env, np.zeros(3))  # type: ignore[arg-type]


def test_views_of_both_sides_play_as_the_bare_environment_does(bare: Any) -> None:
    env, params, usual = bare
    view = FiveValueStep(FlatAction(FlatObservation(env)))
    boxes = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 5)), jnp.float32)

    def boxed(key: Any, observation: Any, step: Any) -> Any:
        return boxes[step], step + 1

    def knobs(key: Any, observation: Any, step: Any) -> Any:
        return action_from_box(boxes[step]), step + 1

    there = ig.rollout(view, params, boxed, SEEDS, length=8, carry=jnp.int32(0))
    here = ig.rollout(env, params, knobs, SEEDS, length=8, carry=jnp.int32(0))
    np.testing.assert_allclose(there.reward, here.reward, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(there.next_observation), normalise(here.next_observation), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(there.action.batch_size, here.action.batch_size)


@pytest.mark.ci
def test_gymnax_log_wrapper_is_played_by_rollout(bare: Any) -> None:
    wrappers = pytest.importorskip("gymnax.wrappers", reason="needs gymnax")
    env, params, _ = bare
    view = wrappers.LogWrapper(FiveValueStep(DiscreteAction(FlatObservation(env))))
    found = ig.rollout(view, params, lambda key, observation, carry: 3, SEEDS, length=3)
    decoded = DiscreteAction(env).decode(3)
    usual = ig.rollout(env, params, lambda key, observation, carry: decoded, SEEDS, length=3)
    np.testing.assert_allclose(found.reward, usual.reward, rtol=1e-5, atol=1e-6)


def test_single_step_plays_a_wrapper_and_refuses_one_that_it_would_pass_over(bare: Any) -> None:
    env, params, _ = bare
    plain, scaled = ig.SingleStep(env, params), ig.SingleStep(Scaled(env, -2.0), params)
    action = ig.ServeAction(batch_size=64)
    for _ in range(2):
        mine = scaled.step(scaled.reset(5).state, scaled.pack_action(action))
        usual = plain.step(plain.reset(5).state, plain.pack_action(action))
        assert mine.reward == pytest.approx(-2.0 * usual.reward, rel=1e-6)
        assert mine.action == action.to_dict()

    class Half(Wrapper):
        def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
            return self._env.step(key, state, action, params)

    with pytest.raises(TypeError, match="Half defines step and not step_env"):
        ig.SingleStep(FlatObservation(Half(env)), params)


def test_a_wrapper_that_drops_info_is_named(bare: Any) -> None:
    class Silent(Wrapper):
        def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
            return *self._env.step(key, state, action, params)[:-1], {}

    env, params, _ = bare
    with pytest.raises(KeyError, match="Silent.step drops it"):
        ig.rollout(Silent(env), params, ig.policies.random, SEEDS, length=2)
