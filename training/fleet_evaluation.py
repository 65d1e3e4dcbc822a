"""Evaluation of a fleet's policy on held-out days: on time, GPUs, price, with intervals and differences paired by day.

``task, policy -> episodes of seeds 0, 1, 2, ... -> intervals``. On fleet-anywhere each seed is a condition of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.fleet.making import ANYWHERE, anywhere_params, fleet_spec_of
from inferencegym_jax.fleet.statistics import FleetStatistics, evaluate_fleet
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies.fleet_names import fleet_policy_of

EPISODES = 24
RIVALS = ("reactive", "tuned", "gpus=7")
METRICS = ("on_time_share", "mean_gpus", "price", "changes_an_hour", "ttft_mean_ms", "total_reward")
"""Columns of an evaluation; ``price`` is mean GPUs, and late requests at the task's price."""


def episodes(task: int | str, policy: str, seeds: Any, **changes: Any) -> FleetStatistics:
    """Statistics of each episode.

    Args:
        task: a fleet task; of fleet-anywhere each seed is a condition.
        policy: a name or a path; see ``policies.fleet_names``.
        seeds: whole numbers.
        changes: of ``make_fleet``: table, trace, fields of the task.
    """
    spec = fleet_spec_of(task)
    env, params = ig.make_fleet(task, **changes)
    if spec.name == ANYWHERE and env.trace is None:
        params = anywhere_params([int(seed) for seed in seeds], env.table)
    return evaluate_fleet(env, params, fleet_policy_of(policy, spec.name), seeds)


def evaluate(task: int | str, policy: str, count: int = EPISODES, **changes: Any) -> dict[str, Any]:
    """Everything that ``python -m training evaluate`` prints of a fleet.

    Args:
        task: a fleet task.
        policy: a name or a path; see ``policies.fleet_names``.
        count: held-out episodes, seeds 0 to count - 1.
        changes: of ``make_fleet``.

    Returns:
        ``{"task", "policy", "episodes", "metrics": {name: interval}, "paired": {rival: {"price", "mean_gpus",
        "on_time_share"}}}``, intervals as ``{"mean", "low", "high"}``; a paired entry is policy minus rival on the same
        days.

    Raises:
        ValueError: unknown task or policy, or no episodes.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1 << 30:
        raise ValueError(f"episodes = {count!r}: must be a whole number from 1 to {1 << 30}")
    seeds = np.arange(count)
    mine = episodes(task, policy, seeds, **changes)
    paired: dict[str, Any] = {}
    for rival in RIVALS:
        theirs = mine if rival == policy else episodes(task, rival, seeds, **changes)
        paired[rival] = {name: mean_interval(getattr(mine, name) - getattr(theirs, name)) for name in METRICS[:3]}
    return {
        "task": fleet_spec_of(task).name,
        "policy": policy,
        "episodes": count,
        "metrics": {name: mean_interval(getattr(mine, name)) for name in METRICS},
        "paired": paired,
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of an evaluation."""

    def row(name: str, interval: Mapping[str, float]) -> str:
        return f"| {name} | {interval['mean']:.4f} | [{interval['low']:.4f}, {interval['high']:.4f}] |"

    lines = [f"{found['policy']} on {found['task']}, {found['episodes']} held-out episodes", ""]
    lines += ["| | mean | 95 % interval |", "| --- | --- | --- |"]
    lines += [row(name, interval) for name, interval in found["metrics"].items()]
    for rival, columns in found["paired"].items():
        lines += [row(f"{name}, less {rival}'s", interval) for name, interval in columns.items()]
    return "\n".join(lines)
