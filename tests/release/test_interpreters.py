"""Ready for an index: metadata that passes its checks, and wheel and sdist in empty environments of every Python.

Interpreters are those of the machine, or those that uv can bring; where neither is to be had, the test says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.release.test_wheel import ROOT, run

pytestmark = [pytest.mark.release, pytest.mark.slow]
PYTHONS = ("3.11", "3.12", "3.13")
TWINE = "twine==7.0.0"
CONSUMER = """
import inferencegym_jax as ig

env, params = ig.make(1)
observation, state = env.reset_seed(0, params)
steps: int = ig.get_task(1).episode_length
wrong: str = ig.get_task(1).episode_length
"""


@pytest.fixture(scope="module")
def uv() -> str:
    found = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if not Path(found).is_file():
        pytest.skip("no uv (make install-test brings it)")
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """wheel and sdist, built from this tree."""
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ".", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def interpreter(uv: str, version: str, cwd: Path) -> str:
    """An interpreter of a version: the machine's, pyenv's or one that uv brings. Skips where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    own = [*sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")), shutil.which(f"python{version}")]
    for path in filter(None, map(str, filter(None, own))):
        if run(path, "-c", "import ssl, venv", cwd=cwd).returncode == 0:
            return path
    brought = run(uv, "python", "install", version, cwd=cwd)
    found = run(uv, "python", "find", version, cwd=cwd)
    if found.returncode:
        pytest.skip(f"no Python {version} here, and uv brings none: {brought.stderr.strip().splitlines()[-1]}")
    return found.stdout.strip()


def test_metadata_passes_the_index_checks(uv: str, built: dict[str, Path], tmp_path: Path) -> None:
    done = run(uv, "tool", "run", "--from", TWINE, "twine", "check", "--strict", *built.values(), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
@pytest.mark.parametrize("version", PYTHONS)
def test_it_installs_and_runs_in_an_empty_environment(
    uv: str, built: dict[str, Path], tmp_path: Path, version: str, kind: str
) -> None:
    home = tmp_path / "venv"
    made = run(uv, "venv", "--quiet", "--python", interpreter(uv, version, tmp_path), home, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    python = home / "bin" / "python"
    installed = run(
        uv, "pip", "install", "--quiet", "--python", python, "-c", ROOT / "constraints.txt", built[kind], cwd=tmp_path,
        UV_BUILD_CONSTRAINT=str(ROOT / "constraints.txt"),
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    said = run(python, "-c", "import sys; print(sys.version)", cwd=tmp_path).stdout
    assert said.startswith(f"{version}.")
    ten = run(python, "-c", block.group(1), cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert ten.returncode == 0 and "ms to the first token" in ten.stdout, ten.stderr
    example = shutil.copy(ROOT / "examples" / "own_task.py", tmp_path)
    parts = () if kind == "wheel" else ("task",)  # of the sdist the first of four
    ran = run(python, example, *parts, cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr


def test_it_leaves_the_newest_jax_as_it_is_and_runs_on_it(uv: str, built: dict[str, Path], tmp_path: Path) -> None:
    """Who has the newest JAX (3.11 gets none after 0.10) keeps it; what learns on it learns."""
    home = tmp_path / "venv"
    made = run(uv, "venv", "--quiet", "--python", interpreter(uv, PYTHONS[-1], tmp_path), home, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    python = home / "bin" / "python"

    def install(*words: str) -> None:
        done = run(uv, "pip", "install", "--quiet", "--python", python, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    def versions() -> str:
        code = "import jax, jaxlib, numpy; print(jax.__version__, jaxlib.__version__, numpy.__version__)"
        done = run(python, "-c", code, cwd=tmp_path, JAX_PLATFORMS="cpu")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    install("--upgrade", "jax", "numpy")
    newest = versions()
    locked = re.search(r"^jax==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert locked is not None and newest.split()[0] != locked.group(1)  # else this test says nothing
    install(f"inferencegym-jax[train] @ {built['wheel'].as_uri()}")
    assert versions() == newest
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    for name in ("own_task.py", "purejaxrl_ppo.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    for words in (("-c", block.group(1)), ("own_task.py", "task"), ("purejaxrl_ppo.py", "4")):
        done = run(python, *words, cwd=tmp_path, JAX_PLATFORMS="cpu")
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_a_typed_consumer_is_checked_against_the_wheel(uv: str, built: dict[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "venv"
    assert run(uv, "venv", "--quiet", "--python", sys.executable, home, cwd=tmp_path).returncode == 0
    python = home / "bin" / "python"
    arguments = ("--python", python, "-c", ROOT / "constraints.txt", built["wheel"])
    assert run(uv, "pip", "install", "--quiet", *arguments, cwd=tmp_path).returncode == 0
    (tmp_path / "consumer.py").write_text(CONSUMER)
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", str(python), "consumer.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    errors = [line for line in checked.stdout.splitlines() if " error: " in line]
    assert len(errors) == 1, checked.stdout  # as pyright of one year and of another words it
    assert re.search('"int" is not assignable to (declared type )?"str"', errors[0]), checked.stdout
