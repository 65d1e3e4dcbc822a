"""Stable-Baselines3 takes the environment: its checker, its own vectorisation, and one compiled call for all (slow, as
torch is: `make install-sb3`)."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

import inferencegym_jax.adapters.gymnasium_env  # noqa: F401  (registers the ids)

sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra sb3 (torch): make install-sb3")
pytestmark = pytest.mark.slow

STATIC = "inferencegym_jax/StaticUniform-v0"


@pytest.mark.parametrize("name", ["StaticUniform", "BurstyShareGPT", "AdversarialMultiTenant"])
@pytest.mark.filterwarnings("error")
def test_check_env_passes(name: str) -> None:
    from stable_baselines3.common.env_checker import check_env

    check_env(gymnasium.make(f"inferencegym_jax/{name}-v0"), warn=True)


def learn(env: Any, **words: Any) -> Any:
    """A PPO that has learned a little; its weights have moved."""
    model = sb3.PPO("MlpPolicy", env, n_epochs=1, seed=0, device="cpu", **words)
    before = [parameter.detach().numpy().copy() for parameter in model.policy.parameters()]
    model.learn(128)
    after = [parameter.detach().numpy() for parameter in model.policy.parameters()]
    assert any(not np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    return model


def test_ppo_trains_and_acts_within_the_space() -> None:
    env = gymnasium.make(STATIC)
    action, _ = learn(env, n_steps=64, batch_size=64).predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action)


def test_its_own_vectorisation_by_id() -> None:
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env(STATIC, n_envs=2)
    assert envs.render_mode == "rgb_array"
    learn(envs, n_steps=32, batch_size=64)


@pytest.fixture(scope="module")
def vec() -> Any:
    from inferencegym_jax.adapters.sb3_env import InferenceGymVecEnv

    return InferenceGymVecEnv(2, task_id=1, max_episode_steps=10)


def test_one_call_for_all_is_what_its_own_gives(vec: Any) -> None:
    from stable_baselines3.common.env_util import make_vec_env

    single = make_vec_env(lambda: gymnasium.make(STATIC, max_episode_steps=10), n_envs=2)
    rows = np.random.default_rng(0).uniform(-1, 1, (12, 2, 5)).astype(np.float32)
    for envs in (vec, single):
        envs.seed(5)
    np.testing.assert_allclose(vec.reset(), single.reset(), rtol=1e-4, atol=1e-5)
    for row in rows:
        mine, its = vec.step(row), single.step(row)
        for one, other in zip(mine[:3], its[:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        for one, other in zip(mine[3], its[3], strict=True):
            assert ("terminal_observation" in one) == ("terminal_observation" in other)
            if "episode" in one:
                assert one["TimeLimit.truncated"] and other["TimeLimit.truncated"]
                np.testing.assert_allclose(
                    one["terminal_observation"], other["terminal_observation"], rtol=1e-4, atol=1e-5
                )
                assert one["episode"]["l"] == other["episode"]["l"] == 10
                assert one["episode"]["r"] == pytest.approx(other["episode"]["r"], abs=1e-3)
    assert vec.last_infos["metrics"]["tokens_per_sec"].shape == (2,)


def test_ppo_trains_on_it(vec: Any) -> None:
    model = learn(vec, n_steps=32, batch_size=64)
    assert len(model.ep_info_buffer) > 0


def test_what_cannot_be_obeyed_is_refused(vec: Any) -> None:
    from inferencegym_jax.adapters.sb3_env import InferenceGymVecEnv

    with pytest.raises(TypeError, match="autoreset_mode"):
        InferenceGymVecEnv(2, autoreset_mode="NextStep")
    with pytest.raises(AttributeError, match="stepped as one"):
        vec.set_attr("params", 1)
    with pytest.raises(AttributeError, match="stepped as one"):
        vec.env_method("close")
    with pytest.raises(ValueError, match="seed = -1"):
        vec.seed(-1)


def test_seeds_go_around_at_the_end_of_their_range(vec: Any) -> None:
    assert vec.seed(2**32 - 1) == [2**32 - 1, 0]
    vec.reset()
    assert [info["seed"] for info in vec.reset_infos] == [2**32 - 1, 0]
