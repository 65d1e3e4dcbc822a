"""CPU only, and compiled code kept between runs: the second run of the suite compiles little."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiles the step in a third of the time; it then runs a quarter slower. Processes that tests start inherit it.
# jaxlib 0.11 and later have no such flag, and end where they are given it.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

# What one process compiled, others load: the workers, and every server and command that a test starts.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".jax_cache"))
# The small ones too: hundreds of a few operations each, which every process would compile anew.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Where in Python each operation was traced is for the compiler's messages; looking it up lengthens every trace.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax

# Tracing makes millions of small objects that stay: looking through all of them is done less often than is usual.
gc.set_threshold(100_000, 20, 100)

ROOT = Path(__file__).resolve().parent.parent

# A process may hold 65,530 memory maps (Linux's vm.max_map_count); each compiled program takes some, and past the limit
# the compiler dies of a segmentation fault. The suite's programs together need more.
MAPS_PER_WORKER = 40_000


@pytest.fixture(autouse=True, scope="module")
def _room_for_compiled_programs() -> Iterator[None]:
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAPS_PER_WORKER:
        jax.clear_caches()
        gc.collect()
