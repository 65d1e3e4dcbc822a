"""Decisions of fleets a second, five seconds of serving each, every output reduced; beside them task 4's seconds.

python -m benchmarks.fleet [--fleets 4096] [--decisions 60] [--turns 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from benchmarks.measure import turns
from inferencegym_jax.fleet.rules import REACTIVE, rule
from inferencegym_jax.fleet.state import DECISION_S


def random_size(key: jax.Array, seen: Any, carry: Any) -> ig.FleetAction:
    """Any number of GPUs."""
    del seen, carry
    return ig.FleetAction(gpus=1 + (jax.random.key_data(key)[0] >> 29).astype(jnp.int32))


def total(total: jax.Array, step: Any, params: Any) -> jax.Array:
    """The sum of every number that a decision gives, so that the compiler drops none."""
    del params
    parts = (step.observation, step.reward, step.metrics, step.workload, step.outcome, step.truncated)
    return total + sum(jnp.sum(jnp.asarray(leaf, jnp.float32)) for leaf in jax.tree.leaves(parts))


def measure(fleets: int, decisions: int, repeats: int) -> dict[str, float]:
    """Median decisions a second of each contender, and task 4's steps a second."""
    env, params = ig.make_fleet("fleet-elastic")
    fleet: Any = params
    task, task_params = ig.make(4)
    seeds = np.arange(fleets)
    length = decisions * DECISION_S

    def play(policy: Any) -> Callable[[int], Any]:
        return lambda turn: ig.fold(
            env, fleet, policy, seeds + fleets * turn, total, jnp.float32(0.0), length=decisions
        )

    def engine(turn: int) -> Any:
        return ig.evaluate(task, task_params, ig.policies.baseline, seeds + fleets * turn, length=length)

    contenders: dict[str, Callable[[int], Any]] = {
        "random": play(random_size),
        "reactive": play(rule(REACTIVE)),
        "task 4": engine,
    }
    seconds = turns(contenders, repeats)
    found = {name: fleets * decisions / statistics.median(values) for name, values in seconds.items()}
    return {
        "decisions_per_second": round(found["random"]),
        "decisions_per_second_reactive": round(found["reactive"]),
        "task_4_steps_per_second": round(DECISION_S * found["task 4"]),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--fleets", type=int, default=4096, help="fleets of a batch (default: 4096)")
    parser.add_argument("--decisions", type=int, default=60, help="of each (default: 60)")
    parser.add_argument("--turns", type=int, default=5, help="turns that the contenders take (default: 5)")
    options = parser.parse_args()
    print(json.dumps(measure(options.fleets, options.decisions, options.turns)))


if __name__ == "__main__":
    main()
