"""One environment, one step at a time through ``jit``: the server's case, against gymnax's CartPole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import inferencegym_jax as ig
from benchmarks.measure import alternate
from benchmarks.rivals import STEPS, gymnax_single


def our_single() -> Callable[[int], Any]:
    """``jax.jit(env.step)`` called 200 times on its own state; every output is made."""
    env, params = ig.make(3)
    params = jax.tree.map(jnp.asarray, params)
    step = jax.jit(env.step)
    action = ig.ServeAction().as_arrays()
    _, state = env.reset_seed(0, params)

    def run(turn: int) -> Any:
        nonlocal state
        del turn
        out: Any = None
        for _ in range(STEPS):
            out = step(None, state, action, params)
            state = out[1]
        return out

    return run


def measure(repeats: int = 15) -> dict[str, Any]:
    """Microseconds a step and their ratio."""
    seconds = alternate({"CartPole-v1": gymnax_single("CartPole-v1"), "task 3": our_single()}, repeats)
    return {
        "microseconds": {name: 1e6 * value / STEPS for name, value in seconds.items()},
        "ratios": {"jit_step_over_cartpole": seconds["task 3"] / seconds["CartPole-v1"]},
    }
