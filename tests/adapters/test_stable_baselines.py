"""Stable-Baselines3 takes the environment: its checker passes and PPO trains (`make install-sb3`)."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import inferencegym_jax.adapters.gymnasium_env  # noqa: F401  (registers the ids)

sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra sb3 (torch): make install-sb3")


@pytest.mark.parametrize("name", ["StaticUniform", "BurstyShareGPT", "AdversarialMultiTenant"])
def test_check_env_passes(name: str) -> None:
    from stable_baselines3.common.env_checker import check_env

    check_env(gymnasium.make(f"inferencegym_jax/{name}-v0"), warn=True)


def test_ppo_trains_and_acts_within_the_space() -> None:
    env = gymnasium.make("inferencegym_jax/StaticUniform-v0")
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    before = [parameter.detach().numpy().copy() for parameter in model.policy.parameters()]
    model.learn(128)
    after = [parameter.detach().numpy() for parameter in model.policy.parameters()]
    assert any(not np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    action, _ = model.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action)
