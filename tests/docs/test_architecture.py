"""docs/architecture.md: the folders that it names are there, and it says where a change belongs, rightly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "inferencegym_jax"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("## What is where")[1].split("\n## ")[0].splitlines()
    if line.startswith("| `")
]

PLACES = [  # what somebody looks for, a file that it is in, and what stands there
    ("add a GPU", "data/systems.json", "bandwidth_gb_s"),
    ("add a log format", "traffic/log_files.py", "def open_log"),
    ("admitted to its KV pool", "physics/admission.py", "admi"),
    ("a grader's weight", "scoring/formula.py", "Component(0.40"),
    ("add an engine's flag", "recommend/engine_flags.py", "--max-num-seqs"),
    ("add a policy", "policies/names.py", "def policy_of"),
    ("change the page, its charts", "server/static/charts.js", "export class Chart"),
    ("fix what the proxy answers", "live/proxy/app.py", "Retry-After"),
    ("change a distribution", "numerics/poisson.py", "def poisson"),
    ("support a trainer", "adapters/sb3_env.py", "VecEnv"),
    ("add a trainer of ours", "training/trainer.py", "def "),
]


def rooms(row: list[str]) -> list[str]:
    """The folders or modules of a row's first cell, without their slash."""
    return [name.rstrip("/") for name in re.findall(r"`([^`]+)`", row[0])]


def folder_of(room: str) -> Path:
    """Where a room stands: in the library, or beside it."""
    candidates = (LIBRARY / room, LIBRARY / f"{room}.py", ROOT / room)
    return next((path for path in candidates if path.exists()), ROOT / "nowhere" / room)


def test_every_folder_is_there() -> None:
    named = [room for row in ROWS for room in rooms(row)]
    assert len(named) > 25 and [room for room in named if not folder_of(room).exists()] == []
    files = re.findall(r"`([\w/]+\.py):(\w+)`", PAGE)
    assert len(files) >= 10
    for file, function in files:
        text = (LIBRARY / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(?:def|class) {function}\b", text, re.M), (file, function)


@pytest.mark.parametrize(("wanted", "file", "there"), PLACES, ids=[wanted for wanted, _, _ in PLACES])
def test_who_wants_to_change_something_is_told_where_it_is(wanted: str, file: str, there: str) -> None:
    rows = [row for row in ROWS if wanted in row[2]]
    assert len(rows) == 1, wanted
    room, *rest = Path(file).parts
    assert room in rooms(rows[0])
    path = folder_of(room).joinpath(*rest)
    assert there in path.read_text(encoding="utf-8")
