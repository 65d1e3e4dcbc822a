"""Do the reward and the grader rank policies alike?

``static actions, settings of the load-following controller and the built-in policies -> mean return, mean score ->
Spearman's rank correlation``.
Where the two disagree, what PPO learns from the reward alone is not what the grader wants: ``objective.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.episodes.static_search import best_action, search_static, static_actions
from inferencegym_jax.numerics import bootstrap
from inferencegym_jax.policies import NAMES, policy_of
from inferencegym_jax.policies.load_following import LoadPlan
from training.evaluation import episodes
from training.lanes import of_plans, statistics_of
from training.oracle import BATCH_SIZES, KV_BUDGETS
from training.rivals import draw_plans, test_seeds
from training.tables import OUTCOME


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value from 1, ties at the mean of theirs, float64[n]."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2.0)[place]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation: Pearson's of the ranks; NaN where one of the two does not vary."""
    a, b = (ranks(values) - (len(values) + 1) / 2.0 for values in (first, second))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def correlation(returns: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Spearman's correlation over policies and its 95 % bootstrap interval (policies drawn with replacement)."""
    low, high = bootstrap.interval(lambda pick: spearman(returns[pick], scores[pick]), len(returns))
    return {"spearman": spearman(returns, scores), "low": low, "high": high}


def rank_policies(
    task: int | str,
    actions: int = 512,
    count: int = 16,
    advance: Callable[[str], None] = lambda _: None,
    controllers: int = 0,
) -> dict[str, Any]:
    """Everything that ``python -m training ranks`` prints.

    Args:
        task: id or name.
        actions: static actions, drawn (seed 0) from a grid over the task's active knobs; the whole grid where it is
            no larger.
        count: episodes of each policy, seeds 0 to count - 1; of traffic by day, windows of days apart.
        advance: told what runs.
        controllers: settings of the load-following controller, drawn (seed 0) as ``rivals.draw_plans`` does; open-loop
            tasks only.

    Returns:
        ``{"task", "episodes", "policies", "static_actions", "controllers", "grid", "all", "static", "top", "rows":
        [{"policy", "score", "return", "score_rank", "return_rank", and those of ``tables.OUTCOME``}]}``: "all",
        "static" and "top" hold ``correlation`` over all policies, the static actions, and the quarter with the best
        scores; ranks count from 1, the best, among all. The rows are the built-in policies and, of the static actions
        that are never out of memory, the one with the best score and the one with the best return.

    Raises:
        ValueError: unknown task, fewer than 3 actions, no episodes, controllers on a closed-loop task.
    """
    for name, value, least in (("actions", actions, 3), ("episodes", count, 1), ("controllers", controllers, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} = {value!r}: must be a whole number of at least {least}")
    problem = ig.problem(task)
    env, params = problem.env, problem.params
    if controllers and problem.dynamics != "open_loop":
        raise ValueError(f"controllers = {controllers}: must be 0 on task {problem.spec.id}, which is closed-loop")
    seeds = test_seeds(count) if problem.spec.has_kinds else np.arange(count)
    grid = static_actions(env, params, {"batch_size": BATCH_SIZES, "kv_budget": KV_BUDGETS})
    picked = grid
    if actions < len(grid):
        index = np.random.default_rng(0).choice(len(grid), actions, replace=False)
        picked = [grid[i] for i in np.sort(index)]
    advance(f"{len(picked)} static actions")
    search = search_static(env, params, picked, seeds)
    scores = list(problem.score(search.per_seed).mean(axis=1))
    returns = list(search.means.total_reward)
    outcomes = {name: list(getattr(search.means, name)) for name in OUTCOME}
    statics = len(picked)
    names: list[str] = []
    for name in NAMES:
        advance(name.replace("_", " "))
        try:
            statistics = episodes(problem, policy_of(name, problem), seeds)
        except FileNotFoundError:
            continue
        names.append(name.replace("_", " "))
        scores.append(statistics["score"].mean())
        returns.append(statistics["return"].mean())
        for column, values in outcomes.items():
            values.append(statistics[column].mean())
    shown = [(name, statics + i) for i, name in enumerate(names)]
    if controllers:
        advance(f"{controllers} settings of the load-following controller")
        reacting = _controlled(problem, draw_plans(problem, controllers, np.random.default_rng(0)), seeds)
        scores.extend(reacting[0])
        returns.extend(reacting[1])
    score, total = np.asarray(scores, np.float64), np.asarray(returns, np.float64)
    best_quarter = np.argsort(-score, kind="stable")[: max(len(score) // 4, 3)]
    for what, values in (("score", score), ("return", total)):
        best = best_action(search, values[:statics])
        knobs = " ".join(f"{k}={v}" for k, v in picked[best].items() if v != env.table.knob_defaults[k])
        shown.append((f"best {what} of the static actions: {knobs or 'the baseline'}", best))
    return {
        "task": problem.spec.id,
        "episodes": count,
        "policies": len(score),
        "static_actions": statics,
        "controllers": controllers,
        "grid": len(grid),
        "all": correlation(total, score),
        "static": correlation(total[:statics], score[:statics]),
        "top": correlation(total[best_quarter], score[best_quarter]),
        "rows": [
            {
                "policy": name,
                "score": float(score[i]),
                "return": float(total[i]),
                "score_rank": int((score > score[i]).sum()) + 1,
                "return_rank": int((total > total[i]).sum()) + 1,
                **{column: float(values[i]) for column, values in outcomes.items()},
            }
            for name, i in shown
        ],
    }


def _controlled(problem: Problem, plans: list[LoadPlan], seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean score and mean return of each plan, float64[plans]."""
    steps = int(problem.params.episode_length)
    played = of_plans([plan for plan in plans for _ in seeds], steps)
    parts = [
        (problem.score(found), np.asarray(found.total_reward, np.float64))
        for found in statistics_of(problem, played, np.tile(seeds, len(plans)))
    ]
    scores, returns = (np.concatenate(column)[: len(played)] for column in zip(*parts, strict=True))
    return scores.reshape(len(plans), -1).mean(axis=1), returns.reshape(len(plans), -1).mean(axis=1)
