"""What a `pip install` gives: one package with its data, four dependencies, and the exact versions that are locked."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import inferencegym_jax
from tests.tools.only_extras import closure

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "inferencegym_jax"
CORE = {"jax", "numpy", "pyarrow", "chex"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def shipped_data() -> set[str]:
    """Files of data/ that belong in the wheel, relative to data/."""
    patterns = ("*.json", "*.parquet", "engines/*", "model_configs/*", "policies/*")
    files = [file for pattern in patterns for file in (ROOT / "data").glob(pattern) if file.is_file()]
    return {file.relative_to(ROOT / "data").as_posix() for file in files}


UNLOCKED = {"gymnax", "gymnasium"}


def locked() -> dict[str, list[Requirement]]:
    """The lines of constraints.txt by package; a package has several where platforms differ."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def declared(extra: str | None = None) -> list[Requirement]:
    """What pyproject.toml asks for: the core, or one extra."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree by its own backend without fetching anything."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_the_wheel_holds_one_package(names: set[str]):
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {PACKAGE}
    assert f"{PACKAGE}/__init__.py" in names
    assert f"{PACKAGE}/py.typed" in names


def test_the_wheel_holds_every_module(names: set[str]):
    modules = {f.relative_to(ROOT).as_posix() for f in (ROOT / PACKAGE).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_wheel_holds_the_data_and_not_its_scripts(names: set[str]):
    prefix = f"{PACKAGE}/data/"
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == shipped_data()
    assert "traces_llama3_8b.parquet" in shipped_data()


def test_the_wheel_is_small(wheel: Path):
    assert wheel.stat().st_size < 4_000_000


def test_metadata_of_the_wheel(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        fields = Parser().parsestr(archive.read(path).decode())
    assert fields["Version"] == inferencegym_jax.__version__
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["License-Expression"] == "Apache-2.0"
    core = [r for r in map(Requirement, fields.get_all("Requires-Dist", [])) if r.marker is None]
    assert {canonicalize_name(r.name) for r in core} == CORE


def test_the_wheel_works_alone(wheel: Path, tmp_path: Path):
    """Unpacked elsewhere, with no package outside the core importable, it loads its table and makes the tasks."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    core = closure(declared())
    extras = {canonicalize_name(r.name) for extra in PROJECT["optional-dependencies"] for r in declared(extra)} - core
    # Distribution and module name differ for a few; those that the library could be tempted by are named.
    blocked = sorted({name.replace("-", "_") for name in extras} | {"orbax", "yaml", "server", "training", "gymnax"})
    code = f"""
        import sys

        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {blocked!r}:
                    raise ModuleNotFoundError(name + " is not part of the core install", name=name)

        sys.meta_path.insert(0, Block())
        import inferencegym_jax as ig

        assert ig.__file__.startswith({str(tmp_path)!r}), ig.__file__
        for task in (1, 2, 3):
            ig.make(task)
    """
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_version_is_written_once():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", inferencegym_jax.__version__)


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_every_requirement_is_locked_within_its_bounds(extra: str | None):
    pins = locked()
    for requirement in declared(extra):
        if requirement.name in UNLOCKED:
            continue
        found = pins.get(canonicalize_name(requirement.name), [])
        assert found, f"{requirement.name} is not in constraints.txt: run `make lock`"
        for pin in found:
            (version,) = [s.version for s in pin.specifier if s.operator == "=="]
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement} excludes the locked {pin}"


def test_the_lock_allows_gymnax_of_both_lines():
    """rejax needs gymnax before 1.0; who trains with 1.x installs it beside the same lock."""
    assert not UNLOCKED & set(locked())
    for extra in ("rejax", "bench"):
        (bound,) = [r.specifier for r in declared(extra) if r.name == "gymnax"]
        assert bound.contains("0.0.9") and not bound.contains("1.0.1")


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.parametrize("line", ["gymnax<1", "gymnax>=1"])
@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("extras", ["gym,train", "gym,render,train,server,client,cli,live,openenv,torchrl,sb3,dev"])
def test_gymnax_of_each_line_resolves_beside_the_lock(line: str, python: str, extras: str, tmp_path: Path):
    """What gymnax asks of others counts too: 1.0.1 wants gymnasium before 1.4."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    (tmp_path / "wanted.in").write_text(f"inferencegym-jax[{extras}] @ {ROOT.as_uri()}\n{line}\n")
    done = subprocess.run(
        [uv, "pip", "compile", "--quiet", "--python-version", python, "-c", ROOT / "constraints.txt", "wanted.in"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chosen = Requirement(next(text for text in done.stdout.splitlines() if text.startswith("gymnax==")))
    (version,) = [one.version for one in chosen.specifier]
    assert Requirement(line).specifier.contains(version)


def test_the_tested_versions_are_the_locked_ones():
    """What runs here is what the lock says, so that a green run speaks for every later install."""
    pins = locked()
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        pin = next(p for p in pins[name] if p.marker is None or p.marker.evaluate())
        assert pin.specifier.contains(metadata.version(name)), f"{name} {metadata.version(name)} runs, {pin} is locked"


@pytest.mark.parametrize(
    ("extra", "unwanted"),
    [
        (None, {"flax", "optax", "matplotlib", "gymnasium", "gymnax", "torch", "fastapi", "pandas"}),
        ("server", {"flax", "optax", "orbax-checkpoint", "matplotlib", "gymnasium", "torch", "pandas", "gradio"}),
        ("demo", {"torch", "gymnasium", "fastapi", "pandas"}),
        ("train", {"torch", "fastapi", "pandas"}),
        ("dev", {"torch"}),
    ],
)
def test_extras_stay_light(extra: str | None, unwanted: set[str]):
    reached = closure(declared() + (declared(extra) if extra else []))
    assert not reached & unwanted
