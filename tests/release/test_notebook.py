"""The notebook: outputs are of its cells as they stand, its PPO is the recipe's, and it runs from the wheel alone."""

from __future__ import annotations

import ast
import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "notebooks" / "InferenceGym_Demo.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def outputs(number: int) -> list[dict[str, Any]]:
    """Of the code cell that begins with ``# number.``."""
    (cell,) = (one for one in NOTEBOOK["cells"] if "".join(one["source"]).startswith(f"# {number}. "))
    return cell["outputs"]


def test_the_stored_outputs_are_of_the_cells_as_they_stand() -> None:
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in NOTEBOOK["cells"]]
    now = hashlib.sha256(repr(cells).encode()).hexdigest()
    assert NOTEBOOK["metadata"].get("outputs_of") == now, f"run python notebooks/run.py {PATH.relative_to(ROOT)}"
    kinds = {one["output_type"] for i in range(1, 10) for one in outputs(i)}
    assert kinds <= {"stream", "display_data"}  # no errors
    assert all(one["name"] == "stdout" for i in range(1, 10) for one in outputs(i) if one["output_type"] == "stream")
    assert all(outputs(i) for i in range(1, 10))
    assert any("image/png" in one.get("data", {}) for one in outputs(8))


def test_its_figure_has_the_best_static_line_a_band_over_seeds_and_millions_of_steps() -> None:
    (figure,) = (code for code in CODE if code.startswith("# 8. "))
    for words in ("best_static", "fill_between", "style.millions", "environment steps (millions)", "label_levels"):
        assert words in figure


def test_its_ppo_is_that_of_the_recipe() -> None:
    def functions(text: str) -> dict[str, str]:
        return {node.name: ast.unparse(node) for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}

    recipe = functions((ROOT / "examples" / "purejaxrl_ppo.py").read_text(encoding="utf-8"))
    (cell,) = (code for code in CODE if code.startswith("# 7. "))
    assert functions(cell) == recipe and "make_train" in recipe


def test_no_cell_imports_what_is_not_in_the_wheel_but_the_server_by_its_file() -> None:
    for code in CODE:
        for node in ast.walk(ast.parse(code)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"training", "server", "benchmarks", "data", "tests"}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The wheel of this tree, built and served."""
    dist = tmp_path / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(dist), "."]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(dist))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("way", ["served", "uploaded"])
def test_it_runs_on_a_machine_with_jupyter_and_no_checkout(way: str, index: str, tmp_path: Path) -> None:
    home = tmp_path / "content"
    (home / "notebooks").mkdir(parents=True)
    for name in (PATH.name, "run.py"):
        shutil.copy(PATH.with_name(name), home / "notebooks")
    if way == "uploaded":
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        shutil.copy(wheel, home)
    usual = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV")}
    usual |= {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "JAX_PLATFORMS": "cpu"}
    if way == "served":
        usual |= {"PIP_FIND_LINKS": index, "PIP_TRUSTED_HOST": "127.0.0.1"}

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(word) for word in words]
        return subprocess.run(command, cwd=home, env=usual, capture_output=True, text=True, timeout=800)

    assert run(sys.executable, "-m", "venv", tmp_path / "colab").returncode == 0
    python = tmp_path / "colab" / "bin" / "python"
    brought = run(python, "-m", "pip", "install", "-q", "ipykernel", "nbclient", "nbformat")
    assert brought.returncode == 0, brought.stderr
    done = run(python, "notebooks/run.py", "out.ipynb")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    text = (home / "out.ipynb").read_text()
    assert "no server: everything runs in this process" in text and "PPO" in text
    said = run(python, "-c", "import inferencegym_jax; print(inferencegym_jax.__file__)").stdout
    assert said.startswith(str(tmp_path / "colab"))
