"""OpenEnv's client with this library's types, over a real socket; and what its documented install brings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

import inferencegym_jax as ig
from inferencegym_jax.adapters.openenv_client import ServingClient, ServingState
from tests.release.test_packaging import closure, declared
from tests.server.conftest import ROOT, Running

IMPORTS = """
import importlib.metadata as metadata, sys
allowed, owners = set(sys.argv[1].split(",")), metadata.packages_distributions()

class OnlyWhatTheExtraBrings:
    def find_spec(self, name, path=None, target=None):
        found = owners.get(name.partition(".")[0])
        if found and not {one.lower().replace("_", "-").replace(".", "-") for one in found} & allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyWhatTheExtraBrings())
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


def imports(*requirements: str) -> subprocess.CompletedProcess[str]:
    """The client's import where nothing is there but these requirements, openenv and the library."""
    there = closure([Requirement(one) for one in requirements] + declared()) | {"openenv", "openenv-core"}
    return subprocess.run(
        [sys.executable, "-c", IMPORTS, ",".join(there | {"inferencegym-jax"})],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


def test_the_extra_holds_everything_that_the_client_imports() -> None:
    """docs/server.md: `pip install '.[openenv]'` and openenv without its dependencies."""
    done = imports(*map(str, declared("openenv")))
    assert done.returncode == 0, done.stderr
    assert "ModuleNotFoundError" in imports("requests", "websockets", "pydantic").stderr
