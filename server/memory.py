"""Memory that compiling has used and freed, given back to the system."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Return freed memory, where the C library can: some 100 MB after each program that was compiled."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


ARENAS = 1
M_ARENA_MAX = -8  # malloc.h


def limit_arenas() -> None:
    """Let threads share one pool of memory, where the C library can: a pool a thread keeps what it freed to itself."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_ARENA_MAX, ARENAS)
