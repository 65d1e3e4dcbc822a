"""Evaluation on held-out seeds: any policy, all metrics with bootstrap intervals, differences paired by seed.

Held-out seeds count up from 0; every episode that training sees has a seed of at least 2^31 and its validation seeds
start at 2^30, so the three sets are disjoint by construction.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.policies.network import load_network, network_policy
from training.problem import Problem, problem

EPISODES = 1024
RESAMPLES = 2000
RIVALS = ("baseline", "best_static", "reactive")
BUILT_IN = ("baseline", "random", "reactive", "best_static", "trained")
METRICS = tuple(f.name for f in dataclasses.fields(ig.EpisodeStatistics))


def policy_of(name: str, task: int | str | Problem) -> Policy:
    """A built-in policy by name, or that of a policy file, a run's folder or its checkpoint.

    Args:
        name: of the policy, or a path.
        task: id or name, or a problem, whose own best static action is then meant.

    Raises:
        ValueError: no such name and no such path, or a file of another task.
        FileNotFoundError: the trained policy of the task does not ship.
    """
    given, name = name, name.replace("-", "_")
    simple = {"baseline": ig.policies.baseline, "random": ig.policies.random, "reactive": ig.policies.reactive}
    if name in simple:
        return simple[name]
    where = task if isinstance(task, Problem) else problem(task)
    if name == "best_static":
        return where.best_static
    if name == "trained":
        return ig.policies.trained(where.spec.name)
    return _from_path(Path(given), where.spec.name)


@functools.cache
def _from_path(path: Path, task: str) -> Policy:
    file = path / "policy.npz" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"policy = {str(path)!r}: no such file or run; a name is one of {', '.join(BUILT_IN)}")
    network, metadata = load_network(file)
    if metadata.get("task") != task:
        raise ValueError(f"policy = {str(path)!r}: trained for task {metadata.get('task')!r}, asked for {task!r}")
    return network_policy(network)


def episodes(task: int | str | Problem, policy: Policy, seeds: Any) -> dict[str, np.ndarray]:
    """Score, return and every statistic of each episode: name -> float64[episodes]."""
    where = task if isinstance(task, Problem) else problem(task)
    found = ig.evaluate(where.env, where.params, policy, seeds)
    columns = {name: np.asarray(getattr(found, name), np.float64) for name in METRICS}
    return {"score": where.score(found), "return": columns.pop("total_reward"), **columns}


def interval(values: np.ndarray, resamples: int = RESAMPLES) -> dict[str, float]:
    """Mean and its 95 % bootstrap interval (percentile method, a fixed generator, so that the same values give the
    same interval)."""
    generator = np.random.default_rng(0)
    count = len(values)
    # as counts: one matrix product instead of resamples x episodes gathers
    weights = generator.multinomial(count, np.full(count, 1.0 / count), size=resamples)
    low, high = np.percentile(weights @ values / count, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def evaluate(
    task: int | str, policy: str, count: int = EPISODES, table: str | None = None, trace: str | None = None
) -> dict[str, Any]:
    """Everything that ``python -m training evaluate`` prints.

    Args:
        task: id or name.
        policy: see ``policy_of``.
        count: held-out episodes, seeds 0 to count - 1.
        table: a latency table of your own.
        trace: a request log of your own; episode s starts at its second 200 s.

    Returns:
        ``{"task", "policy", "episodes", "score", "return", "metrics": {name: interval}, "paired": {rival: {"score",
        "return"}}}``, intervals as ``{"mean", "low", "high"}``; a paired entry is policy minus rival on the same seeds.

    Raises:
        ValueError: unknown task or policy, or no episodes.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1 << 30:
        raise ValueError(f"episodes = {count!r}: must be a whole number from 1 to {1 << 30}")
    seeds = np.arange(count)
    where = problem(task, table, trace)
    mine = episodes(where, policy_of(policy, where), seeds)
    paired = {}
    for rival in RIVALS:
        theirs = mine if rival == policy else episodes(where, policy_of(rival, where), seeds)
        paired[rival] = {name: interval(mine[name] - theirs[name]) for name in ("score", "return")}
    intervals = {name: interval(values) for name, values in mine.items()}
    return {
        "task": where.spec.id,
        "policy": policy,
        "episodes": count,
        **({} if where.env.trace is None else {"trace": where.env.trace.name}),
        "score": intervals.pop("score"),
        "return": intervals.pop("return"),
        "metrics": intervals,
        "paired": paired,
    }


def beats(found: Mapping[str, Any], rival: str) -> bool:
    """Whether score and return are above a rival's with the interval of the paired difference clear of 0."""
    return all(found["paired"][rival][name]["low"] > 0 for name in ("score", "return"))
