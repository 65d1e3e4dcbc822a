"""What the demo ends with: one window of the second-gpu task under settings that stay and a controller that leases.

``task 7 -> held-out windows -> three policies, one compiled program -> rows, a figure``. The controller's settings and
the oracle's score are those that ``python -m training headroom --task 7 --out docs/headroom/task7`` found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

import inferencegym_jax as ig
from training import lanes, rivals
from training.headroom import Played, played, published, tuned_plan
from training.scenario_plot import draw_episode, steepest

TASK, WINDOWS = 7, 24


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
    found, problem = published(TASK), ig.problem(TASK)
    steps, seeds = int(problem.params.episode_length), rivals.test_seeds(windows)
    two = problem.best_static
    statics = {"two GPUs always": two, "one GPU always": two.replace(prefill_disagg=False)}
    parts = [lanes.of_sequences(lanes.held(action, windows, steps)) for action in statics.values()]
    parts.append(lanes.of_plans([tuned_plan(found)] * windows, steps))
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    rolled = jax.tree.map(np.asarray, lanes.episodes_of(problem, joined, np.tile(seeds, len(parts))))
    load = rivals.true_load(problem, seeds, ahead=1)
    drawn = steepest(load)
    results: dict[str, Played] = {}
    trajectories: dict[str, ig.Trajectory] = {}
    for i, name in enumerate([*statics, "follows the load"]):
        own: ig.Trajectory = jax.tree.map(lambda x, i=i: x[:, i * windows : (i + 1) * windows], rolled)
        results[name] = played(problem, own)
        trajectories[name] = jax.tree.map(lambda x: x[:, drawn : drawn + 1], own)
    oracle = next(row["score"]["mean"] for row in found["rows"] if row["policy"] == "oracle")
    return Windows(problem, seeds, results, trajectories, drawn, load[drawn], float(oracle))


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
    static = windows.played["two GPUs always"].columns["score"].mean()
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
