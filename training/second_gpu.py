"""What the demo ends with: one window of the second-gpu task under settings that stay and a controller that leases.

``task 7 -> held-out windows -> three policies, one compiled program -> rows, a figure``. The controller's settings and
the oracle's score are those that ``python -m training headroom --task 7 --out docs/headroom/task7`` found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

import inferencegym_jax as ig
from inferencegym_jax.policies.load_following import LoadPlan
from training import lanes, rivals
from training.headroom import Played, played

TASK, WINDOWS = 7, 24
FOUND = Path(__file__).resolve().parent.parent / "docs" / "headroom" / f"task{TASK}.json"
SMOOTHED_S = 15


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
    found, problem = json.loads(FOUND.read_text(encoding="utf-8")), ig.problem(TASK)
    steps, seeds = int(problem.params.episode_length), rivals.test_seeds(windows)
    two = problem.best_static
    statics = {"two GPUs always": two, "one GPU always": two.replace(prefill_disagg=False)}
    parts = [lanes.of_sequences(lanes.held(action, windows, steps)) for action in statics.values()]
    parts.append(lanes.of_plans([LoadPlan(**found["tuned"]["reactive"]["plan"])] * windows, steps))
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    rolled = lanes.episodes_of(problem, joined, np.tile(seeds, len(parts)))
    load = rivals.true_load(problem, seeds, ahead=1)
    half = load.shape[1] // 2
    drawn = int(np.argmax(np.abs(load[:, :half].mean(axis=1) - load[:, half:].mean(axis=1))))
    results: dict[str, Played] = {}
    trajectories: dict[str, ig.Trajectory] = {}
    for i, name in enumerate([*statics, "follows the load"]):
        own = slice(i * windows, (i + 1) * windows)
        results[name] = played(problem, jax.tree.map(lambda x, own=own: np.asarray(x)[:, own], rolled))
        one = slice(i * windows + drawn, i * windows + drawn + 1)
        trajectories[name] = jax.tree.map(lambda x, one=one: np.asarray(x)[:, one], rolled)
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
    drawn, load = windows.drawn, windows.load
    seconds = np.arange(len(load))
    axes[0].fill_between(seconds, load, color="#95a5a6", lw=0)
    axes[0].axhline(1.0, color="#333333", lw=0.7, ls="--")
    axes[0].set_ylabel("load\n(of one GPU)")
    for name, trajectory in windows.trajectories.items():
        columns = windows.played[name].columns
        text = (
            f"{name}: {columns['gpu_seconds'][drawn]:,.0f} GPU-s, {100 * columns['on_time_share'][drawn]:.1f} % on time"
        )
        line = {"color": colours[name], "lw": 1.1}
        axes[1].step(seconds, trajectory.outcome.gpu_seconds[:, 0], where="post", label=text, **line)
        axes[2].semilogy(seconds, smooth(trajectory.metrics.ttft_p50_ms[:, 0]), **line)
        axes[3].semilogy(seconds, smooth(trajectory.metrics.tpot_ms[:, 0]), **line)
    axes[1].set_ylabel("GPUs paid")
    axes[1].set_ylim(0.8, 3.2)
    axes[1].set_yticks([1, 2])
    axes[1].legend(frameon=False, fontsize=7, loc="upper left", ncols=3, columnspacing=1.2)
    objectives = (windows.problem.spec.slo_ttft_ms, windows.problem.spec.tpot_objectives_ms)
    for axis, label, limits in zip(axes[2:], ("TTFT, median\n(ms)", "TPOT (ms)"), objectives, strict=True):
        axis.set_ylabel(label)
        for limit in {x for x in limits if np.isfinite(x)}:
            axis.axhline(limit, color="#7f8c8d", lw=0.8, ls="--")
    axes[-1].set_xlabel("second of the window; dashed: what one GPU can do, and the objectives")


def smooth(values: np.ndarray, span: int = SMOOTHED_S) -> np.ndarray:
    """float64[seconds]: mean over the last ``span`` seconds, fewer at the start."""
    total = np.cumsum(np.concatenate([np.zeros(span), np.asarray(values, np.float64)]))
    return (total[span:] - total[:-span]) / np.minimum(np.arange(1, len(total) - span + 1), span)
