"""Where the compiled step is cut into parts: one function, used by the modules that compute the step.

XLA's CPU backend fuses a cheap producer into each of its consumers and computes it again in each: the table's cell was
found 30 times a step, every hash five times. A part that is called instead of inlined computes its outputs once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")
T = TypeVar("T")


def compile_unit(function: Callable[P, T]) -> Callable[P, T]:
    """``function`` of arrays, compiled as a call of its own, so that what it returns is computed once.

    For the CPU backend only; elsewhere it is ``function`` itself. The step takes a third of the time
    (``docs/performance.md``).
    """
    called = jax.jit(function)

    @functools.wraps(function)
    def unit(*args: P.args, **kwargs: P.kwargs) -> T:
        if jax.default_backend() != "cpu":
            return function(*args, **kwargs)
        mark = functools.partial(set_xla_metadata, inlineable="false")
        return jax.tree.map(mark, called(*args, **kwargs))

    return unit


def in_one_piece(function: Callable[P, T]) -> Callable[P, T]:
    """``function`` of arrays, compiled by the CPU backend as one piece of machine code.

    Otherwise each of its operations is a task, and half of those that are ready are handed to another thread: for one
    environment's step that costs more than the step. Vectors are short in such a program, so it is for tiny batches
    only; its last bits are those of the usual program where a test says so.
    """
    called = jax.jit(function)

    @functools.wraps(function)
    def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
            return called(*args, **kwargs)

    return whole


@compile_unit
def _same(values: T) -> T:
    return values


def once(*values: jax.Array) -> tuple[jax.Array, ...]:
    """The same values, computed here once instead of in each computation that reads them (see ``compile_unit``)."""
    return _same(values)
