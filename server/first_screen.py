"""The episode that the page opens with: a file, so that the first visitor waits for no compiler.

``docs/first_screen.py`` makes it. It holds for the shipped table and the task's own traffic; a server with others tells
the page that there is none.
"""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import orjson

from server.programs import Programs

FILE = Path(__file__).resolve().parent / "static" / "first.json.gz"


@functools.cache
def stored() -> dict[str, Any] | None:
    """The file's content, None where it was not shipped."""
    return orjson.loads(gzip.decompress(FILE.read_bytes())) if FILE.is_file() else None


def first_screen(programs: Programs) -> dict[str, Any] | None:
    """What the page plays first and where it finds it; None where the numbers would not be this server's.

    Args:
        programs: their table and request log.
    """
    episode = stored()
    if episode is None or programs.trace is not None or programs.table.digest != episode["table_digest"]:
        return None
    policy, rival = (lane["policy"] for lane in episode["lanes"])
    address = f"static/{FILE.name}"
    return {
        "task_id": episode["task_id"],
        "seed": episode["seed"],
        "policy": policy,
        "rival": rival,
        "episode": address,
    }
