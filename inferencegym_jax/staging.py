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


def stage(function: Callable[P, T]) -> Callable[P, T]:
    """``function`` of arrays, compiled as a call of its own, so that what it returns is computed once.

    For the CPU backend only; elsewhere it is ``function`` itself. The step takes a third of the time
    (``docs/performance.md``).
    """
    called = jax.jit(function)

    @functools.wraps(function)
    def staged(*args: P.args, **kwargs: P.kwargs) -> T:
        if jax.default_backend() != "cpu":
            return function(*args, **kwargs)
        mark = functools.partial(set_xla_metadata, inlineable="false")
        return jax.tree.map(mark, called(*args, **kwargs))

    return staged
