"""Evaluation on held-out seeds: any policy, all metrics with bootstrap intervals, differences paired by seed.

Held-out seeds count up from 0; every episode that training sees has a seed of at least 2^31 and its validation seeds
start at 2^30, so the three sets are disjoint by construction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.adapters.relative_views import env_and_policy
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import check_whole
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies import policy_of
from inferencegym_jax.scoring.described import failure_shares

EPISODES = 1024
MOST_EPISODES = 1 << 30  # held-out seeds count up from 0 to those of the evaluations during training
RIVALS = ("baseline", "best_static", "reactive")
METRICS = tuple(f.name for f in dataclasses.fields(ig.EpisodeStatistics))


def episodes(problem: Problem, policy: Policy, seeds: Any, env: Any = None) -> dict[str, np.ndarray]:
    """Score, return and every statistic of each episode: name -> float64[episodes].

    Args:
        problem: the task.
        policy: of its environment, or of ``env``.
        seeds: of the episodes.
        env: a view on the environment.
    """
    return columns(problem, ig.evaluate(problem.env if env is None else env, problem.params, policy, seeds))


def columns(problem: Problem, statistics: ig.EpisodeStatistics) -> dict[str, np.ndarray]:
    """Score, return and every statistic of episodes that were played: name -> float64[episodes]."""
    values = {name: np.asarray(getattr(statistics, name), np.float64) for name in METRICS}
    values |= failure_shares(problem.spec, statistics)
    return {"score": problem.score(statistics), "return": values.pop("total_reward"), **values}


def evaluate(
    task: int | str,
    policy: str,
    count: int = EPISODES,
    table: str | None = None,
    trace: str | ig.RequestLog | None = None,
) -> dict[str, Any]:
    """Everything that ``python -m training evaluate`` prints.

    Args:
        task: id or name.
        policy: a name or a path; see ``inferencegym_jax.policies.policy_of``.
        count: held-out episodes, seeds 0 to count - 1.
        table: a latency table of your own.
        trace: a request log of your own; episode s starts at its second 200 s.

    Returns:
        ``{"task", "policy", "episodes", "score", "return", "metrics": {name: interval}, "paired": {rival: {"score",
        "return"}}}``, intervals as ``{"mean", "low", "high"}``; a paired entry is policy minus rival on the same seeds.

    Raises:
        ValueError: unknown task or policy, or no episodes.
    """
    check_whole("episodes", count, 1, MOST_EPISODES)
    seeds = np.arange(count)
    problem = ig.problem(task, table=table, trace=trace)
    env, own = env_and_policy(policy, problem)
    mine = episodes(problem, own, seeds, env)
    paired = {}
    for rival in RIVALS:
        theirs = mine if rival == policy else episodes(problem, policy_of(rival, problem), seeds)
        paired[rival] = {name: mean_interval(mine[name] - theirs[name]) for name in ("score", "return")}
    intervals = {name: mean_interval(values) for name, values in mine.items()}
    return {
        "task": problem.spec.id,
        "policy": policy,
        "episodes": count,
        **({} if problem.env.trace is None else {"trace": problem.env.trace.name}),
        "score": intervals.pop("score"),
        "return": intervals.pop("return"),
        "metrics": intervals,
        "paired": paired,
    }


def beats(found: Mapping[str, Any], rival: str) -> bool:
    """Whether score and return are above a rival's with the interval of the paired difference clear of 0."""
    return all(found["paired"][rival][name]["low"] > 0 for name in ("score", "return"))
