"""The environment's share of training time: PPO's update as it is, against the same with the environment played back.

    python -m benchmarks.environment_share

Played back: every output of the environment's step is read from memory, recorded beforehand, instead of computed;
networks, draws, losses and everything else stay. The two take turns in one process; share = 1 - played back / whole.
Sizes, networks and devices are those of ``benchmarks.training``.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import inferencegym_jax as ig
from benchmarks.measure import alternate
from benchmarks.training import ENVIRONMENTS as SIZE
from benchmarks.training import EPOCHS, MINIBATCHES, ROLLOUT
from inferencegym_jax import parallel

UPDATES = 5
TASKS = (1, 2, 3)


def contenders(task: int) -> dict[str, Callable[[int], Any]]:
    """``whole`` and ``played back``: functions that do some updates of a task, on the devices that ``training`` uses
    by default."""
    from training import devices, trainer
    from training.config import task_config

    config = task_config(task).replace(
        environments=SIZE, rollout_length=ROLLOUT, epochs=EPOCHS, minibatches=MINIBATCHES, hidden=(64, 64)
    )
    env, params = ig.make(task)
    mesh = devices.make_mesh(config)
    state = devices.compiled_functions(config, mesh)[0](np.uint32(0), config.hyper)

    def record(state: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            found = trainer.step_all(env, params, carry, state.action)
            return found[1], found

        return jax.lax.scan(step, state.env_state, None, ROLLOUT)[1]

    def played(recorded: Any) -> Callable[..., Any]:
        def step_all(env: Any, params: Any, state: Any, action: Any) -> Any:
            del env, params, action
            row = state.episode[0] % ROLLOUT  # nothing in training reads it, so it may count the rows
            found = jax.tree.map(lambda x: x[row], recorded)
            after = dataclasses.replace(found[1], episode=found[1].episode * 0 + row + 1)
            return found[0], after, *found[2:]

        return step_all

    def many(state: Any, recorded: Any) -> Any:
        update = trainer.make_update(env, params, config, None if mesh is None else devices.AXIS)
        body = lambda s, _: update(s, config.hyper)  # noqa: E731
        if recorded is None:
            return jax.lax.scan(body, state, None, UPDATES)
        with mock.patch.object(trainer, "step_all", played(recorded)):
            return jax.lax.scan(body, state, None, UPDATES)

    rows = P(None, devices.AXIS)
    recorded = jax.jit(record, out_shardings=None if mesh is None else NamedSharding(mesh, rows))(state)
    calls: dict[str, Callable[[int], Any]] = {}
    for name, given in {"whole": None, "played back": recorded}.items():
        function: Any = many
        if mesh is not None:
            specs = devices.specs()
            function = jax.shard_map(many, mesh=mesh, in_specs=(specs, rows), out_specs=(specs, P()), check_vma=False)
        program = jax.jit(function).lower(state, given).compile(compiler_options=parallel.compiler_options())
        calls[name] = lambda _, program=program, given=given: program(state, given)
    return calls


def measure(repeats: int = 15) -> dict[str, Any]:
    """Milliseconds an update, whole and played back, and the environment's share, of each task."""
    milliseconds, shares = {}, {}
    for task in TASKS:
        found = alternate(contenders(task), repeats)
        milliseconds[f"task {task}"] = {name: 1e3 * value / UPDATES for name, value in found.items()}
        shares[f"task {task}"] = 1.0 - found["played back"] / found["whole"]
    return {
        "milliseconds_an_update": milliseconds,
        "share": shares,
        "ratios": {"environment_share_of_training": max(shares.values())},
    }


def measure_apart(repeats: int = 15) -> dict[str, Any]:
    """``measure`` in a process of its own, which may split its processor into devices."""
    words = [sys.executable, "-m", "benchmarks.environment_share", str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the figures as JSON."""
    from training import devices

    devices.prepare(None)
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 15)))


if __name__ == "__main__":
    main()
