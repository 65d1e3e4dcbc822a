"""``ig.jit``: a loop of one's own, compiled as ``fold`` compiles this library's.

    @ig.jit(batch=(0,))
    def run(seeds, params):
        ...scan of vmap(env.step)...

Three things make ``fold`` several times as fast as plain ``jax.jit`` on a CPU: a step without the dynamics that the
task does not have, the widest vectors, and a part of the batch on each core. ``ig.jit`` does the same three.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import assumed_dynamics, assumed_source, dynamics_in, source_in
from inferencegym_jax.episodes import parallel
from inferencegym_jax.models import is_traced


def jit(function: Any = None, /, *, batch: Sequence[int] = (), out: int = 0, **options: Any) -> Any:
    """``jax.jit`` for a loop over environments, a decorator with or without arguments.

    Args:
        function: what ``jax.jit`` takes. Hand ``EnvParams`` in as an argument or close over them; where those handed in
            are all of one dynamics, only that one is compiled.
        batch: places of the arguments whose leading axis runs over environments that never look at each other: they are
            run in parts, one on each core, where that pays. None (default): in one piece, as an update over the whole
            batch must be.
        out: the axis over environments of every leaf of the result, where ``batch`` is given.
        options: of ``jax.jit``; ``static_argnums`` and ``static_argnames`` only without ``batch``.

    Returns:
        The compiled function, of positional arguments and keywords. On accelerators, and inside somebody else's
        trace, it is ``jax.jit``'s.

    Raises:
        ValueError: ``batch`` beside static arguments; arguments of different lengths.
    """
    if function is None:
        return functools.partial(jit, batch=batch, out=out, **options)
    if batch and any(name.startswith("static") for name in options):
        raise ValueError("batch: cannot be combined with static arguments; close over them")
    return _Jit(function, tuple(batch), out, options)


class _Jit:
    """A function as ``ig.jit`` compiles it: once for each dynamics and each set of shapes."""

    def __init__(self, function: Callable[..., Any], batch: tuple[int, ...], out: int, options: dict[str, Any]):
        functools.update_wrapper(self, function)
        self._function = function
        self._batch, self._out, self._options = batch, out, options

    @functools.cached_property
    def _program(self) -> Any:
        options: dict[str, Any] = {"compiler_options": parallel.compiler_options(), **self._options}
        return jax.jit(self._function, **options)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run it."""
        dynamics, source = dynamics_in((args, named)), source_in((args, named))

        def run(part: Sequence[Any]) -> Any:
            with assumed_dynamics(dynamics), assumed_source(source):
                return self._program(*part, **named)

        parts = 1 if is_traced((args, named)) or jax.default_backend() != "cpu" else self._parts(args)
        if parts == 1:
            return run(args)
        return parallel.join(self._out, parallel.each(run, [self._piece(args, i, parts) for i in range(parts)]))

    def _parts(self, args: Sequence[Any]) -> int:
        sizes = {np.shape(leaf)[0] for place in self._batch for leaf in jax.tree.leaves(args[place])}
        if len(sizes) > 1:
            raise ValueError(f"batch = {self._batch}: leading axes of {sorted(sizes)}; must be one length")
        return parallel.count_parts(sizes.pop()) if sizes else 1

    def _piece(self, args: Sequence[Any], i: int, parts: int) -> tuple[Any, ...]:
        def cut(x: Any) -> Any:
            size = np.shape(x)[0] // parts
            return x[i * size : (i + 1) * size]

        whole = jax.tree.map(jnp.asarray, tuple(args))
        return tuple(jax.tree.map(cut, arg) if place in self._batch else arg for place, arg in enumerate(whole))
