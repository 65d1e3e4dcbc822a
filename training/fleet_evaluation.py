"""Evaluation of a fleet's policy on held-out days: on time, GPUs, price, with intervals and differences paired by day.

``task, policy -> episodes of seeds 0, 1, 2, ... -> intervals``. On fleet-anywhere each seed is a condition of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.fleet.contest import contest
from inferencegym_jax.fleet.grading import fleet_scores
from inferencegym_jax.fleet.making import ANYWHERE, anywhere_params, fleet_spec_of
from inferencegym_jax.fleet.rules import DEFAULTS
from inferencegym_jax.fleet.statistics import FleetStatistics, evaluate_fleet
from inferencegym_jax.models import check_whole
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies.fleet_names import fleet_policy_of
from training.evaluation import MOST_EPISODES

EPISODES = 24
RIVALS = ("reactive", "tuned", "gpus=7")
OURS = ("reactive", "trained")
POINTS, GPU_SHARE = 10.0, 0.2
"""What ours should be better by than a rule at its defaults: points of on-time share, or share of its GPU time."""
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
    return scored(task, policy, seeds, **changes)[0]


def scored(task: int | str, policy: str, seeds: Any, **changes: Any) -> tuple[FleetStatistics, np.ndarray]:
    """(statistics, the grader's score float64) of each episode; arguments as of ``episodes``."""
    env, params = _fleet(task, seeds, changes)
    statistics = evaluate_fleet(env, params, fleet_policy_of(policy, fleet_spec_of(task).name), seeds)
    bad = statistics.judged - statistics.on_time
    return statistics, fleet_scores(statistics.gpu_seconds, bad, params.episode_length, params)["score"]


def _fleet(task: int | str, seeds: Any, changes: Mapping[str, Any]) -> tuple[ig.FleetEnvironment, ig.FleetParams]:
    """The fleet, and the params of its episodes: of fleet-anywhere one a seed."""
    env, params = ig.make_fleet(task, **changes)
    if fleet_spec_of(task).name == ANYWHERE and env.trace is None:
        params = anywhere_params([int(seed) for seed in seeds], env.table)
    return env, params


def against_defaults(
    task: int | str, policies: Sequence[str] = OURS, count: int = EPISODES, **changes: Any
) -> dict[str, Any]:
    """Policies beside the rules at their published defaults, paired by episode.

    Args:
        task: a fleet task; of fleet-anywhere each seed is a condition.
        policies: names or paths; see ``policies.fleet_names``.
        count: held-out episodes, seeds 0 to count - 1.
        changes: of ``make_fleet``.

    Returns:
        ``{"task", "episodes", "policies": {policy: {"on_time_share", "mean_gpus"}}, "rows": [{"rule", "on_time_share",
        "mean_gpus", "over": {policy: {"points", "gpus", "holds"}}}]}``: points of on-time share more, and the relative
        difference of GPU time, as intervals; ``holds`` where the first is at least ``POINTS`` or, with no fewer
        requests on time, the second at most minus ``GPU_SHARE``.

    Raises:
        ValueError: unknown task or policy, or no episodes.
    """
    check_whole("episodes", count, 1, MOST_EPISODES)
    seeds = np.arange(count)
    env, params = _fleet(task, seeds, changes)
    theirs = contest(env, params, list(DEFAULTS.values()), seeds)
    mine = {policy: episodes(task, policy, seeds, **changes) for policy in policies}
    rows = []
    for i, name in enumerate(DEFAULTS):
        over: dict[str, Any] = {}
        for policy, statistics in mine.items():
            points = mean_interval(100.0 * (statistics.on_time_share - theirs.on_time_share[i]))
            # of all episodes together: the mean of ratios would weigh idle conditions as much as busy ones
            gpus = mean_interval((statistics.mean_gpus - theirs.mean_gpus[i]) / theirs.mean_gpus[i].mean())
            holds = points["mean"] >= POINTS or (points["mean"] >= 0.0 and gpus["mean"] <= -GPU_SHARE)
            over[policy] = {"points": points, "gpus": gpus, "holds": holds}
        rows.append({"rule": name, **_means(theirs, i), "over": over})
    ours = {policy: _means(statistics, ...) for policy, statistics in mine.items()}
    return {"task": fleet_spec_of(task).name, "episodes": count, "policies": ours, "rows": rows}


def _means(statistics: FleetStatistics, i: Any) -> dict[str, float]:
    return {name: float(np.mean(getattr(statistics, name)[i])) for name in ("on_time_share", "mean_gpus")}


def defaults_markdown(comparison: Mapping[str, Any]) -> str:
    """The table of ``against_defaults``."""
    policies = comparison["policies"]
    lines = [f"{comparison['task']}, {comparison['episodes']} held-out episodes, over rules at their defaults", ""]
    lines.append(
        "| rule | on time | mean GPUs | " + " | ".join(f"{name}: on time, GPU time" for name in policies) + " |"
    )
    lines.append("|" + " --- |" * (3 + len(policies)))
    for row in comparison["rows"]:
        cells = []
        for over in row["over"].values():
            points, gpus = over["points"], over["gpus"]
            cells.append(
                f"{points['mean']:+.1f} points [{points['low']:+.1f}, {points['high']:+.1f}], {gpus['mean']:+.1%} "
                f"[{gpus['low']:+.1%}, {gpus['high']:+.1%}]{'' if over['holds'] else ', **neither**'}"
            )
        lines.append(f"| {row['rule']} | {row['on_time_share']:.2%} | {row['mean_gpus']:.2f} | {' | '.join(cells)} |")
    for name, own in policies.items():
        lines.append(f"| {name} | {own['on_time_share']:.2%} | {own['mean_gpus']:.2f} |" + " |" * len(policies))
    return "\n".join(lines)


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
    check_whole("episodes", count, 1, MOST_EPISODES)
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
