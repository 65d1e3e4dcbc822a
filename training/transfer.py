"""A policy where it was never trained: shipped tasks and request logs, against the best static action of each.

``policy, tasks and logs -> held-out episodes -> paired differences -> rows -> JSON, Markdown``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.models import check_whole
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies.policy_file import GENERAL, load_network, playable
from inferencegym_jax.table.latency_table import data_path
from training import rivals
from training.beside import play_beside
from training.headroom import played

TASKS = (4, 5, 6, 7)
LOG_TASK = 4  # whose objectives, knobs and reward a log is replayed under
EPISODES = 24
ALLOWED = 0.01  # of score, below the best static action
SHOWN = ("score", "on_time_share", "gpu_seconds")


@dataclass(frozen=True)
class Place:
    """Where a policy is played.

    Attributes:
        task: id or name.
        trace: a request log, or its file, replayed in place of the task's traffic.
    """

    task: int | str
    trace: Path | ig.RequestLog | None = None

    @property
    def name(self) -> str:
        """Its place in a table: the task, and the log."""
        spec = ig.get_task(self.task)
        return f"{spec.id} {spec.title}" if self.trace is None else f"{self.trace.name}, on task {spec.id}"

    def problem(self) -> Problem:
        """The task on the log.

        Raises:
            ValueError, OSError: no such task, one that is drawn for each episode, or a log that cannot be read.
        """
        problem = ig.problem(self.task, trace=self.trace)
        if problem.env.draws is not None:
            raise ValueError(f"task = {self.task!r}: is drawn for each episode; python -m training headroom --task 8")
        return problem


def row_of(place: Place, policy: Path, episodes: int) -> dict[str, Any]:
    """One place: ``{"place", "task", "log", "best_static", "static", "policy", "over_static", "holds", "seconds"}``.

    ``static`` and ``policy`` hold intervals of each of ``SHOWN`` (shares, GPU-seconds an episode), ``over_static`` the
    policy's score minus the static action's, paired by episode, with its median and worst episode.
    """
    began = time.perf_counter()
    problem, seeds = place.problem(), rivals.test_seeds(episodes)
    own = playable(*load_network(policy), problem)
    rolled = play_beside(problem, own, [problem.best_static, None], seeds)
    static, mine = (played(problem, trajectory).columns for trajectory in rolled)
    over = mine["score"] - static["score"]
    return {
        "place": place.name,
        "task": problem.spec.id,
        "log": None if place.trace is None else place.trace.name,
        "best_static": problem.best_static.to_dict(),
        "static": {name: mean_interval(static[name]) for name in SHOWN},
        "policy": {name: mean_interval(mine[name]) for name in SHOWN},
        "over_static": mean_interval(over) | {"median": float(np.median(over)), "worst": float(over.min())},
        "holds": bool(over.mean() >= -ALLOWED),
        "seconds": time.perf_counter() - began,
    }


def measure(
    places: Sequence[Place],
    policy: str | Path | None = None,
    episodes: int = EPISODES,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that ``python -m training transfer`` prints.

    Args:
        places: tasks and logs.
        policy: a policy file; default: the general policy that ships.
        episodes: held-out ones of each place.
        report: told what runs.

    Returns:
        ``{"policy", "trained_on", "version", "episodes", "allowed", "rows"}``, rows of ``row_of``.

    Raises:
        ValueError, OSError: no episodes or places, an unknown task, a policy or log that cannot be read.
    """
    check_whole("episodes", episodes)
    if not places:
        raise ValueError("places = []: must be at least one task or log")
    path = data_path(GENERAL) if policy is None else Path(policy)
    _, about = load_network(path)
    rows = []
    for place in places:
        report(place.name)
        rows.append(row_of(place, Path(path), episodes))
    return {
        "policy": Path(path).name,
        "trained_on": about.get("task"),
        "version": ig.__version__,
        "episodes": episodes,
        "allowed": ALLOWED,
        "rows": rows,
    }


def merged(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, with the rows of other places from an earlier measurement of the same policy and length.

    Raises:
        ValueError: the earlier one is of another policy, version or number of episodes.
    """
    for key in ("policy", "version", "episodes", "allowed"):
        if before[key] != found[key]:
            raise ValueError(f"{key} = {found[key]!r}: the file has {before[key]!r}; write to another one")
    fresh = {row["place"]: row for row in found["rows"]}
    kept = [fresh.pop(row["place"], row) for row in before["rows"]]
    return {**found, "rows": [*kept, *fresh.values()]}


def markdown(found: Mapping[str, Any]) -> str:
    """The table of a measurement."""
    head = ("where", "best static", "policy", "over best static", "median", "worst", "on time", "GPU-seconds")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in found["rows"]:
        over, mine, static = row["over_static"], row["policy"], row["static"]
        cells = (
            row["place"],
            f"{static['score']['mean']:.3f}",
            f"{mine['score']['mean']:.3f}",
            f"{over['mean']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}]",
            f"{over['median']:+.3f}",
            f"{over['worst']:+.3f}",
            f"{static['on_time_share']['mean']:.3f} to {mine['on_time_share']['mean']:.3f}",
            f"{static['gpu_seconds']['mean']:,.0f} to {mine['gpu_seconds']['mean']:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(found: Mapping[str, Any], path: Path) -> Path:
    """The JSON of a measurement; returns its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path
