"""A process forked after JAX has started cannot run it: JAX's threads are not there, and a call waits for good."""

from __future__ import annotations

import os

from jax._src import xla_bridge  # jax has no public name for it

_dead = False


def check_not_forked() -> None:
    """Raise in a process that was forked from one where JAX had started, instead of waiting there for ever.

    Raises:
        RuntimeError: this is such a process; the message says how to start it instead.
    """
    if _dead:
        raise RuntimeError(
            "this process was forked after JAX had started, and JAX cannot run in it. Start workers by spawn or "
            "forkserver, e.g. gymnasium.make_vec(id, num_envs=8, vectorization_mode='async', "
            "vector_kwargs={'context': 'spawn'}); or leave vectorization_mode out: the vector environment then steps "
            "all of them in one call, which is faster"
        )


def _forked() -> None:
    global _dead
    _dead = xla_bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
