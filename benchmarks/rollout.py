"""Rollouts: steps a second over batch sizes, against gymnax and against the obvious implementation.

    python -m benchmarks.rollout [--quick]

What is measured is ``fold`` over 200 steps with auto-reset: each of the observation's 14 numbers, reward and end of
episode is summed, as in gymnax's loop. ``evaluate`` (twenty statistics) and ``rollout`` (every step kept) are
measured beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from benchmarks.measure import alternate
from benchmarks.rivals import STEPS, gymnax_rollout, scipy_steps_per_second

BATCH = 4096
SIZES = (1, 8, 64, 512, 4096, 16384, 65536)


def network_policy(key: jax.Array, observation: ig.ServeObservation, carry: Any) -> ig.ServeAction:
    """A policy network of 64 x 64 tanh units with fixed weights in the carry, acting on all five knobs."""
    del key
    hidden = jnp.log1p(observation.to_array())
    for weight in carry[:-1]:
        hidden = jnp.tanh(hidden @ weight)
    share = jax.nn.sigmoid(hidden @ carry[-1])
    return ig.ServeAction(
        kv_budget=0.1 + 0.9 * share[0],
        spec_length=jnp.asarray((0, 1, 2, 4, 8))[(share[1] * 4.99).astype(jnp.int32)],
        batch_size=1 + (share[2] * 511).astype(jnp.int32),
        prefill_disagg=share[3] > 0.5,
        quant_tier=(share[4] * 2.99).astype(jnp.int32),
    )


def network_weights() -> list[jax.Array]:
    """Fixed weights of ``network_policy``."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((14, 64), (64, 64), (64, 5))
    return [jax.random.normal(k, s) / np.sqrt(s[0]) for k, s in zip(keys, shapes, strict=True)]


def add_step(total: Any, step: ig.Trajectory, task: ig.EnvParams) -> Any:
    """Sums of the observation's fields, and of reward and end of episode."""
    del task
    seen, gained = total
    return jax.tree.map(jnp.add, seen, step.next_observation), gained + step.reward + step.truncated


def ours(
    task: int | str, environments: int, policy: Any = ig.policies.random, carry: Any = None, call: str = "fold"
) -> Callable[[int], Any]:
    """``fold`` (or ``evaluate``, ``rollout``) of one task, or of tasks 1, 2, 3 in turn ("mixed")."""
    env, params = ig.make(3 if task == "mixed" else task)
    if task == "mixed":
        singles = [ig.make(1 + i)[1] for i in range(3)]
        index = np.arange(environments) % 3
        params = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)[index]), *singles)
    start = (jax.tree.map(np.zeros_like, jax.device_get(env.reset_seed(0)[0])), np.float32(0.0))
    given = {"fold": (add_step, start)}.get(call, ())
    run = getattr(ig, call)
    return lambda turn: run(env, params, policy, np.arange(environments) + turn * environments, *given, carry=carry)


def against_gymnax(repeats: int) -> dict[str, float]:
    """Seconds of 4,096 x 200 steps of every contender, taking turns."""
    calls = {name: gymnax_rollout(name, BATCH) for name in ("CartPole-v1", "Pendulum-v1")}
    calls |= {f"task {task}": ours(task, BATCH) for task in (1, 2, 3)} | {"mixed": ours("mixed", BATCH)}
    calls["task 3, policy network"] = ours(3, BATCH, network_policy, network_weights())
    calls |= {f"task 3, {call}": ours(3, BATCH, call=call) for call in ("evaluate", "rollout")}
    return alternate(calls, repeats)


def over_sizes(repeats: int, sizes: tuple[int, ...] = SIZES) -> dict[str, dict[int, float]]:
    """Steps a second for each batch size and contender."""
    found: dict[str, dict[int, float]] = {}
    for size in sizes:
        calls = {f"task {task}": ours(task, size) for task in (1, 2, 3)} | {"mixed": ours("mixed", size)}
        calls["policy network"] = ours(3, size, network_policy, network_weights())
        calls["CartPole-v1"] = gymnax_rollout("CartPole-v1", size)
        for name, seconds in alternate(calls, repeats).items():
            found.setdefault(name, {})[size] = size * STEPS / seconds
    return found


def on_one_core(repeats: int) -> dict[str, float]:
    """Steps a second of task 3, of CartPole and of the scipy loop, all on one core of this process's."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX starts its threads
    calls = {"CartPole-v1": gymnax_rollout("CartPole-v1", BATCH), "task 3": ours(3, BATCH)}
    speed = {name: BATCH * STEPS / value for name, value in alternate(calls, repeats).items()}
    return speed | {"scipy loop": scipy_steps_per_second(3, 5.0)}


def measure(repeats: int = 15) -> dict[str, Any]:
    """Steps a second and the ratios that ``results.json`` names; those of one core from a process of its own."""
    seconds = against_gymnax(repeats)
    speed = {name: BATCH * STEPS / value for name, value in seconds.items()}
    words = [sys.executable, "-m", "benchmarks.rollout", "--one-core", str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    one = json.loads(done.stdout.splitlines()[-1])
    single = sum(seconds[f"task {task}"] for task in (1, 2, 3)) / 3
    return {
        "steps_per_second": speed,
        "steps_per_second_one_core": one,
        "ratios": {
            "rollout_over_cartpole": speed["task 3"] / speed["CartPole-v1"],
            "rollout_over_cartpole_one_core": one["task 3"] / one["CartPole-v1"],
            "rollout_over_pendulum": speed["task 3"] / speed["Pendulum-v1"],
            "rollout_over_scipy": one["task 3"] / one["scipy loop"],
            "mixed_over_single": seconds["mixed"] / single,
        },
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 turns instead of 15")
    parser.add_argument("--one-core", type=int, metavar="TURNS", help="only what one core does, with so many turns")
    options = parser.parse_args()
    if options.one_core:
        print(json.dumps(on_one_core(options.one_core)))
    else:
        print(json.dumps(measure(5 if options.quick else 15), indent=1))


if __name__ == "__main__":
    main()
