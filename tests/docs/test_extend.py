"""docs/extend.md: every block of Python runs, and its commands do, in the order of the page and in an empty folder."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.cli.app import app as command_line
from inferencegym_jax.policies.network import HEAD_SIZES
from inferencegym_jax.tasks import shipped_specs
from server.app import create_app
from server.settings import Settings
from training.cli import app as training

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'^```python(?: title="(.*?)")?\n(.*?)^```', PAGE, re.M | re.S)
SHELL = [line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
SMALL = "environments=8 rollout_length=8 minibatches=2 epochs=1 evaluate_every=1 evaluation_episodes=4 total_steps=64"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder with the page's files in it; tasks registered there are forgotten."""
    monkeypatch.chdir(tmp_path)
    for title, code in BLOCKS:
        if title:
            (tmp_path / title).write_text(code)
    yield tmp_path
    for name in [name for name in ig.task_specs() if name not in shipped_specs()]:
        ig.unregister(name)


def test_the_page_has_an_example_of_each() -> None:
    code = "".join(code for _, code in BLOCKS)
    for call in ("ig.register(", "reward=", "RequestLog.from_arrays(", "LatencyTable.from_columns(", "save_network("):
        assert call in code


@pytest.mark.ci
@pytest.mark.parametrize("i", [i for i, (title, _) in enumerate(BLOCKS) if not title])
def test_a_block_runs(i: int, folder: Path) -> None:
    path = folder / "block.py"
    path.write_text(BLOCKS[i][1])
    runpy.run_path(str(path))


@pytest.mark.slow
def test_the_commands_run(folder: Path) -> None:
    ran = set()
    for line in SHELL:
        words = shlex.split(line)
        if words[0] == "inferencegym":
            shown = CliRunner().invoke(command_line, [*words[1:], "--episodes", "8"])
        elif words[:3] == ["python", "-m", "training"]:
            extra = [x for pair in SMALL.split() for x in ("--set", pair)] if "train" in words else ["--episodes", "8"]
            shown = CliRunner().invoke(training, [*words[3:], *extra])
        else:
            assert words == ["TASKS_FROM=night_shift.py", "python", "-m", "server"]
            create_app(Settings(redis_url=None, tasks_from=("night_shift.py",)))
            ran.add("server")
            continue
        assert shown.exit_code == 0, f"{line}\n{shown.output}"
        ran.add(words[0] if words[0] == "inferencegym" else words[5])
    assert ran == {"inferencegym", "train", "evaluate", "server"}
    assert (folder / "night_shift.calibration.json").is_file()


def test_the_page_says_what_a_policys_outputs_are() -> None:
    for name, size in HEAD_SIZES.items():
        assert re.search(rf"{name} {size}\b", " ".join(PAGE.split())), (name, size)
