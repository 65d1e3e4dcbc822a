"""Gymnasium's own checkers, and the same trajectories as the functional API."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import inferencegym_jax as ig
from inferencegym_jax.adapters.gymnasium_env import IDS, InferenceGymEnv, InferenceGymVectorEnv
from inferencegym_jax.encoding import action_from_box, normalise
from inferencegym_jax.models import KNOBS


@pytest.mark.ci
@pytest.mark.parametrize("name", IDS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasium_check_env_passes_without_a_warning(name: str) -> None:
    check_env(gymnasium.make(name).unwrapped, skip_render_check=True)


def actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (200, count, len(KNOBS))).astype(np.float32)


def follow(key: Any, observation: Any, carry: Any) -> Any:
    rows, step = carry
    return action_from_box(rows[step]), (rows, step + 1)


@pytest.mark.ci
@pytest.mark.parametrize("task", [2, 3, 5])
def test_single_env_has_the_trajectory_of_rollout(task: int) -> None:
    env, params = ig.make(task)
    rows = actions(1)[:, 0]
    found = ig.rollout(env, params, follow, [11, 12], carry=(jnp.asarray(rows), jnp.int32(0)))
    found = jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], found)
    exact = task <= 3  # an open-loop second's last bits differ between two programs
    same = np.testing.assert_array_equal if exact else functools.partial(np.testing.assert_allclose, rtol=1e-6)
    wrapped = InferenceGymEnv(task, normalised=False)
    assert wrapped.reset(seed=11)[1]["seed"] == 11
    for t, row in enumerate(rows):
        flat, gain, terminated, truncated, info = wrapped.step(row)
        step = jax.tree.map(lambda leaf, t=t: leaf[t], found)
        same(flat, step.next_observation.to_array())
        np.testing.assert_allclose(gain, step.reward, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)
        same(info["metrics"]["ttft_p99_ms"], step.metrics.ttft_p99_ms)
        assert info["workload"]["queue_depth"] == step.workload.queue_depth
        assert not terminated and truncated == (t == 199)


def test_observations_are_normalised_unless_asked_otherwise() -> None:
    flat, _ = InferenceGymEnv(3).reset(seed=11)
    natural, _ = InferenceGymEnv(3, normalised=False).reset(seed=11)
    env, params = ig.make(3)
    np.testing.assert_allclose(flat, normalise(env.reset_seed(11, params)[0]), rtol=1e-6)
    assert not np.allclose(flat, natural)


def test_vector_env_has_the_trajectories_of_single_envs_across_autoreset() -> None:
    envs = gymnasium.make_vec("inferencegym_jax/BurstyShareGPT-v0", num_envs=3)
    assert isinstance(envs.unwrapped, InferenceGymVectorEnv)
    flat, _ = envs.reset(seed=5)
    singles = [InferenceGymEnv(2) for _ in range(3)]
    expected = [single.reset(seed=5 + i)[0] for i, single in enumerate(singles)]
    for rows in np.concatenate([actions(3), actions(3, seed=1)[:3]]):
        np.testing.assert_allclose(
            flat, np.stack(expected), rtol=1e-5, atol=1e-6
        )  # one rounding between batched and single code
        flat, rewards, _, truncated, infos = envs.step(rows)
        for i, single in enumerate(singles):
            expected[i], gain, _, done, _ = single.step(rows[i])
            assert rewards[i] == pytest.approx(gain, abs=1e-5)
            assert done == truncated[i]
            if done:
                np.testing.assert_allclose(infos["final_obs"][i], expected[i], rtol=1e-5, atol=1e-6)
                expected[i] = single.reset()[0]


def test_step_takes_knobs_by_name_and_actions() -> None:
    rewards = []
    for action in ({"batch_size": 64}, ig.ServeAction(batch_size=64)):
        env = InferenceGymEnv(1)
        env.reset(seed=0)
        rewards.append(env.step(action)[1])
    assert rewards[0] == rewards[1]


def test_reset_without_a_seed_goes_on_to_another_episode() -> None:
    env = InferenceGymEnv(1)
    seeds = [env.reset(seed=3)[1]["seed"], *(env.reset()[1]["seed"] for _ in range(3))]
    assert len(set(seeds)) == 4


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (np.zeros(4), "shape"),
        (np.full(5, np.nan), "finite"),
        ({"batch": 3}, "'batch' is unknown"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_a_bad_action_is_named(action: object, words: str) -> None:
    env = InferenceGymEnv(1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=words):
        env.step(action)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_a_bad_seed_is_named(seed: object) -> None:
    with pytest.raises(ValueError, match="seed = "):
        InferenceGymEnv(1).reset(seed=seed)  # type: ignore[arg-type]


def test_a_step_before_reset_or_after_the_end_asks_for_a_reset() -> None:
    env = InferenceGymEnv(1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(len(KNOBS), np.float32))
    env.reset(seed=0)
    for _ in range(200):
        env.step(np.zeros(len(KNOBS), np.float32))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(len(KNOBS), np.float32))
