"""Training throughput: this PPO on this environment against rejax's PPO on CartPole (gymnax), same sizes.

    python -m benchmarks.training

Both get the same networks (two tanh MLPs 64 x 64), environments, rollout length, epochs and minibatches. Each
measurement is a process of its own; the contenders alternate, so that a busy machine slows all of them, and the
figure is the ratio of medians. CartPole's actor has 2 outputs on 4 inputs, this environment's 11 on 14; "memory" is
the task with the recurrent layer. Tasks 6 to 8 are trained in the form that their config has, a correction of the tuned
controller; what they are measured against is task 3, whose networks set the knobs here. Compilation is not counted;
evaluation is in neither.

    python -m benchmarks.training --only ours-task3 ours-task6 ours-task7 ours-task8 ours-task7-memory
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENVIRONMENTS, ROLLOUT, EPOCHS, MINIBATCHES, UPDATES = 512, 32, 4, 8, 20
CONTENDERS = ("rejax-cartpole", "ours-task1", "ours-task2", "ours-task3", "ours-task3-memory")
SCENARIOS = ("ours-task6", "ours-task7", "ours-task8", "ours-task7-memory", "ours-task8-memory")
BASE = "ours-task3"  # of the second ratio
ROOT = Path(__file__).resolve().parents[1]


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Environment steps a second: the median of ``repeats`` calls after one that compiles and warms up."""
    import jax

    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return ENVIRONMENTS * ROLLOUT * UPDATES / statistics.median(seconds)


def rejax_cartpole(repeats: int) -> float:
    """rejax's PPO with its own train loop; all of its final state is an output."""
    import jax
    from rejax import PPO

    steps = ENVIRONMENTS * ROLLOUT * UPDATES
    algorithm = PPO.create(
        env="CartPole-v1",
        num_envs=ENVIRONMENTS,
        num_steps=ROLLOUT,
        num_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
        normalize_observations=True,
    )
    algorithm = algorithm.replace(eval_callback=lambda *_: ())
    train = jax.jit(algorithm.train)
    key = jax.random.PRNGKey(0)
    return timed(lambda: train(key), repeats)


def ours(task: int, devices: int, repeats: int, memory: str = "none") -> float:
    """This repository's updates as ``training`` runs them; the whole state and all metrics are outputs."""
    import jax
    import numpy as np

    import inferencegym_jax as ig
    from inferencegym_jax.episodes import parallel
    from training import devices as meshes
    from training import forms
    from training.config import task_config
    from training.trainer import make_update

    meshes.prepare(devices)
    config = task_config(task)
    if config.corrects_queue:  # closed-loop tasks in the one form that they all have
        config = config.replace(acts="knobs")
    config = config.replace(
        environments=ENVIRONMENTS,
        rollout_length=ROLLOUT,
        epochs=EPOCHS,
        minibatches=MINIBATCHES,
        hidden=(64, 64),
        memory=memory,
    )
    mesh = meshes.make_mesh(config, devices)
    problem = ig.problem(task)
    axis = None if mesh is None else meshes.AXIS
    update = make_update(forms.view(config, problem), problem.params, config, axis)

    def many(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: update(s, config.hyper), state, None, UPDATES)

    if mesh is not None:
        specs = meshes.specs()
        many = jax.shard_map(many, mesh=mesh, in_specs=(specs,), out_specs=(specs, jax.P()), check_vma=False)
    state = meshes.compiled_functions(config, mesh)[0](np.uint32(0), config.hyper)
    train = jax.jit(many, compiler_options=parallel.compiler_options())
    return timed(lambda: train(state), repeats)


def measure(contender: str, devices: int, repeats: int) -> float:
    """One contender in a process of its own."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.training",
        "--child",
        contender,
        "--devices",
        str(devices),
        "--repeats",
        str(repeats),
    ]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{contender}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default 3)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls in each process (default 5)")
    parser.add_argument(
        "--devices",
        type=int,
        default=2,
        help="virtual CPU devices of ours besides 1 (default 2: training's own on two cores)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTENDERS + SCENARIOS,
        default=CONTENDERS,
        help="contenders (default: the first five)",
    )
    parser.add_argument("--child", choices=CONTENDERS + SCENARIOS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.child == "rejax-cartpole":
            print(json.dumps(rejax_cartpole(options.repeats)))
        else:
            words = options.child.removeprefix("ours-task").split("-")
            memory = "gru" if "memory" in words else "none"
            print(json.dumps(ours(int(words[0]), options.devices, options.repeats, memory)))
        return
    plan = [
        (name, devices)
        for name in options.only
        for devices in ([1] if name == "rejax-cartpole" else sorted({1, options.devices}))
    ]
    found: dict[tuple[str, int], list[float]] = {entry: [] for entry in plan}
    for _ in range(options.rounds):
        for entry in plan:
            found[entry].append(measure(*entry, options.repeats))
    middle = {entry: statistics.median(values) for entry, values in found.items()}
    print(
        f"{ENVIRONMENTS} environments x {ROLLOUT} steps, {EPOCHS} epochs x {MINIBATCHES} minibatches, "
        f"64 x 64 tanh; {os.cpu_count()} cores"
    )
    print("| trainer | devices | steps/s, median (range) | ratio to rejax | ratio to task 3, as many devices |")
    print("| --- | --- | --- | --- | --- |")
    for (name, devices), values in found.items():
        cells = [f"{middle[name, devices]:,.0f} ({min(values):,.0f} to {max(values):,.0f})"]
        for base in (("rejax-cartpole", 1), (BASE, devices)):
            cells.append(f"{middle[name, devices] / middle[base]:.2f}" if base in middle else "")
        print(f"| {name} | {devices} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
