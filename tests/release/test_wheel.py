"""The wheel in an empty environment, outside the checkout: README's ten lines run, and the command line's hint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.release, pytest.mark.slow]


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")
    } | variables
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel and what it asks for, nothing else."""
    folder = tmp_path_factory.mktemp("release")
    built = run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ".", cwd=ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    assert run(sys.executable, "-m", "venv", folder / "venv", cwd=folder).returncode == 0
    python = folder / "venv" / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return python


def test_the_ten_lines_of_the_readme_run(empty: Path, tmp_path: Path):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None and "import inferencegym_jax as ig" in block.group(1)
    done = run(empty, "-c", block.group(1), cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert "ms to the first token" in done.stdout


def test_only_the_core_was_installed(empty: Path, tmp_path: Path):
    listed = run(empty, "-m", "pip", "list", "--format", "freeze", cwd=tmp_path).stdout.lower()
    for name in ("flax", "optax", "matplotlib", "gymnasium", "torch", "fastapi", "typer", "httpx"):
        assert not re.search(rf"^{name}==", listed, re.MULTILINE)


def test_the_command_without_its_extra_says_what_to_install(empty: Path, tmp_path: Path):
    done = run(empty.with_name("inferencegym"), "tasks", cwd=tmp_path)
    assert done.returncode == 2 and "inferencegym-jax[cli]" in done.stderr
