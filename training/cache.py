"""JAX's persistent compilation cache, in the checkout's ``.jax_cache`` (ignored by git): a second run skips
compiling."""

from __future__ import annotations

import os
from pathlib import Path

import jax

FOLDER = Path(__file__).resolve().parent.parent / ".jax_cache"
LEAST_SECONDS = 0.2  # of compilation that are worth a file


def use_cache() -> None:
    """Keep compiled programs; where, and which are worth it, is what ``JAX_COMPILATION_CACHE_DIR`` and
    ``JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`` say, where they are set."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(FOLDER))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
