"""A fleet through Gymnasium is the fleet."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.gymnasium_fleet import IDS


def test_a_day_begins_as_the_library_has_it() -> None:
    env = gymnasium.make("inferencegym_jax/FleetElastic-v0")
    first, info = env.reset(seed=5)
    fleet, params = ig.make_fleet("fleet-elastic")
    seen, state = fleet.reset_seed(5, params)
    np.testing.assert_allclose(first, seen.to_unit())
    assert info["seed"] == 5 and env.observation_space.contains(first)
    after, reward, terminated, truncated, info = env.step(3)
    seen, _, expected, _, _ = fleet.step_env(None, state, ig.FleetAction(gpus=4), params)
    np.testing.assert_allclose(after, seen.to_unit(), rtol=1e-5, atol=1e-6)
    assert reward == pytest.approx(float(expected), rel=1e-5) and not terminated and not truncated
    assert info["metrics"]["asked"] == 4
    with pytest.raises(ValueError, match="action = 8"):
        env.unwrapped.step(8)
    with pytest.raises(ValueError, match="gpus = 9"):
        env.unwrapped.step({"gpus": 9})


@pytest.mark.parametrize("way", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_it_is_copied_and_pickled_within_a_day(way: Any) -> None:
    env = gymnasium.make("inferencegym_jax/FleetElastic-v0")
    env.reset(seed=5)
    env.step(3)
    twin = way(env)
    mine, its = env.step(2), twin.step(2)
    np.testing.assert_array_equal(mine[0], its[0])
    assert mine[1:] == its[1:]


def test_a_vector_of_them_steps_as_single_ones_do() -> None:
    envs = gymnasium.make_vec("inferencegym_jax/FleetElastic-v0", num_envs=2, vectorization_mode="sync")
    envs.reset(seed=5)
    single = gymnasium.make("inferencegym_jax/FleetElastic-v0")
    single.reset(seed=6)
    rewards = envs.step(np.asarray([1, 3]))[1]
    assert rewards[1] == pytest.approx(single.step(3)[1])


@pytest.mark.parametrize("words", [{"normalized": False}, {"trace": "/nonexistent.csv"}, {"whatever": 1}])
def test_an_argument_that_cannot_be_obeyed_is_named(words: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=next(iter(words))):
        gymnasium.make("inferencegym_jax/FleetElastic-v0", **words)
    env = gymnasium.make("inferencegym_jax/FleetElastic-v0")
    with pytest.raises(ValueError, match="'reset_mask' is unknown"):
        env.reset(options={"reset_mask": 1})


def test_ids() -> None:
    assert sorted(IDS.values()) == [801, 802, 803]
