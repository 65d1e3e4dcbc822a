"""Do the reward and the grader rank policies alike?

``static actions and the built-in policies -> mean return, mean score -> Spearman's rank correlation``.
Where the two disagree, what PPO learns from the reward alone is not what the grader wants: ``objective.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.adapters.relative_views import env_and_policy
from inferencegym_jax.adapters.wrappers import ScoreReward, WholeScoreReward
from inferencegym_jax.episodes.static_search import best_action, search_static, static_actions
from inferencegym_jax.models import check_whole
from inferencegym_jax.numerics import bootstrap
from inferencegym_jax.policies import NAMES
from inferencegym_jax.policies.names import GENERAL
from training import lanes, rivals
from training.evaluation import episodes
from training.oracle import BATCH_SIZES, KV_BUDGETS
from training.tables import OUTCOME

REWARDS: dict[str, type[ScoreReward] | None] = {
    "environment": None,
    "score": ScoreReward,
    "whole-score": WholeScoreReward,
}
"""What is summed to a return: the environment's reward, the grader's seconds, or what each adds to the score so far."""
Z = 1.96  # standard errors from which a mean difference is told apart from none


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


def told_apart(returns: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Of the pairs of policies, those whose scores the episodes tell apart, and how many of these the return orders
    alike. Where the best policies all score alike, Spearman's correlation ranks noise, and this says so.

    Args:
        returns: float64[policies, episodes], the same episodes for all.
        scores: likewise.

    Returns:
        ``{"pairs", "apart", "alike", "spread"}``: numbers of pairs, the share of those apart that are ordered alike
        (None where none is apart), the highest mean score less the lowest.
    """
    first, second = np.triu_indices(len(scores), 1)
    difference = scores[first] - scores[second]
    error = difference.std(axis=1, ddof=1) / np.sqrt(difference.shape[1]) if difference.shape[1] > 1 else np.inf
    mean = difference.mean(axis=1)
    apart = np.abs(mean) > Z * error
    alike = np.sign(mean) == np.sign(returns[first].mean(axis=1) - returns[second].mean(axis=1))
    means = scores.mean(axis=1)
    share = float(alike[apart].mean()) if apart.any() else None
    return {"pairs": len(mean), "apart": int(apart.sum()), "alike": share, "spread": float(np.ptp(means))}


def controllers_of(problem: ig.Problem, count: int, seeds: np.ndarray) -> list[lanes.LoadPlan]:
    """Settings of the load-following controller that are ranked: half drawn as the search for the best draws them, half
    near the eight of those with the best scores."""
    rng = np.random.default_rng(0)
    drawn = rivals.draw_plans(problem, max(count // 2, 2), rng)
    scores = rivals.mean_scores(problem, drawn, seeds)
    best = [drawn[i] for i in np.argsort(-scores, kind="stable")[: rivals.KEPT]]
    return drawn + rivals.refine(best, count - len(drawn), rng)


def rank_policies(
    task: int | str,
    actions: int = 512,
    count: int = 16,
    controllers: int = 0,
    days_apart: bool = False,
    reward: str = "environment",
    advance: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that ``python -m training ranks`` prints.

    Args:
        task: id or name.
        actions: static actions, drawn (seed 0) from a grid over the task's active knobs; the whole grid where it is
            no larger.
        count: episodes of each policy, seeds 0 to count - 1.
        controllers: settings of the load-following controller, of an open-loop task; see ``controllers_of``.
        days_apart: seeds of which traffic by day has windows of days apart, in place of 0 to count - 1.
        reward: of ``REWARDS``, what a return is the sum of.
        advance: told what runs.

    Returns:
        ``{"task", "reward", "episodes", "policies", "static_actions", "controllers", "grid", "all", "static", "top",
        "apart", "rows": [{"policy", "score", "return", "score_rank", "return_rank", and those of
        ``tables.OUTCOME``}]}``:
        "all", "static" and "top" hold ``correlation`` over all policies, over the static actions alone, and over the
        quarter with the best scores, of which "apart" holds ``told_apart``; ranks count from 1, the best, among all.
        The rows are the built-in policies and, of the static actions that are never out of memory, the one with the
        best score and the one with the best return.

    Raises:
        ValueError: unknown task or reward, fewer than 3 actions, no episodes; controllers of a closed-loop task, or
            only one.
    """
    for name, value, least in (("actions", actions, 3), ("episodes", count, 1), ("controllers", controllers, 0)):
        check_whole(name, value, least)
    if reward not in REWARDS:
        raise ValueError(f"reward = {reward!r}: must be one of {', '.join(REWARDS)}")
    problem = ig.problem(task)
    view = REWARDS[reward]
    if view is not None:
        problem = dataclasses.replace(problem, env=view(problem.env, problem.spec))
    env, params = problem.env, problem.params
    if controllers and (controllers < 4 or problem.dynamics != "open_loop"):
        raise ValueError(f"controllers = {controllers}: must be 0, or at least 4 on an open-loop task")
    seeds = rivals.test_seeds(count) if days_apart else np.arange(count)
    grid = static_actions(env, params, {"batch_size": BATCH_SIZES, "kv_budget": KV_BUDGETS})
    picked = grid
    if actions < len(grid):
        index = np.random.default_rng(0).choice(len(grid), actions, replace=False)
        picked = [grid[i] for i in np.sort(index)]
    advance(f"{len(picked)} static actions")
    search = search_static(env, params, picked, seeds)
    scores = [problem.score(search.per_seed)]
    returns = [np.asarray(search.per_seed.total_reward, np.float64)]
    outcomes = {name: list(getattr(search.means, name)) for name in OUTCOME}
    statics = len(picked)
    if controllers:
        advance(f"{controllers} settings of the controller")
        plans = controllers_of(problem, controllers, seeds)
        tiled = lanes.of_plans([plan for plan in plans for _ in seeds], int(params.episode_length))
        lane_statistics = lanes.statistics_of(problem, tiled, np.tile(seeds, len(plans)))
        shaped = jax.tree.map(lambda x: np.asarray(x).reshape(len(plans), count), lane_statistics)
        scores.append(problem.score(shaped))
        returns.append(np.asarray(shaped.total_reward, np.float64))
        for column, values in outcomes.items():
            values.extend(np.asarray(getattr(shaped, column), np.float64).mean(axis=1))
    names: list[str] = []
    for name in (*NAMES, *([GENERAL] if problem.dynamics == "open_loop" else [])):
        advance(name.replace("_", " "))
        try:
            view, policy = env_and_policy(name, problem)
            statistics = episodes(problem, policy, seeds, view)
        except FileNotFoundError:
            continue
        names.append(name.replace("_", " "))
        scores.append(statistics["score"][None])
        returns.append(statistics["return"][None])
        for column, values in outcomes.items():
            values.append(statistics[column].mean())
    by_score, by_return = np.concatenate(scores), np.concatenate(returns)
    score, total = by_score.mean(axis=1), by_return.mean(axis=1)
    best_quarter = np.argsort(-score, kind="stable")[: max(len(score) // 4, 3)]
    shown = [(name, len(score) - len(names) + i) for i, name in enumerate(names)]
    for what, values in (("score", score), ("return", total)):
        best = best_action(search, values[:statics])
        knobs = " ".join(f"{k}={v}" for k, v in picked[best].items() if v != env.table.knob_defaults[k])
        shown.append((f"best {what} of the static actions: {knobs or 'the baseline'}", best))
    return {
        "task": problem.spec.id,
        "reward": reward,
        "episodes": count,
        "policies": len(score),
        "static_actions": statics,
        "controllers": controllers,
        "grid": len(grid),
        "all": correlation(total, score),
        "static": correlation(total[:statics], score[:statics]),
        "top": correlation(total[best_quarter], score[best_quarter]),
        "apart": told_apart(by_return[best_quarter], by_score[best_quarter]),
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
