"""Giving back what compiling used: a compiled program is a few megabytes, what made it is a hundred."""

from __future__ import annotations

import ctypes
import gc

import jax


def let_go() -> None:
    """Drop what tracing left behind and give freed memory back to the system, where the C library can.

    The server's programs are compiled ahead of their calls and stay (``SingleStep``, ``rollout``).
    """
    jax.clear_caches()
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
