"""One's own `scan(vmap(env.step))` beside `ig.fold`, in turn in one process: `python -m benchmarks.own_loop`.

Prints steps a second of each as a share of fold's: under plain `jax.jit`, under `ig.jit`, and with its `batch`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from benchmarks.measure import alternate

ACTION = ig.ServeAction(batch_size=64)


def policy(key: Any, observation: Any, carry: Any) -> ig.ServeAction:
    """One action for good."""
    return ACTION


def add(total: Any, step: ig.Trajectory, params: Any) -> Any:
    """The return."""
    return total + step.reward


def loops(task: int, length: int) -> dict[str, Callable[[Any], Any]]:
    """Name -> function of seeds that gives every environment's return."""
    env, params = ig.make(task)

    def loop(seeds: Any, params: Any) -> Any:
        _, states = jax.vmap(env.reset_seed, in_axes=(0, None))(seeds, params)

        def second(carry: Any, _: None) -> Any:
            states, total = carry
            stepped = jax.vmap(env.step, in_axes=(None, 0, None, None))(None, states, ACTION, params)
            states, reward = stepped[1], stepped[2]
            return (states, total + reward), None

        return jax.lax.scan(second, (states, jnp.zeros(seeds.shape)), None, length=length)[0][1]

    plain, compiled, split = jax.jit(loop), ig.jit(loop), ig.jit(loop, batch=(0,))
    return {
        "ig.fold": lambda seeds: ig.fold(env, params, policy, seeds, add, jnp.float32(0), length=length),
        "jax.jit": lambda seeds: plain(seeds, params),
        "ig.jit": lambda seeds: compiled(seeds, params),
        "ig.jit, batch=(0,)": lambda seeds: split(seeds, params),
    }


def measure(task: int, envs: int, length: int, repeats: int) -> dict[str, float]:
    """Steps a second of each, by the median of the turns.

    Raises:
        AssertionError: they do not give the same returns.
    """
    functions, seeds = loops(task, length), jnp.arange(envs, dtype=jnp.uint32)
    expected = np.asarray(functions["ig.fold"](seeds))
    for function in functions.values():
        np.testing.assert_allclose(function(seeds), expected, rtol=1e-3, atol=1e-3)
    calls = {
        name: lambda turn, function=function: function(seeds + jnp.uint32(turn)) for name, function in functions.items()
    }
    return {name: envs * length / seconds for name, seconds in alternate(calls, repeats).items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=int, default=2)
    parser.add_argument("--envs", type=int, default=4096)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--turns", type=int, default=9)
    asked = parser.parse_args()
    rates = measure(asked.task, asked.envs, asked.length, asked.turns)
    for name, rate in rates.items():
        print(f"{name:20s} {rate / 1e6:7.2f} million steps/s, {rate / rates['ig.fold']:.2f} of fold")
