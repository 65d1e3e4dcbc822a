"""Compiled programs as bytes: one process compiles, another on the same machine with the same versions runs them.

What tracing and compiling a step leave behind is hundreds of megabytes, which a process hardly gives back; the program
itself is one. A process that lives long has its programs compiled by one that does not (``parallel.compile_with``,
``single_step.compile_with``).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from inferencegym_jax.episodes import kept


def compiled(lowered: Any, options: Mapping[str, Any] | None = None) -> bytes:
    """``to_bytes`` of what was lowered, compiled; or what a process kept that compiled the same before (``kept``).

    Other sources of this library often come to the same program: then only tracing it takes time.

    Args:
        lowered: ``jax.stages.Lowered``.
        options: of the compiler.

    Raises:
        RuntimeError, ValueError, TypeError, AttributeError, pickle.PicklingError: see ``to_bytes``.
    """
    structure = pickle.dumps((lowered.in_tree, lowered.out_tree, sorted((options or {}).items())))
    key = b"\0".join((kept.surroundings(), structure, lowered.as_text().encode()))
    own = None if options is None else dict(options)
    return kept.read_or_make(key, lambda: to_bytes(lowered.compile(compiler_options=own)))


def to_bytes(program: Any) -> bytes:
    """A compiled program (``jax.stages.Compiled``) as bytes.

    Raises:
        RuntimeError: JAX's cache of compiled programs is on; bytes of what comes from it lack its code.
        ValueError, NotImplementedError: JAX cannot serialize it.
        TypeError, AttributeError, pickle.PicklingError: a static part of its arguments or results cannot be pickled.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir and config.jax_enable_compilation_cache:
        raise RuntimeError(
            "a program that JAX took from its cache cannot be sent on: JAX_ENABLE_COMPILATION_CACHE=false"
        )
    return pickle.dumps(serialize(program))


def from_bytes(data: bytes) -> Any:
    """The program (``jax.stages.Compiled``) of ``to_bytes``, loaded; ``on_demand.Loaded`` loads one at a time.

    Args:
        data: from this machine and this user only: loading runs what it holds.
    """
    return deserialize_and_load(*pickle.loads(data))
