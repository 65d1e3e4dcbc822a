"""Public request logs that are not part of the project, for tests that skip where they are absent.

Sources and licences stand in docs/fidelity.md, "Traffic of tasks 4 and 5". The folder is the one that the environment
variable INFERENCEGYM_TRACES names, else a folder ``traces`` beside the checkout, at most one level deeper.
"""

from __future__ import annotations

import os
from pathlib import Path

BESIDE = Path(__file__).resolve().parents[2].parent


def public_log(name: str) -> Path | None:
    """The file of that name, or None where it is not there."""
    named = os.environ.get("INFERENCEGYM_TRACES")
    folders = [Path(named)] if named else [BESIDE / "traces", *sorted(BESIDE.glob("*/traces"))]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def require_log(name: str) -> Path:
    """The file of that name; the test that asks is skipped where it is not there."""
    import pytest

    path = public_log(name)
    if path is None:
        pytest.skip(f"the public log {name} is not here; INFERENCEGYM_TRACES names its folder")
    return path
