"""What the demo ends with: one window of the second-gpu task under settings that stay and the general policy.

``task 7 -> held-out windows -> three policies, one compiled program -> rows, a figure``. The general policy was trained
on task 8, never on these days. The oracle's score is what ``python -m training headroom --task 7 --out
docs/headroom/task7`` found, the best setting with one GPU what ``python -m training.second_gpu`` did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

import inferencegym_jax as ig
from inferencegym_jax.episodes.static_search import best_action, search_static, static_actions
from training import rivals
from training.beside import play_beside
from training.headroom import PUBLISHED, Played, played, published
from training.scenario_plot import draw_episode, steepest

TASK, WINDOWS = 7, 24
TWO, ONE, GENERAL = "two GPUs always", "best static with one", "general policy"
ONE_GPU = PUBLISHED / "one_gpu.json"
TRAINING_WINDOWS = 8  # of the search with one GPU
TRIED: dict[str, tuple[float, ...]] = {
    "batch_size": (32, 64, 96, 128, 192, 256, 512),
    "kv_budget": (0.1, 0.175, 0.25, 0.375, 0.5, 0.75, 1.0),
    "spec_length": (0, 1, 2),
    "prefill_disagg": (False,),
}


@dataclass(frozen=True)
class Windows:
    """Episodes of task 7 under each policy.

    Attributes:
        problem: the task.
        seeds: uint32[windows].
        played: policy -> what each window came to.
        trajectories: policy -> the window that is drawn; leading axes (seconds, 1).
        drawn: which of the windows is drawn.
        load: float32[seconds], what arrives in that window, as a share of one GPU's capacity.
        oracle: mean score of the oracle on these windows, at least.
    """

    problem: ig.Problem
    seeds: np.ndarray
    played: Mapping[str, Played]
    trajectories: Mapping[str, ig.Trajectory]
    drawn: int
    load: np.ndarray
    oracle: float


def play(windows: int = WINDOWS) -> Windows:
    """Play the held-out windows under every policy, in one call of one compiled program.

    Args:
        windows: how many of them. The one that is drawn is chosen by its traffic alone: the one whose load
            differs most between its first and its second half.
    """
    headroom, problem = published(TASK), ig.problem(TASK)
    seeds = rivals.test_seeds(windows)
    policy = ig.policies.general_for(problem)
    one = ig.ServeAction(**json.loads(ONE_GPU.read_text(encoding="utf-8"))["action"])
    held = {TWO: problem.best_static, ONE: one, GENERAL: None}
    rolled = play_beside(problem, policy, list(held.values()), seeds)
    load = rivals.true_load(problem, seeds, ahead=1)
    drawn = steepest(load)
    results: dict[str, Played] = {}
    trajectories: dict[str, ig.Trajectory] = {}
    for name, own in zip(held, rolled, strict=True):
        results[name] = played(problem, own)
        trajectories[name] = jax.tree.map(lambda x: x[:, drawn : drawn + 1], own)
    oracle = next(row["score"]["mean"] for row in headroom["rows"] if row["policy"] == "oracle")
    return Windows(problem, seeds, results, trajectories, drawn, load[drawn], float(oracle))


def search_one_gpu(windows: int = TRAINING_WINDOWS) -> dict[str, Any]:
    """The static action with the best mean score on training windows that never leases.

    Returns:
        ``{"task", "task_digest", "training_windows", "actions", "training_score", "action"}``.
    """
    problem = ig.problem(TASK)
    actions = static_actions(problem.env, problem.params, TRIED)
    search = search_static(problem.env, problem.params, actions, rivals.training_seeds(windows))
    scores = problem.score(search.per_seed).mean(axis=1)
    best = best_action(search, scores)
    return {
        "task": TASK,
        "task_digest": problem.spec.digest,
        "training_windows": windows,
        "actions": len(actions),
        "training_score": float(scores[best]),
        "action": actions[best],
    }


def table(windows: Windows) -> Table:
    """The window that is drawn beside the mean of all, and scores with the best static action at 0, the oracle at 1."""
    count, drawn = len(windows.seeds), windows.drawn
    shown = Table(
        title=f"task {TASK}, {windows.problem.spec.title}: the window of the figure, and {count} held-out windows of "
        "half an hour",
        box=SIMPLE_HEAD,
    )
    heads = "policy,GPU-seconds,on time,score,GPU-seconds\nof all,on time\nof all,score\nof all,normalised\nof all"
    for i, head in enumerate(heads.split(",")):
        shown.add_column(head, justify="left" if i == 0 else "right", no_wrap=True)
    static = windows.played[TWO].columns["score"].mean()
    for name, one in windows.played.items():
        columns = one.columns
        share = (columns["score"].mean() - static) / (windows.oracle - static)
        shown.add_row(
            name,
            f"{columns['gpu_seconds'][drawn]:,.0f}",
            f"{100 * columns['on_time_share'][drawn]:.1f} %",
            f"{columns['score'][drawn]:.3f}",
            f"{columns['gpu_seconds'].mean():,.0f}",
            f"{100 * columns['on_time_share'].mean():.1f} %",
            f"{columns['score'].mean():.3f}",
            f"{share:.2f}",
        )
    return shown


def draw(axes: Any, windows: Windows, colours: Mapping[str, str]) -> None:
    """Load, GPUs paid, TTFT and TPOT of the window under each policy.

    Args:
        axes: four of matplotlib, over each other, with one x axis.
        windows: what ``play`` returned.
        colours: policy -> colour.
    """
    lines = {}
    for name, trajectory in windows.trajectories.items():
        columns = windows.played[name].columns
        paid, kept = columns["gpu_seconds"][windows.drawn], columns["on_time_share"][windows.drawn]
        lines[f"{name}: {paid:,.0f} GPU-s, {100 * kept:.1f} % on time"] = (trajectory, colours[name])
    draw_episode(axes, windows.problem, windows.load, lines)
    axes[1].set_ylim(0.8, 3.2)
    axes[1].set_yticks([1, 2])
    axes[1].legend(frameon=False, fontsize=7, loc="upper left", ncols=3, columnspacing=1.2)
    axes[-1].set_xlabel("second of the window; dashed: what one GPU can do, and the objectives")


if __name__ == "__main__":
    ONE_GPU.write_text(json.dumps(search_one_gpu(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {ONE_GPU}")
