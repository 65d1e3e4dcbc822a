"""The Python of the pages runs as it stands, each page's blocks in turn, as a reader pastes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_commands import ROOT, python_blocks

RUN = ("README.md", "docs/index.md", "docs/fleets.md", "docs/quickstart/researcher.md")
ELSEWHERE = {
    "docs/extend.md": "tests/docs/test_extend.py",
    "docs/live.md": "needs an engine: tests/live",
    "docs/one_for_all.md": "the reader's own table and log: tests/policies",
    "docs/quickstart/agents.md": "needs an endpoint: tests/agents",
    "docs/tables.md": "the reader's own table: tests/table",
}


def test_every_page_with_python_has_its_place() -> None:
    assert {page for page, _ in python_blocks()} == {*RUN, *ELSEWHERE}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    if "gymnasium" in (code := "\n".join(text for name, text in python_blocks() if name == page)):
        pytest.importorskip("gymnasium")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()
