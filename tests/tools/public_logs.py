"""Public request logs, and inputs that once failed, none of them part of the project: tests skip where they are absent.

Sources and licences of the logs stand in docs/fidelity.md, "Traffic of tasks 4 and 5". The folders are those that the
environment variables INFERENCEGYM_TRACES and INFERENCEGYM_CASES name, else folders ``traces`` and ``cases`` beside the
checkout, at most one level deeper.
"""

from __future__ import annotations

import os
from pathlib import Path

BESIDE = Path(__file__).resolve().parents[2].parent


def public_log(name: str) -> Path | None:
    """The file of that name, or None where it is not there."""
    return _beside("traces", name)


def _beside(folder: str, name: str) -> Path | None:
    stated = os.environ.get(f"INFERENCEGYM_{folder.upper()}")
    folders = [Path(stated)] if stated else [BESIDE / folder, *sorted(BESIDE.glob(f"*/{folder}"))]
    return next((one / name for one in folders if (one / name).is_file()), None)


def require_case(name: str) -> Path:
    """The input of that name that once failed; the test that asks is skipped where it is not there."""
    import pytest

    path = _beside("cases", name)
    if path is None:
        pytest.skip(f"the input {name} is not here; INFERENCEGYM_CASES names its folder")
    return path


def require_log(name: str) -> Path:
    """The file of that name; the test that asks is skipped where it is not there."""
    import pytest

    path = public_log(name)
    if path is None:
        pytest.skip(f"the public log {name} is not here; INFERENCEGYM_TRACES names its folder")
    return path
