"""Each target of the Makefile finds what it imports among the extras that it installs, and nothing else."""

from __future__ import annotations

import ast
import json
import re
from importlib import util

import pytest

from tests.release.test_packaging import ROOT, declared
from tests.tools import only_extras

MAKEFILE = (ROOT / "Makefile").read_text()


def notebook_imports() -> str:
    """Every import statement of the notebook's cells."""
    notebook = json.loads((ROOT / "notebooks/InferenceGym_Demo.ipynb").read_text())
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            found += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(found) > 10
    return "\n".join(found)


PROGRAMS = {
    "demo": "import training.demo",
    "serve": "import server.app, server.__main__",
    "policies": "import training.policies, training.cli",
    "table": "import runpy; runpy.run_path('data/build_table.py')",
    "bench": "import benchmarks.__main__, benchmarks.rivals, benchmarks.server, benchmarks.training",
    "live": "import benchmarks.live.__main__",
    "notebook": "import notebooks.run, server.app\n" + notebook_imports(),
}


def words(kind: str, target: str) -> list[str]:
    """The extras, or the packages without dependencies, of a target's set."""
    found = re.search(rf"^{kind}_{target} := (.*)$", MAKEFILE, re.MULTILINE)
    return [] if found is None else re.split(r"[ ,]", found.group(1))


OTHERS = {"pytest", "ruff", "pyright", "mkdocs", "build", "pip", "pip_audit"}  # programs of others


def test_every_target_that_runs_a_program_of_ours_is_tried() -> None:
    recipes = re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    ours = {
        target
        for target, lines in recipes
        for module, file in re.findall(r"^\t(?:\w+=\S* )*\$\(PY\) (?:-m (\w+)|(\S+\.py))", lines, re.MULTILINE)
        if module not in OTHERS and not file.startswith("tests/")
    }
    assert ours == set(PROGRAMS)


LONG = {"bench", "notebook"}  # import nearly everything


@pytest.mark.ci
@pytest.mark.parametrize(
    "target", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in PROGRAMS]
)
def test_it_finds_what_it_imports(target: str) -> None:
    if target == "bench" and not util.find_spec("gymnax"):
        pytest.skip("gymnax, which benchmarks compare with, comes with `make install-bench` or `make install-ci`")
    if target == "notebook" and not (util.find_spec("nbclient") and util.find_spec("nbformat")):
        code = PROGRAMS[target].replace("import notebooks.run, ", "import ")  # what runs it is not installed here
    else:
        code = PROGRAMS[target]
    asked = [one for extra in words("EXTRAS", target) for one in declared(extra)]
    done = only_extras.run(code, declared() + asked, words("NODEPS", target))
    assert done.returncode == 0, done.stderr[-2000:]
