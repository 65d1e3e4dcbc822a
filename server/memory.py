"""How much memory compiled programs take, and giving freed memory back to the system.

A program that is compiled in this process, be it one addition for one shape, keeps a megabyte and a half; one that was
loaded keeps a multiple of its size (``on_demand.LOADED``), and takes more while it is loaded.
"""

from __future__ import annotations

import ctypes
import gc
import time

import jax

from inferencegym_jax.episodes import on_demand, parallel

ROLLOUTS_KEPT = 2  # rollouts; the least recently used goes, and is loaded again when it is asked for

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h
LARGE = 1 << 20  # bytes; allocations from here on are the system's own, and go back to it when they are freed
ARENAS = 1


def bound_programs(megabytes: int) -> None:
    """Let programs that are loaded take so much together, by estimate; what was used least recently goes first."""
    parallel.keep(ROLLOUTS_KEPT)
    on_demand.keep_within(megabytes * 1_000_000, before=make_way, after=trim)


def spare_memory() -> None:
    """Tell the C library to keep less freed memory: few arenas, large blocks apart. Before threads are started."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_ARENA_MAX, ARENAS)
        library.mallopt(M_MMAP_THRESHOLD, LARGE)


def let_go() -> None:
    """Give back what making and loading a program left, where the C library can: what JAX compiled along the way, too,
    which is compiled again when it is wanted again. What the child compiled stays. Requests are answered between its
    parts, each of which stops all threads for a while."""
    jax.clear_caches()
    time.sleep(on_demand.PAUSE_S)
    gc.collect()
    time.sleep(on_demand.PAUSE_S)
    trim()


def make_way() -> None:
    """The same without looking for what only refers to itself, which takes longest: a load comes next."""
    jax.clear_caches()
    time.sleep(on_demand.PAUSE_S)
    trim()


def trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
