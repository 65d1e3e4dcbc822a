"""The environment's share of training time: PPO's update as it is, against the same with the environment played back.

    python -m benchmarks.environment_share

Measured from both sides, in turns in one process, on the sizes of ``benchmarks.training`` and on the devices that
``training`` takes by default. *Played back*: every output of the environment's step is read from memory, recorded
beforehand, while networks, draws, losses and everything else stay; 1 - played back / whole leaves out what reading
costs. *Alone*: the environment's steps of an update by themselves, every output written to memory; alone / whole counts
what fuses with the rest twice. The share is the larger of the two.
"""

from __future__ import annotations

import dataclasses
import functools
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
from inferencegym_jax.episodes import parallel

UPDATES = 5
TASKS = (1, 2, 3)


def contenders(task: int) -> dict[str, Callable[[int], Any]]:
    """``whole``, ``played_back`` and ``alone``: functions that do some updates' work of a task."""
    from training import devices, trainer
    from training.config import task_config

    sizes = {"environments": SIZE, "rollout_length": ROLLOUT, "epochs": EPOCHS, "minibatches": MINIBATCHES}
    config = task_config(task).replace(**sizes, hidden=(64, 64), acts="knobs")
    env, params = ig.make(task)
    mesh = devices.make_mesh(config)
    state = devices.compiled_functions(config, mesh)[0](np.uint32(0), config.hyper)

    def record(env_state: Any, action: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            found = trainer.step_all(env, params, carry, action)
            return found[1], found

        return jax.lax.scan(step, env_state, None, ROLLOUT)

    def alone(state: Any, recorded: Any) -> Any:
        carry = (state.env_state, recorded)
        return jax.lax.scan(lambda c, _: (record(c[0], state.action), None), carry, None, UPDATES)[0]

    def played(recorded: Any) -> Callable[..., Any]:
        def step_all(env: Any, params: Any, state: Any, action: Any) -> Any:
            del env, params, action
            row = state.episode[0] % ROLLOUT  # nothing in training reads it, so it may count the rows
            found = jax.tree.map(lambda x: x[row], recorded)
            after = dataclasses.replace(found[1], episode=found[1].episode * 0 + row + 1)
            return found[0], after, *found[2:]

        return step_all

    def whole(state: Any, recorded: Any) -> Any:
        del recorded
        update = trainer.make_update(env, params, config, None if mesh is None else devices.AXIS)
        return jax.lax.scan(lambda s, _: update(s, config.hyper), state, None, UPDATES)

    def played_back(state: Any, recorded: Any) -> Any:
        with mock.patch.object(trainer, "step_all", played(recorded)):
            return whole(state, recorded)

    rows = P(None, devices.AXIS)
    given = None if mesh is None else (NamedSharding(mesh, P(devices.AXIS)), NamedSharding(mesh, rows))
    recorded = jax.jit(record, out_shardings=given)(state.env_state, state.action)[1]
    calls: dict[str, Callable[[int], Any]] = {}
    for function, out in ((whole, (devices.specs(), P())), (played_back, (devices.specs(), P())), (alone, None)):
        run: Any = function
        if mesh is not None:
            outputs = out or (P(devices.AXIS), rows)
            run = jax.shard_map(
                function, mesh=mesh, in_specs=(devices.specs(), rows), out_specs=outputs, check_vma=False
            )
        program = jax.jit(run).lower(state, recorded).compile(compiler_options=parallel.compiler_options())
        calls[function.__name__] = functools.partial(lambda program, _: program(state, recorded), program)
    return calls


def measure(repeats: int = 15) -> dict[str, Any]:
    """Milliseconds an update of each contender, and the environment's share, of each task."""
    milliseconds, shares = {}, {}
    for task in TASKS:
        found = alternate(contenders(task), repeats)
        milliseconds[f"task {task}"] = {name: 1e3 * value / UPDATES for name, value in found.items()}
        shares[f"task {task}"] = max(1.0 - found["played_back"] / found["whole"], found["alone"] / found["whole"])
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
