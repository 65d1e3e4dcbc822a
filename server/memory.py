"""Memory that compiling has used and freed, given back to the system."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Return freed memory, where the C library can: some 100 MB after each program that was compiled."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
