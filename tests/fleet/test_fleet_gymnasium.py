"""A fleet through Gymnasium is the fleet."""

from __future__ import annotations

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


def test_ids() -> None:
    assert sorted(IDS.values()) == [801, 802, 803]
