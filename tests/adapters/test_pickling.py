"""Environments, single steps and vector environments are copied and pickled, and go on as the original does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.gymnasium_env import InferenceGymVectorEnv
from inferencegym_jax.adapters.http_env import HTTPGymEnv
from inferencegym_jax.models import KNOBS, plain

BURSTY = "inferencegym_jax/BurstyShareGPT-v0"


def through_pickle(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


WAYS: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, through_pickle]
BOX = np.full(len(KNOBS), 0.25, np.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", [{}, {"views": [ig.wrappers.FlatObservation]}, {"render_mode": "ansi"}])
def test_gymnasium_environments(way: Any, words: Any) -> None:
    env = gymnasium.make(BURSTY, **words).unwrapped
    env.reset(seed=4)
    env.step(BOX)
    twin = way(env)
    for _ in range(3):
        mine, its = env.step(BOX), twin.step(BOX)
        np.testing.assert_array_equal(mine[0], its[0])
        assert mine[1:] == its[1:] and env.render() == twin.render()
    assert env.reset()[1] == twin.reset()[1]


@pytest.mark.parametrize("way", WAYS[1:])
def test_wrapped_ones(way: Any) -> None:
    env = gymnasium.make(BURSTY)
    env.reset(seed=4)
    assert way(env).step(BOX)[1] == env.step(BOX)[1]


@pytest.mark.parametrize("way", WAYS)
def test_vector_environments(way: Any) -> None:
    envs = InferenceGymVectorEnv(2, 2)
    envs.reset(seed=4)
    envs.step(np.stack([BOX, BOX]))
    twin = way(envs)
    for _ in range(3):
        mine, its = envs.step(np.stack([BOX, BOX])), twin.step(np.stack([BOX, BOX]))
        np.testing.assert_array_equal(mine[0], its[0])
        np.testing.assert_array_equal(mine[1], its[1])
    np.testing.assert_array_equal(envs.reset()[1]["seed"], twin.reset()[1]["seed"])


@pytest.mark.parametrize("way", WAYS)
def test_single_steps_environments_and_wrappers(way: Any) -> None:
    env, params = ig.make(1)
    step = ig.SingleStep(env, params)
    twin = way(step)
    start, action = step.reset(3), step.pack_action(ig.ServeAction())
    assert twin.step(start.state, action) == step.step(start.state, action)
    view = ig.wrappers.FiveValueStep(ig.wrappers.FlatAction(ig.wrappers.FlatObservation(env)))
    for one in (env, params, view, ig.wrappers.DiscreteAction(env)):
        assert plain(way(one)) == plain(one) if one is params else way(one) == one
    for space in (env.action_space(), env.observation_space(), view.action_space(), view.observation_space()):
        assert way(space) == space


@pytest.mark.parametrize("way", WAYS[1:])
def test_objects(way: Any) -> None:
    env = ig.InferenceEnv(1, seed=5)
    env.step(ig.ServeAction())
    assert way(env).step(ig.ServeAction())[1] == env.step(ig.ServeAction())[1]
    traffic = ig.WorkloadGenerator(1, seed=5)
    twin = way(traffic)
    assert plain(twin.step()) == plain(traffic.step())
    simulator = ig.TraceSimulator(seed=5)
    assert plain(way(simulator).simulate(ig.ServeAction(), traffic.step())) is not None


@pytest.mark.parametrize("way", WAYS)
def test_one_on_a_server_is_copied_before_its_episode_only(way: Any) -> None:
    env = HTTPGymEnv("http://test", 3)
    assert way(env).task_id == 3
    env._session = "one"
    with pytest.raises(TypeError, match="its episode is the server's"):
        way(env)
