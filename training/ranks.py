"""Do the reward and the grader rank policies alike?

``static actions and the built-in policies -> mean return, mean score -> Spearman's rank correlation``.
Where the two disagree, what PPO learns from the reward alone is not what the grader wants: ``objective.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes.static_search import best_action, search_static, static_actions
from inferencegym_jax.numerics import bootstrap
from inferencegym_jax.policies import NAMES, policy_of
from training.evaluation import episodes
from training.oracle import BATCH_SIZES, KV_BUDGETS
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
    task: int | str, actions: int = 512, count: int = 16, advance: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Everything that ``python -m training ranks`` prints.

    Args:
        task: id or name.
        actions: static actions, drawn (seed 0) from a grid over the task's active knobs; the whole grid where it is
            no larger.
        count: episodes of each policy, seeds 0 to count - 1.
        advance: told what runs.

    Returns:
        ``{"task", "episodes", "policies", "static_actions", "grid", "all", "static", "top", "rows": [{"policy",
        "score", "return", "score_rank", "return_rank", and those of ``tables.OUTCOME``}]}``: "all", "static" and "top"
        hold ``correlation`` over all policies, without the built-in ones, and over the quarter with the best scores;
        ranks count from 1, the best, among all. The rows are the built-in policies and, of the static actions that are
        never out of memory, the one with the best score and the one with the best return.

    Raises:
        ValueError: unknown task, fewer than 3 actions, no episodes.
    """
    for name, value, least in (("actions", actions, 3), ("episodes", count, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} = {value!r}: must be a whole number of at least {least}")
    problem = ig.problem(task)
    env, params = problem.env, problem.params
    seeds = np.arange(count)
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
    score, total = np.asarray(scores, np.float64), np.asarray(returns, np.float64)
    best_quarter = np.argsort(-score, kind="stable")[: max(len(score) // 4, 3)]
    shown = [(name, statics + i) for i, name in enumerate(names)]
    for what, values in (("score", score), ("return", total)):
        best = best_action(search, values[:statics])
        knobs = " ".join(f"{k}={v}" for k, v in picked[best].items() if v != env.table.knob_defaults[k])
        shown.append((f"best {what} of the static actions: {knobs or 'the baseline'}", best))
    return {
        "task": problem.spec.id,
        "episodes": count,
        "policies": len(score),
        "static_actions": statics,
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
