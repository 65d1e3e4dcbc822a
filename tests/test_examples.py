"""The recipes in examples/ run as they stand; those that need torch, or take long, are slow tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

from tests.server.conftest import start_server

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(*words: str) -> str:
    """What an example prints, run as a user runs it."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", text)]


def needs(*names: str) -> pytest.MarkDecorator:
    absent = [name for name in names if util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")


def test_each_is_short_and_named_in_the_pages() -> None:
    front, page = (ROOT / "README.md").read_text(), (ROOT / "docs/quickstart/researcher.md").read_text()
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 80, path.name
        assert f"](examples/{path.name})" in front, path.name
        assert f"`examples/{path.name}`" in page, path.name


@pytest.mark.slow
@needs("flax", "optax")
def test_purejaxrl_ppo_learns() -> None:
    first, last = numbers(run("examples/purejaxrl_ppo.py", "30"))
    assert last > first


@pytest.mark.slow
def test_evolution_learns() -> None:
    first, last = numbers(run("examples/evolution.py", "--generations", "8"))
    assert last > first


@pytest.mark.ci
def test_a_task_and_a_reward_of_ones_own() -> None:
    said = run("examples/own_task.py", "task", "reward").splitlines()
    assert [line.split(":")[0] for line in said] == ["own task", "own reward"]
    assert all(0 <= numbers(line)[1] <= 1 for line in said)


@pytest.mark.slow
def test_a_table_and_traffic_of_ones_own() -> None:
    said = run("examples/own_task.py", "table", "traffic").splitlines()
    assert len(said) == 2 and all(0 <= numbers(line)[1] <= 1 for line in said)


@pytest.mark.slow
@needs("rejax")
@pytest.mark.parametrize("agent", ["PPO", "SAC", "DQN"])
def test_rejax_agents(agent: str) -> None:
    before, after = numbers(run("examples/rejax_agents.py", "--agents", agent, "--steps", "8192"))
    assert before != after


@pytest.mark.slow
@needs("stoa", "gymnax")
def test_stoa_wrappers() -> None:
    assert metadata.version("stoa-env")
    said = run("examples/stoa_wrappers.py", "--envs", "4", "--steps", "400")
    assert said.startswith("8 episodes")


@pytest.mark.slow
@needs("torch", "gymnasium")
def test_cleanrl_ppo() -> None:
    first, last = numbers(run("examples/cleanrl_ppo.py", "--updates", "30"))
    assert last > first


@pytest.mark.slow
@needs("stable_baselines3")
@pytest.mark.parametrize("kind", ["single", "vector"])
def test_sb3_ppo(kind: str) -> None:
    said = run("examples/sb3_ppo.py", kind, "--steps", "2048")
    assert said.startswith(f"{kind}: ") and numbers(said)[0] > 0


@pytest.mark.slow
@needs("torchrl")
def test_torchrl_ppo() -> None:
    assert len(numbers(run("examples/torchrl_ppo.py", "--updates", "2"))) == 2


@pytest.mark.slow
@needs("torch", "openenv")
def test_grpo_over_openenv(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        first, last = numbers(run("examples/grpo_openenv.py", "--updates", "12", "--url", server.url))
    assert last > first
