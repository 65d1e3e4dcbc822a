"""How a compiled rollout runs on a CPU: widest vectors, and one part of the batch on each core.

``rollout`` and ``fold`` come here with a jitted function of (static arguments, params, seeds, carry).
Environments never look at each other, so parts of a batch give the same numbers as the whole. On accelerators, and
inside somebody else's trace, the function is simply called.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.episodes import portable
from inferencegym_jax.episodes.on_demand import Loaded, Part
from inferencegym_jax.models import is_traced

# XLA's own default is 256 bits. With 512, where the processor has them, a rollout takes 0.7 times as long.
CPU_OPTIONS: dict[str, str | bool] = {"xla_cpu_prefer_vector_width": "512"}
PROGRAMS_KEPT = 64  # compiled rollouts and folds that a process holds, unless ``keep`` says otherwise
PART_MINIMUM = 512  # environments a part: below, starting a thread costs more than it saves


def compiler_options() -> dict[str, str | bool] | None:
    """What ``jax.jit`` or ``compile`` should be given for this package's loops: CPU_OPTIONS on a CPU, else nothing."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_parts(environments: int) -> int:
    """Equal parts (one compiled shape for all) that a batch is run in: at most one a core."""
    most = min(cores(), environments // PART_MINIMUM)
    return next((parts for parts in range(most, 1, -1) if environments % parts == 0), 1)


def run(
    function: Any,
    static: tuple[Any, ...],
    params: Any,
    seeds: jax.Array,
    carry: Any,
    shared: Any = None,
    *,
    axis: int,
    split: bool,
) -> Any:
    """Call ``function(*static, params, seeds, carry, shared)``, compiled once for each combination of static values and
    shapes.

    Args:
        function: from ``jax.jit`` with the leading arguments static.
        static: hashable: environment, length, what else decides the program.
        params: one task, or with ``params.task_id`` of one dimension a batch.
        seeds: uint32[environments].
        carry: pytree with a leading axis of environments.
        shared: pytree that every environment starts with.
        axis: which axis of the results runs over environments; 0 where ``split`` is set.
        split: run parts of the batch on several cores. XLA's own threads, which share the work of each small operation,
            lose more time in handing it over than they gain.
    """
    arguments = params, seeds, carry, shared
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1 or is_traced(arguments):
        return function(*static, *arguments)
    alone = seeds.shape[0] == 1
    if alone:  # XLA drops an axis of length 1 and rounds otherwise: an episode runs beside a copy of itself
        arguments = _twice(arguments)
    parts = count_parts(seeds.shape[0]) if split else 1
    arguments = jax.tree.map(as_array, arguments)
    if parts == 1:
        result = _program(function, static, arguments)(*arguments)
        return _first(axis, result) if alone else result
    pieces = [_piece(arguments, i, parts) for i in range(parts)]
    program = _program(function, static, pieces[0])
    return join(axis, each(lambda piece: program(*piece), pieces))


def as_array(x: Any) -> jax.Array:
    """An array, or number, as JAX's: what ``jnp.asarray`` gives, which compiles a program of a megabyte and a half for
    every shape of a NumPy array, and keeps it."""
    return x if isinstance(x, jax.Array) else jax.device_put(np.asarray(x), may_alias=False)


def each(function: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
    """The function's results for all pieces, run at once, a core each."""
    return list(_threads().map(lambda piece: jax.block_until_ready(function(piece)), pieces))


@functools.partial(jax.jit, static_argnums=0)
def join(axis: int, results: list[Any]) -> Any:
    """The leaves of all results, one after the other along an axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=axis), *results)


def _twice(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    params, seeds, carry, shared = arguments

    def double(x: Any) -> np.ndarray:
        return np.repeat(np.asarray(x), 2, axis=0)

    if jnp.ndim(params.task_id):
        params = jax.tree.map(double, params)
    return params, double(seeds), jax.tree.map(double, carry), shared


@functools.partial(jax.jit, static_argnums=0)
def _first(axis: int, result: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, 1, axis=axis), result)


def _piece(arguments: tuple[Any, ...], i: int, parts: int) -> tuple[Any, ...]:
    params, seeds, carry, shared = arguments
    size = seeds.shape[0] // parts

    def cut(x: jax.Array) -> Any:
        # a view: slicing on the device dispatches a program for every leaf, which takes longer than its episodes
        return np.asarray(x)[i * size : (i + 1) * size]

    if jnp.ndim(params.task_id):
        params = jax.tree.map(cut, params)
    return params, cut(seeds), jax.tree.map(cut, carry), shared


def _signature(arguments: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)


class Loop(NamedTuple):
    """What a compiled rollout or fold is made from.

    Attributes:
        module, name: where its jitted function stands.
        static: that function's static arguments.
        arguments: the others, as ``jax.ShapeDtypeStruct``.
    """

    module: str
    name: str
    static: tuple[Any, ...]
    arguments: tuple[Any, ...]


_maker: Callable[[Loop], bytes | None] | None = None


def loop_bytes(loop: Loop) -> bytes:
    """A rollout or fold, compiled, for a process that had ``compile_with`` told where to get it.

    Raises:
        TypeError, AttributeError, pickle.PicklingError: it takes or gives what cannot be pickled.
    """
    function = getattr(importlib.import_module(loop.module), loop.name)
    return portable.compiled(function.lower(*loop.static, *loop.arguments), CPU_OPTIONS)


def compile_with(maker: Callable[[Loop], bytes | None] | None) -> None:
    """Have rollouts and folds compiled elsewhere from now on: in another process on the same machine, with the same
    versions.

    Args:
        maker: of a loop, ``loop_bytes`` as it came out there; None, or a maker that gives None: this process compiles
            itself.
    """
    global _maker
    _maker = maker


class _Kept:
    """A rollout or fold, made when it is first asked for; once, also where several ask at the same time."""

    def __init__(
        self,
        function: Any,
        static: tuple[Any, ...],
        structure: Any,
        leaves: tuple[jax.ShapeDtypeStruct, ...],
    ):
        arguments = jax.tree.unflatten(structure, leaves)
        self._function = function
        self._loop = Loop(function.__module__, function.__name__, static, arguments)
        self._lock = threading.Lock()
        self._program: Any = None

    def program(self) -> Any:
        """What to call with the arguments."""
        with self._lock:
            if self._program is None:
                self._program = self._make()
            return self._program

    def _make(self) -> Any:
        loop = self._loop
        read = functools.partial(_maker, loop) if _maker is not None else lambda: None
        made = read()
        if made is None:
            lowered = self._function.lower(*loop.static, *loop.arguments)
            return lowered.compile(compiler_options=CPU_OPTIONS)
        return Part(Loaded(read, lambda made: [made], made), 0)


_compiled = functools.lru_cache(maxsize=PROGRAMS_KEPT)(_Kept)
_asking = threading.Lock()


def _program(function: Any, static: tuple[Any, ...], arguments: Any) -> Any:
    """The compiled function for arguments of these shapes."""
    with _asking:  # two that ask for a new one at once would get one each
        kept = _compiled(function, static, *_signature(arguments))
    return kept.program()


def keep(programs: int) -> None:
    """Bound how many compiled rollouts and folds this process holds: the least recently used goes, and is compiled
    again, or loaded, when it is asked for. Lets go of all that are there.

    Args:
        programs: at least 1.

    Raises:
        ValueError: fewer.
    """
    global _compiled
    if programs < 1:
        raise ValueError(f"programs = {programs}: must be at least 1")
    _compiled = functools.lru_cache(maxsize=programs)(_Kept)


def count_compiled() -> int:
    """Rollouts and folds that were asked for and not held, since the start, or since ``keep``."""
    return _compiled.cache_info().misses


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="rollout")
