"""Gymnasium's own wrappers over both environments, as training scripts stack them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.wrappers import vector

import inferencegym_jax.adapters.gymnasium_env  # noqa: F401  (registers the ids)
from inferencegym_jax.models import KNOBS

STATIC = "inferencegym_jax/StaticUniform-v0"
N = 2
REFUSED = (ValueError, AssertionError)  # before Gymnasium 1.4, which gymnax 1.x wants, an assertion without words


def vector_env(**words: Any) -> Any:
    return gymnasium.make_vec(STATIC, num_envs=N, max_episode_steps=3, **words)


def play(envs: Any, steps: int = 7) -> list[Any]:
    """What the steps gave, from seed 0."""
    envs.reset(seed=0)
    rows = np.random.default_rng(0).uniform(-1, 1, (steps, *envs.action_space.shape)).astype(np.float32)
    return [envs.step(row) for row in rows]


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    return play(vector_env(autoreset_mode="NextStep"))


def test_normalize_observation_in_the_mode_that_it_asks_for(plain: list[Any]) -> None:
    steps = play(vector.NormalizeObservation(vector_env(autoreset_mode="NextStep")))
    assert all(np.isfinite(step[0]).all() for step in steps)
    assert not np.allclose(steps[-1][0], plain[-1][0])
    with pytest.raises(REFUSED):  # Gymnasium's own, of the default mode
        vector.NormalizeObservation(vector_env())


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_normalize_reward(mode: str) -> None:
    steps = play(vector.NormalizeReward(vector_env(autoreset_mode=mode)))
    bare = play(vector_env(autoreset_mode=mode))
    assert all(np.isfinite(step[1]).all() for step in steps)
    assert not np.allclose(steps[0][1], bare[0][1])


def test_rescale_observation_in_the_modes_that_it_takes(plain: list[Any]) -> None:
    envs = vector.RescaleObservation(vector_env(autoreset_mode="NextStep"), np.float32(-1), np.float32(1))
    for step, usual in zip(play(envs), plain, strict=True):
        np.testing.assert_allclose(step[0], 2 * usual[0] - 1, atol=1e-6)
    with pytest.raises(REFUSED):  # Gymnasium's own, of every observation wrapper
        vector.RescaleObservation(vector_env(), np.float32(-1), np.float32(1))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_record_episode_statistics_and_infos_as_a_list(mode: str) -> None:
    envs = vector.DictInfoToList(vector.RecordEpisodeStatistics(vector_env(autoreset_mode=mode)))
    bare = play(vector_env(autoreset_mode=mode))
    steps = play(envs)
    infos = steps[2][4]
    for i in range(N):
        assert infos[i]["episode"]["l"] == 3 and infos[i]["timestep"] == 3
        assert infos[i]["episode"]["r"] == pytest.approx(sum(step[1][i] for step in bare[:3]))
        assert infos[i]["metrics"]["ttft_p50_ms"] == pytest.approx(float(bare[2][4]["metrics"]["ttft_p50_ms"][i]))
        if mode == "SameStep":
            assert infos[i]["final_obs"].shape == (14,) and infos[i]["final_info"]["timestep"] == 3


@pytest.mark.parametrize("mode", [None, "sync"])
def test_time_aware_knows_the_episodes_length(mode: str | None) -> None:
    single = wrappers.TimeAwareObservation(gymnasium.make(STATIC))
    single.reset(seed=0)
    observation, *_ = single.step(np.zeros(len(KNOBS), np.float32))
    assert observation.shape == (15,) and observation[-1] == 1
    assert single.observation_space.high[-1] == 200  # type: ignore[attr-defined]
    if mode == "sync":
        envs = gymnasium.make_vec(
            STATIC, num_envs=N, vectorization_mode="sync", wrappers=[wrappers.TimeAwareObservation]
        )
        envs.reset(seed=0)
        assert envs.step(np.zeros((N, len(KNOBS)), np.float32))[0].shape == (N, 15)


def test_frame_stack_rescale_statistics_and_limits_over_a_single_environment() -> None:
    env = wrappers.RecordEpisodeStatistics(gymnasium.make(STATIC, max_episode_steps=3))
    env = wrappers.FrameStackObservation(wrappers.RescaleObservation(env, np.float32(-1), np.float32(1)), 4)
    env = wrappers.NormalizeReward(wrappers.ClipAction(env))
    first, _ = env.reset(seed=0)
    assert first.shape == (4, 14) and env.observation_space.contains(first)
    for _ in range(3):
        seen, _, _, truncated, info = env.step(np.full(len(KNOBS), 3.0, np.float32))
    assert env.observation_space.contains(seen) and truncated and info["episode"]["l"] == 3
