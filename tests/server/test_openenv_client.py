"""OpenEnv's client with this library's types, over a real socket; and what its documented install brings."""

from __future__ import annotations

import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.openenv_client import ServingClient, ServingState
from tests.release.test_packaging import declared
from tests.server.conftest import Running
from tests.tools import only_extras

IMPORTS = """
from openenv import GenericEnvClient
from inferencegym_jax.adapters.openenv_client import ServingClient
GenericEnvClient, ServingClient(base_url="http://localhost:1")
"""


def test_an_episode_in_types(server: Running) -> None:
    local = ig.InferenceEnv(2, seed=7)
    with ServingClient(base_url=server.url).sync() as env:
        first = env.reset(seed=7, task_id=2)
        assert isinstance(first.observation, ig.ServeObservation) and first.reward is None and not first.done
        for action in (ig.ServeAction(batch_size=64), {"batch_size": 64}, {"kv_budget": 0.5}):
            result = env.step(action)
            expected = local.step(action if isinstance(action, ig.ServeAction) else ig.ServeAction(**action))
            assert result.reward == pytest.approx(expected[1], abs=1e-6)
            assert result.observation.ttft_p50 == pytest.approx(float(expected[0].ttft_p50), rel=1e-5)
        state = env.state()
        assert isinstance(state, ServingState) and (state.task_id, state.seed, state.step_count) == (2, 7, 3)
        assert state.cumulative_reward == pytest.approx(local.state()["cumulative_reward"], abs=1e-5)
        with pytest.raises(ValueError, match="batch_size = 0"):
            env.step(ig.ServeAction(batch_size=0))


@pytest.mark.ci
def test_the_extra_holds_everything_that_the_client_imports() -> None:
    """docs/server.md: `pip install '.[openenv]'` and openenv without its dependencies."""
    done = only_extras.run(IMPORTS, declared() + declared("openenv"), ("openenv", "openenv-core"))
    assert done.returncode == 0, done.stderr
    less = [one for one in declared("openenv") if one.name not in ("fastapi", "fastmcp")]
    assert "ModuleNotFoundError" in only_extras.run(IMPORTS, declared() + less, ("openenv", "openenv-core")).stderr
