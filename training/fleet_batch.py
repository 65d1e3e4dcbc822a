"""Many runs on fleets in one program: tasks, seeds and weights are an axis of it, as an accelerator wants its batches.

``configs -> Members -> chunks of updates of all of them -> a policy file a config``. The runs share shapes and nothing
else; each is the run that ``python -m training train`` makes of its config, but for the learning rate, which may fall
by the clock where a run is given seconds instead of steps.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from inferencegym_jax.episodes import parallel
from inferencegym_jax.fleet.state import FleetParams
from inferencegym_jax.models import finite_number, shown
from inferencegym_jax.policies.network import PolicyNetwork
from inferencegym_jax.policies.policy_file import save_network
from training import fleet_forms, forms
from training.config import Hyperparameters, TrainConfig
from training.networks import to_policy
from training.runner import metadata
from training.trainer import TrainState, initial_state, make_update

OWN = ("task", "seed", "plan_of", "base_rule", "out_of_reach", "steady", "hyper")
"""Fields in which the configs of one program may differ."""
SAVED_EVERY_S = 30.0
ROW = ("reward", "kl", "clipped", "entropy", "value_loss")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Members:
    """What the runs of one program differ in, an entry a run."""

    seed: Any  # uint32[runs]
    hyper: Hyperparameters  # each float32[runs]
    params: FleetParams  # each with leading axes (runs, environments)
    plan: Any  # RulePlan of arrays [runs] that is corrected, None where the knobs are set


def members_of(configs: Sequence[TrainConfig]) -> tuple[Any, Members]:
    """(the fleet's environment, what the runs differ in).

    Raises:
        ValueError: no configs, one that is no fleet's, or two that differ in more than ``OWN``.
    """
    if not configs:
        raise ValueError("configs: none given; at least one")
    first = configs[0].to_dict()
    loose = {*OWN, *(f.name for f in dataclasses.fields(Hyperparameters))}
    problems: list[Any] = []
    for config in configs:
        if not config.is_fleet:
            raise ValueError(f"task = {config.task!r}: is no fleet; runs of one program are fleets'")
        for name, value in config.to_dict().items():
            if name not in loose and value != first[name]:
                raise ValueError(
                    f"{name} = {value!r}: other runs of the program have {first[name]!r}; must be the same"
                )
        problems.append(config.problem())
    rows = []
    for config, problem in zip(configs, problems, strict=True):
        params = jax.tree.map(np.asarray, problem.params)
        if np.ndim(params.task_id) == 0:
            params = jax.tree.map(lambda x: np.broadcast_to(x, (config.environments, *x.shape)), params)  # noqa: B023
        rows.append(params)
    plans = [forms.fleet_plan(config) for config in configs]
    return problems[0].env, Members(
        seed=np.asarray([config.seed for config in configs], np.uint32),
        hyper=jax.tree.map(lambda *x: np.asarray(x, np.float32), *(config.hyper for config in configs)),
        params=jax.tree.map(lambda *x: np.stack(x), *rows),
        plan=None if plans[0] is None else jax.tree.map(lambda *x: np.stack(x), *(p.as_arrays() for p in plans if p)),
    )


def programs(env: Any, config: TrainConfig) -> tuple[Any, Any]:
    """(jitted ``init(members)``, jitted ``chunk(states, hypers, members)``), which does ``evaluate_every`` updates."""

    def start(one: Members) -> TrainState:
        return initial_state(fleet_forms.view(env, one.plan), one.params, config, one.seed, one.hyper)  # type: ignore[arg-type]

    def several(state: TrainState, hyper: Hyperparameters, one: Members) -> Any:
        update = make_update(fleet_forms.view(env, one.plan), one.params, config)  # type: ignore[arg-type]
        return jax.lax.scan(lambda s, _: update(s, hyper), state, None, config.evaluate_every)

    options = parallel.compiler_options()
    return jax.jit(jax.vmap(start), compiler_options=options), jax.jit(
        jax.vmap(several), donate_argnums=0, compiler_options=options
    )


def shared(configs: Sequence[TrainConfig]) -> TrainConfig:
    """The config whose shapes all have; a weight that some run uses is computed for all."""
    most = {
        f.name: max(float(getattr(config.hyper, f.name)) for config in configs)
        for f in dataclasses.fields(Hyperparameters)
    }
    return configs[0].replace(**most)


def train_many(
    configs: Sequence[TrainConfig],
    folder: Path | None = None,
    names: Sequence[str] | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> list[PolicyNetwork]:
    """Train a policy for every config, all in one program.

    Args:
        configs: of fleets; alike but for task, seed, share out of reach, ``plan_of`` and the numbers of PPO.
        folder: where a policy file for each and metrics.csv go, every half minute; None keeps nothing.
        names: of the files; default task and seed.
        seconds: in all, compilation included; the learning rate falls to its last value by then, however far that is.
            Default: ``total_steps`` of each.
        report: told of every chunk.

    Raises:
        ValueError: see ``members_of``; seconds that are no number above 0.
    """
    limit = None if seconds is None else finite_number(seconds)
    if seconds is not None and (limit is None or limit <= 0):
        raise ValueError(f"seconds = {shown(seconds)}: must be a number above 0")
    config = shared(configs)
    labels = [f"{c.task_name}-seed{c.seed}" for c in configs] if names is None else list(names)
    env, members = members_of(configs)
    init, chunk = programs(env, config)
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    members = jax.device_put(members)
    first, later = init.lower(members), chunk.lower(jax.eval_shape(init, members), members.hyper, members)
    with ThreadPoolExecutor(2) as pool:
        begin, go_on = pool.map(lambda lowered: lowered.compile(), (first, later))
    report(f"compiled after {time.perf_counter() - began:.1f} s")
    state = jax.block_until_ready(begin(members))
    start = saved = time.perf_counter()
    report(f"{len(configs)} runs begin after {start - began:.1f} s")
    updates, done = 0, 0.0
    while done < 1.0:
        rate = members.hyper.learning_rate
        falling = rate + (members.hyper.final_learning_rate - rate) * done
        hyper = dataclasses.replace(members.hyper, learning_rate=falling, final_learning_rate=falling)
        state, metrics = jax.block_until_ready(go_on(state, hyper, members))
        updates += config.evaluate_every
        now = time.perf_counter()
        done = updates / config.updates if seconds is None else (now - start) / max(began + seconds - start, 1.0)
        means = {name: np.asarray(metrics[name], np.float64).mean(axis=1) for name in ROW}
        deviation = np.exp(np.asarray(state.variables["params"]["log_std"]).mean(axis=-1))
        for i, label in enumerate(labels):
            own = {name: float(value[i]) for name, value in means.items()}
            rows.append({"name": label, "update": updates, "seconds": now - start, **own, "std": float(deviation[i])})
        report(
            f"{updates} updates, {now - start:.0f} s, {updates * config.steps_per_update * len(labels):,} decisions; "
            + ", ".join(f"{row['name']} {row['reward']:.4f}" for row in rows[-len(labels) :])
        )
        if folder is not None and (done >= 1.0 or now - saved > SAVED_EVERY_S):
            save_all(folder, labels, configs, state, updates, rows)
            saved = now
    return [network_at(state, i) for i in range(len(configs))]


def network_at(state: TrainState, i: int) -> PolicyNetwork:
    """The policy of run i, NumPy arrays."""
    variables, statistics = jax.tree.map(lambda x: np.asarray(x[i]), (state.variables, state.statistics))
    return jax.tree.map(np.asarray, to_policy(variables, statistics))


def save_all(
    folder: Path,
    names: Sequence[str],
    configs: Sequence[TrainConfig],
    state: TrainState,
    updates: int,
    rows: Sequence[dict[str, Any]],
) -> None:
    """A policy file for every run, and metrics.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = dataclasses.replace(state, env_state=None, observation=None, action=None, carry=None)
    whole = jax.device_get(whole)
    for i, (name, config) in enumerate(zip(names, configs, strict=True)):
        save_network(folder / f"{name}.npz", network_at(whole, i), metadata(config, updates, []))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
