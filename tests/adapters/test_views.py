"""Every wrapper of the library is exposed to Gymnasium, and plays there as in a rollout."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.gymnasium_env import InferenceGymEnv, InferenceGymVectorEnv
from inferencegym_jax.adapters.wrappers import FlatAction, ObservationHistory, ScoreReward, WholeScoreReward, Wrapper

STEPS = 3
VIEWS: dict[str, list[Any]] = {
    "history": [ObservationHistory],
    "score": [functools.partial(ScoreReward, task=1)],
    "whole score": [functools.partial(WholeScoreReward, task=1)],
    "both": [functools.partial(ScoreReward, task=1), functools.partial(ObservationHistory, last=2)],
}


def rollout(views: list[Any], boxes: np.ndarray) -> ig.Trajectory:
    """The same episodes, of seeds 4 and 5."""
    env, params = ig.make(1)
    for view in (*views, FlatAction):
        env = view(env)

    def follow(key: Any, observation: Any, step: Any) -> Any:
        return jnp.asarray(boxes)[step], step + 1

    return ig.rollout(env, params, follow, [4, 5], length=STEPS, carry=jnp.int32(0))


@pytest.mark.ci
@pytest.mark.parametrize("name", VIEWS)
def test_it_plays_as_in_a_rollout(name: str) -> None:
    boxes = np.random.default_rng(0).uniform(-1, 1, (STEPS, 5)).astype(np.float32)
    found = rollout(VIEWS[name], boxes)
    single, vector = InferenceGymEnv(1, views=VIEWS[name]), InferenceGymVectorEnv(2, 1, views=VIEWS[name])
    first, _ = single.reset(seed=4)
    vector.reset(seed=4)
    assert single.observation_space.contains(first) and single.observation_space == vector.single_observation_space
    for t in range(STEPS):
        one, reward, *_ = single.step(boxes[t])
        many, rewards, *_ = vector.step(np.stack([boxes[t], boxes[t]]))
        np.testing.assert_allclose(rewards, found.reward[t], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(many[0], one, rtol=1e-4, atol=1e-5)
        assert reward == pytest.approx(rewards[0], abs=1e-5)
        if name not in ("score", "whole score"):
            np.testing.assert_allclose(many, np.asarray(found.next_observation)[t], rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(single)
    assert twin.step(boxes[0])[1] == single.step(boxes[0])[1]


def test_no_wrapper_is_left_out() -> None:
    """A wrapper that is added comes here; the flat, discrete and five-value ones are in the tests of their adapters."""
    here = {view.func if isinstance(view, functools.partial) else view for views in VIEWS.values() for view in views}
    elsewhere = {"FlatObservation", "FlatAction", "DiscreteAction", "FiveValueStep"}
    named = {name for name, kind in vars(ig.wrappers).items() if isinstance(kind, type) and issubclass(kind, Wrapper)}
    assert named - elsewhere - {"Wrapper"} == {view.__name__ for view in here}
