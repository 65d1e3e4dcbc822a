"""Where a step's time goes, and the floor under it.

Each part runs alone over the same 4,096 environments, 200 times in a compiled loop whose carry depends on every output.
The floor is the larger of what must move over the machine's bandwidth and what must be computed over its arithmetic
rate, both measured here on one core with XLA's own code.
"""

from __future__ import annotations

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
from inferencegym_jax.episodes import parallel
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.physics import metrics
from inferencegym_jax.traffic import calendar as workload

ENVIRONMENTS, STEPS = 4096, 200
STATE_BYTES, OBSERVATION_BYTES, ACTION_BYTES, LOOKUP_BYTES = 36, 56, 17, 8 * 6 * 4
# operations an environment-step, counted by hand: 5 hashes of 45, 9 normals of 40, 6 Poissons of 25, one prompt of 30,
# 48 table values of 2 and 8 weights of 4, cell search of 60, everything after the lookup 120
OPERATIONS = 5 * 45 + 9 * 40 + 6 * 25 + 30 + 48 * 2 + 8 * 4 + 60 + 120


def _sum(tree: Any) -> jax.Array:
    return sum((jnp.sum(jnp.asarray(leaf, jnp.float32)) for leaf in jax.tree.leaves(tree)), jnp.float32(0))


def _loop(part: Callable[[jax.Array, jax.Array], Any]) -> Callable[[int], Any]:
    """200 calls of ``part(seed, step)`` vmapped over environments, each output added to the carry."""

    def run(seeds: jax.Array) -> jax.Array:
        def body(total: jax.Array, step: jax.Array) -> Any:
            return total + jax.vmap(lambda seed: _sum(part(seed, step)))(seeds), None

        return jax.lax.scan(body, jnp.zeros(ENVIRONMENTS), jnp.arange(STEPS))[0]

    example = jax.ShapeDtypeStruct((ENVIRONMENTS,), jnp.uint32)
    compiled = jax.jit(run).lower(example).compile(compiler_options=parallel.compiler_options())
    return lambda turn: compiled(jnp.arange(ENVIRONMENTS, dtype=jnp.uint32) + turn * ENVIRONMENTS)


def parts() -> dict[str, Callable[[int], Any]]:
    """The parts of task 3's step as loops, and the whole."""
    env, params = ig.make(3)
    grid = env.grid

    def action(seed: jax.Array, step: jax.Array) -> ig.ServeAction:
        return ig.policies.random(random.policy_key(seed, step), None).as_arrays()  # type: ignore[arg-type]

    def lookup(seed: jax.Array, step: jax.Array) -> Any:
        knobs = ig.ServeAction(
            kv_budget=random.uniform(seed * jnp.uint32(747796405)),
            spec_length=(seed % 9).astype(jnp.int32),
            batch_size=(seed % 512).astype(jnp.int32) + step % 3,
            prefill_disagg=seed % 2 == 0,
            quant_tier=(seed % 3).astype(jnp.int32),
        )
        return grid.lookup(knobs, (seed % 8192).astype(jnp.float32))

    def whole(seed: jax.Array, step: jax.Array) -> Any:
        _, state = env.reset_seed(seed, params)
        state = ig.EnvState(**{**vars(state), "time": step, "queue": (seed % 512).astype(jnp.int32)})
        out = env.step(None, state, action(seed, step), params)
        return out[0], out[1], out[2], out[4]

    return {
        "nothing": _loop(lambda seed, step: (seed + step.astype(jnp.uint32)).astype(jnp.float32)),
        "policy (two hashes, five knobs)": _loop(action),
        "draws: arrivals by class": _loop(lambda s, t: workload.class_arrivals(s, t, params)),
        "draws: what leaves the window": _loop(lambda s, t: workload.class_arrivals(s, t - workload.WINDOW, params)),
        "draws: prompt length": _loop(lambda s, t: workload.draw_prompt_len(s, t, params)),
        "draws: noise": _loop(lambda s, t: metrics.latency_noise(s, t, params.noise_sigma)),
        "lookup": _loop(lookup),
        "whole step with policy and auto-reset": _loop(whole),
    }


def machine() -> dict[str, float]:
    """Bytes and float32 operations a second that XLA's own loops reach on arrays that fit in the second-level cache."""
    size, turns = 32768, 2000

    @jax.jit
    def move(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, turns, lambda i, y: y + 1.0, x)

    @jax.jit
    def compute(x: jax.Array) -> jax.Array:
        def body(_: Any, y: jax.Array) -> jax.Array:
            for _ in range(64):
                y = y * 0.999 + 0.001
            return y

        return jax.lax.fori_loop(0, turns // 10, body, x)

    x = jnp.ones(size)
    seconds = alternate({"move": lambda _: move(x), "compute": lambda _: compute(x)}, 7)
    return {
        "bytes_per_second": 8 * size * turns / seconds["move"],
        "operations_per_second": 128 * size * (turns // 10) / seconds["compute"],
    }


def measure(repeats: int = 11) -> dict[str, Any]:
    """Nanoseconds an environment-step of each part, the floor and the whole step as its multiple."""
    seconds = alternate(parts(), repeats)
    scale = 1e9 / (ENVIRONMENTS * STEPS)
    nothing = seconds.pop("nothing")
    nanoseconds = {name: (value - nothing) * scale for name, value in seconds.items()}
    rates = machine()
    moved = 2 * STATE_BYTES + 2 * OBSERVATION_BYTES + ACTION_BYTES + LOOKUP_BYTES
    floor = max(moved / rates["bytes_per_second"], OPERATIONS / rates["operations_per_second"]) * 1e9
    env, params = ig.make(3)
    step = jax.jit(jax.vmap(lambda state, action: env.step(None, state, action, params)))
    state = jax.vmap(env.reset_seed, (0, None))(jnp.arange(ENVIRONMENTS, dtype=jnp.uint32), params)[1]
    action = jax.tree.map(lambda x: jnp.broadcast_to(x, (ENVIRONMENTS,)), ig.ServeAction().as_arrays())
    cost = step.lower(state, action).compile().cost_analysis() or {}
    whole = nanoseconds["whole step with policy and auto-reset"]
    return {
        "nanoseconds": nanoseconds,
        "floor": {
            "bytes_by_hand": moved,
            "operations_by_hand": OPERATIONS,
            "bytes_by_xla": float(np.asarray(cost.get("bytes accessed", np.nan))) / ENVIRONMENTS,
            "operations_by_xla": float(np.asarray(cost.get("flops", np.nan))) / ENVIRONMENTS,
            "nanoseconds": floor,
            **rates,
        },
        "ratios": {"times_the_floor": whole / floor},
    }


def measure_on_one_core(repeats: int = 11) -> dict[str, Any]:
    """``measure`` in a process of one core, where XLA splits nothing over threads; on accelerators just ``measure``."""
    if jax.default_backend() != "cpu":
        return measure(repeats)
    words = [sys.executable, "-m", "benchmarks.parts", str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the figures of one core as JSON."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX starts its threads
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 11)))


if __name__ == "__main__":
    main()
