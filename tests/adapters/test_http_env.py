"""``HTTPGymEnv`` against a small server with the API of docs/server.md: same trajectory as in process, clear errors."""

from __future__ import annotations

from typing import Any

import gymnasium
import httpx
import numpy as np
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

import inferencegym_jax as ig
from inferencegym_jax.adapters.gymnasium_env import InferenceGymEnv
from inferencegym_jax.adapters.http_env import HTTPGymEnv, ServerError
from inferencegym_jax.models import KNOBS


def stub() -> FastAPI:
    """The two endpoints that the client uses, over ``InferenceEnv``."""
    app, sessions = FastAPI(), {}

    @app.post("/reset")
    def reset(body: dict[str, Any]) -> dict[str, Any]:
        env = ig.InferenceEnv(body["task_id"], body["seed"], config=body.get("config"))
        sessions[env.session_id] = env
        return {"session_id": env.session_id, "observation": env.reset().to_dict(), "episode_length": 200}

    @app.post("/step")
    def step(body: dict[str, Any]) -> dict[str, Any]:
        env = sessions.get(body["session_id"])
        if env is None:
            raise HTTPException(404, f"no session {body['session_id']}")
        observation, reward, done, info = env.step(ig.ServeAction(**body["action"]))
        return {
            "observation": observation.to_dict(),
            "reward": reward,
            "done": done,
            "info": {"timestep": int(info["timestep"])},
        }

    return app


@pytest.fixture
def client() -> Any:
    with TestClient(stub(), base_url="http://test") as found:
        yield found


def test_same_trajectory_over_http_as_in_process(client: httpx.Client) -> None:
    remote, local = HTTPGymEnv("http://test", 3, client=client), InferenceGymEnv(3)
    there, here = remote.reset(seed=4)[0], local.reset(seed=4)[0]
    for row in np.random.default_rng(0).uniform(-1, 1, (200, len(KNOBS))).astype(np.float32):
        np.testing.assert_array_equal(there, here)
        there, gain, _, done, _ = remote.step(row)
        here, expected, _, truncated, _ = local.step(row)
        assert gain == expected
        assert done == truncated


def test_config_reaches_the_server(client: httpx.Client) -> None:
    rewards = []
    for config in (None, {"beta": 0.0}):
        env = HTTPGymEnv("http://test", 1, config=config, client=client)
        env.reset(seed=0)
        rewards.append(env.step({"batch_size": 16})[1])
    assert rewards[0] < rewards[1]


def test_what_the_server_says_is_in_the_error(client: httpx.Client) -> None:
    env = HTTPGymEnv("http://test", 1, client=client)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(len(KNOBS), np.float32))
    env.reset(seed=0)
    env._session = "gone"
    with pytest.raises(ServerError, match="404.*no session gone"):
        env.step(np.zeros(len(KNOBS), np.float32))


def test_a_server_that_is_not_there_is_named() -> None:
    env = HTTPGymEnv("http://127.0.0.1:9", 1)
    with pytest.raises(ServerError, match="http://127.0.0.1:9/reset: no answer"):
        env.reset(seed=0)
