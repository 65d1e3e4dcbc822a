"""Does training work on every seed? Train several, evaluate each on the held-out episodes, say which beat their
rivals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import TaskSpec
from inferencegym_jax.models import check_whole
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies import policy_of
from inferencegym_jax.policies.network import network_policy
from training.config import TrainConfig
from training.evaluation import EPISODES, episodes
from training.runner import run
from training.tables import OUTCOME, outcome_cells, outcome_heads, percent

RIVALS = ("best_static", "reactive")


def study(
    config: TrainConfig, seeds: int, devices: int | None = None, report: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Train seeds 0 to seeds - 1 one after another.

    Returns:
        A row a seed: ``score``, ``return`` and those of ``tables.OUTCOME`` (held-out means), ``share`` of the best
        static action's score, ``seconds`` (wall clock with compilation), ``steps_to_065`` (environment steps until
        validation score 0.65, NaN if never), and for each rival the paired differences with their intervals and
        ``beats_<rival>``: both intervals clear of 0.

    Raises:
        ValueError: seeds below 1.
    """
    check_whole("seeds", seeds)
    held_out = np.arange(EPISODES)
    problem = config.problem()
    rivals = {name: episodes(problem, policy_of(name, problem), held_out) for name in RIVALS}
    rows = []
    for seed in range(seeds):
        result = run(config.replace(seed=seed), devices=devices)
        mine = episodes(problem, network_policy(result.network), held_out)
        reached = [row["env_steps"] for row in result.rows if row["score"] >= 0.65]
        row: dict[str, Any] = {
            "seed": seed,
            "score": float(mine["score"].mean()),
            "return": float(mine["return"].mean()),
            **{name: float(mine[name].mean()) for name in OUTCOME},
            "share": float(mine["score"].mean() / rivals["best_static"]["score"].mean()),
            "seconds": result.seconds,
            "steps_to_065": float(reached[0]) if reached else float("nan"),
        }
        for name, theirs in rivals.items():
            row[name] = {metric: mean_interval(mine[metric] - theirs[metric]) for metric in ("score", "return")}
            row[f"beats_{name}"] = all(value["low"] > 0 for value in row[name].values())
        rows.append(row)
        report(line(problem.spec, row))
    return rows


def line(spec: TaskSpec, row: dict[str, Any]) -> str:
    """One seed in words."""
    outcome = ", ".join(f"{a} {b}" for a, b in zip(outcome_heads(spec), outcome_cells(spec, row), strict=True))
    parts = [
        f"seed {row['seed']}: score {row['score']:.4f} ({row['share']:.3f} of best static), return {row['return']:.2f},"
        f" {outcome}"
    ]
    for name in RIVALS:
        score, gain = row[name]["score"], row[name]["return"]
        verdict = "beats" if row[f"beats_{name}"] else "does not beat"
        parts.append(
            f"{verdict} {name.replace('_', ' ')} (score {score['mean']:+.4f} "
            f"[{score['low']:+.4f}, {score['high']:+.4f}], "
            f"return {gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}])"
        )
    return "; ".join([*parts, f"{row['seconds']:.1f} s; 0.65 after {row['steps_to_065']:,.0f} steps"])


def summary(config: TrainConfig, rows: list[dict[str, Any]]) -> str:
    """All seeds in one line."""
    both = sum(row["beats_best_static"] and row["beats_reactive"] for row in rows)
    return (
        f"task {ig.get_task(config.task).id}: {both} of {len(rows)} seeds beat best static and reactive "
        f"in score and return; lowest score "
        f"{min(row['score'] for row in rows):.4f}, {min(row['share'] for row in rows):.3f} of best static; out of "
        f"memory in at most {percent(max(row['oom_share'] for row in rows))} of seconds; at most "
        f"{max(row['seconds'] for row in rows):.1f} s a seed"
    )
