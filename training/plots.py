"""Figures of runs and policies: learning curves over seeds, one episode's timeline, latency against cost. PNG and
SVG."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.figure_style import (
    COLOURS,
    FAINT,
    OOM_COLOUR,
    OTHER_COLOUR,
    STYLE,
    colour_of,
    label_levels,
    millions,
    plain_numbers,
    readable,
    tidy,
)
from inferencegym_jax.models.metrics import COST_UNIT
from inferencegym_jax.policies import NAMES, has_trained, policy_of
from training import timeline
from training.evaluation import episodes

KINDS = ("curves", "timeline", "pareto")
RUNS = Path("runs")
EPISODES = 256
PARETO_EPISODES = 32


def save(figure: Any, stem: str | Path, command: str) -> list[Path]:
    """Write PNG and SVG with the command in the caption; returns the paths."""
    figure.text(0.01, 0.004, command, fontsize=6.5, color="#555555", family="monospace")
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=160)
    plt.close(figure)
    return paths


def draw(
    what: str, task: int | str, runs: Sequence[Path], policies: Sequence[str], seed: int, out: Path | None
) -> list[Path]:
    """Draw one kind of figure; returns the files.

    Raises:
        ValueError: unknown kind, policy or task; no runs.
    """
    if what not in KINDS:
        raise ValueError(f"plot {what!r}: must be one of {', '.join(KINDS)}")
    spec = ig.get_task(task)
    stem = out or Path("runs") / f"{what}-task{spec.id}"
    command = f"python -m training plot {what} --task {spec.id}"
    with plt.rc_context(STYLE):
        if what == "curves":
            folders = list(runs) or runs_of(spec.id)
            return save(curves(task, folders), stem, command + "".join(f" --run {run}" for run in runs))
        newest = [str(run) for run in runs_of(spec.id)[-1:] if (run / "policy.npz").is_file()]
        command += "".join(f" --policy {name}" for name in policies)
        if what == "timeline":
            last = newest or ["trained" if has_trained(spec.id) else "reactive"]
            return save(episode(task, list(policies) or ["baseline", *last], seed), stem, f"{command} --seed {seed}")
        return save(pareto(task, list(policies) or [*NAMES, *newest]), stem, command)


def runs_of(task: int) -> list[Path]:
    """Folders of a task's runs, the one that was trained last at the end."""
    return sorted(RUNS.glob(f"task{task}-seed*"), key=lambda run: (run.stat().st_mtime, run.name))


def read_run(folder: Path) -> dict[str, np.ndarray]:
    """metrics.csv of a run as columns.

    Raises:
        ValueError: the folder holds none, or it has no rows.
    """
    path = Path(folder) / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"run = {str(folder)!r}: holds no metrics.csv; train first")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path}: has no rows")
    return {name: np.asarray([float(row[name]) for row in rows]) for name in rows[0]}


def policy_lines(
    axis: Any, task: int | str, metric: str, names: Sequence[str] = ("baseline", "random", "best_static", "reactive")
) -> None:
    """A horizontal line for the mean of each policy."""
    problem, seeds = ig.problem(task), np.arange(EPISODES)
    levels = {name: float(episodes(problem, policy_of(name, problem), seeds)[metric].mean()) for name in names}
    label_levels(axis, levels)


def band(axis: Any, x: np.ndarray, curves: np.ndarray, label: str) -> None:
    """Mean over seeds and the band from the lowest to the highest; curves float[seeds, points]. What they are stands
    above the axes."""
    axis.plot(x, curves.mean(axis=0), color=COLOURS["trained"], label=label)
    if len(curves) > 1:
        axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=COLOURS["trained"], alpha=0.2, lw=0)
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)


def curves(task: int | str, folders: Sequence[Path]) -> Any:
    """Score and return over environment steps, mean and range over runs, with the four policies' lines.

    Raises:
        ValueError: no runs.
    """
    if not folders:
        raise ValueError(
            f"curves: there is no run of task {ig.get_task(task).id}; "
            f"python -m training train --task {ig.get_task(task).id}"
        )
    runs = [read_run(folder) for folder in folders]
    length = min(len(run["env_steps"]) for run in runs)
    count = f"PPO: mean and range of {len(runs)} seeds" if len(runs) > 1 else "PPO: one seed"
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
    figure.subplots_adjust(left=0.07, right=0.91, bottom=0.17, top=0.82, wspace=0.42)
    for axis, metric in zip(axes, ("score", "return"), strict=True):
        x = millions(runs[0]["env_steps"][:length])
        band(axis, x, np.stack([run[metric][:length] for run in runs]), count)
        axis.set_xlim(0, x[-1])
        policy_lines(axis, task, metric)
        axis.set_xlabel("environment steps (millions)")
        axis.set_ylabel(f"mean {metric} of an episode")
        tidy(axis)
    figure.suptitle(f"Task {ig.get_task(task).id}, {ig.get_task(task).title}", x=0.07, ha="left", fontsize=10)
    return figure


def episode(task: int | str, names: Sequence[str], seed: int) -> Any:
    """The timeline of one episode under each policy, side by side."""
    problem = ig.problem(task)
    played = [timeline.record(problem, name, seed) for name in names]
    figure, axes = plt.subplots(
        len(timeline.PANELS), len(names), figsize=(4.6 * len(names) + 0.6, 9), sharex=True, squeeze=False
    )
    figure.subplots_adjust(left=0.1, right=0.98, top=0.95, bottom=0.07, hspace=0.22, wspace=0.12)
    timeline.draw(axes, played, [colour_of(name) for name in names])
    return figure


def front(cost: np.ndarray, latency: np.ndarray) -> np.ndarray:
    """Which points no other one beats in both; indices by rising cost. float[points] each, less is better."""
    order = np.lexsort((latency, cost))
    best = np.minimum.accumulate(latency[order])
    return order[np.concatenate([[True], best[1:] < best[:-1]])]


def pareto(task: int | str, names: Sequence[str]) -> Any:
    """p99 TTFT against cost: every static action a grey dot, their front, and policies in colour."""
    from inferencegym_jax.episodes.static_search import search_static, static_actions

    problem = ig.problem(task)
    env, params = problem.env, problem.params
    search = search_static(env, params, static_actions(env, params), np.arange(PARETO_EPISODES))
    safe = search.worst_oom_share == 0
    x, y = np.asarray(search.means.total_cost) / int(params.episode_length), np.asarray(search.means.mean_ttft_p99_ms)
    points: dict[str, tuple[float, float]] = {}
    for name in names:
        try:
            values = episodes(problem, policy_of(name, problem), np.arange(PARETO_EPISODES))
        except FileNotFoundError:
            continue
        mean_cost = float(values["total_cost"].mean()) / int(params.episode_length)
        points[name] = (mean_cost, float(values["mean_ttft_p99_ms"].mean()))
    return draw_pareto(problem.spec, x, y, safe, points)


def draw_pareto(
    spec: ig.TaskSpec,
    cost: np.ndarray,
    latency: np.ndarray,
    safe: np.ndarray,
    points: Mapping[str, tuple[float, float]],
) -> Any:
    """The figure of ``pareto``.

    Args:
        spec: the task.
        cost, latency: float[actions], of the static actions: mean cost per 1,000 tokens, mean p99 TTFT (ms).
        safe: bool[actions], whether none of its episodes ran out of memory.
        points: policy -> its cost and latency.
    """
    figure, axis = plt.subplots(figsize=(6.8, 4.6))
    figure.subplots_adjust(left=0.11, right=0.97, bottom=0.14, top=0.8)
    dots: dict[str, Any] = {"s": 5, "alpha": 0.7, "lw": 0}
    risky = f"static, sometimes out of memory ({(~safe).sum():,})"
    axis.scatter(cost[safe], latency[safe], color=FAINT, label=f"static action ({safe.sum():,})", **dots)
    axis.scatter(cost[~safe], latency[~safe], color=OOM_COLOUR, label=risky, **dots)
    if safe.any():
        best = np.flatnonzero(safe)[front(cost[safe], latency[safe])]
        axis.step(cost[best], latency[best], where="post", color="black", lw=0.9, label="front of the static actions")
    for name, point in points.items():
        axis.scatter(*point, s=45, color=colour_of(name), edgecolor="white", zorder=3, label=readable(name))
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(f"mean cost ({COST_UNIT})")
    axis.set_ylabel("mean p99 TTFT (ms)")
    tidy(axis)
    figure.suptitle(f"Task {spec.id}, {spec.title}", x=0.11, ha="left", fontsize=10)
    axis.legend(
        fontsize=7, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.2, columnspacing=1.2
    )
    return figure


def draw_headroom(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """Each rival's score over the best static action with its interval, a dot an episode at its worst; PNG and SVG.

    Args:
        found: what ``headroom.measure`` returned.
        stem: of the files.
    """
    with plt.rc_context(STYLE):
        return save(draw_headroom_rows(found), stem, f"python -m training headroom --task {found['task']}")


def draw_headroom_rows(found: Mapping[str, Any]) -> Any:
    """The figure of ``draw_headroom``; ``found`` needs ``rows``, ``task`` and ``title``."""
    rows = found["rows"]
    height = 1.0 + 0.3 * len(rows)
    figure, axis = plt.subplots(figsize=(7.5, height))
    figure.subplots_adjust(left=0.36, right=0.97, top=1 - 0.3 / height, bottom=0.6 / height)
    for i, row in enumerate(rows[::-1]):
        paired = row["paired"]
        axis.plot([paired["low"], paired["high"]], [i, i], color=COLOURS["reactive"], lw=2)
        axis.plot(paired["mean"], i, "o", color=COLOURS["reactive"], ms=4)
        axis.plot(row["worst"]["paired"], i, "x", color=OTHER_COLOUR, ms=4)
    axis.axvline(0.0, color="#333333", lw=0.8)
    names = [row["policy"] if row["policy"] != "oracle" else "oracle, at least" for row in rows]
    axis.set_yticks(range(len(rows)), names[::-1])
    axis.set_xscale("symlog", linthresh=0.1)
    axis.set_xlabel("score over the best static action: mean, 95 % interval, worst episode (x)")
    axis.set_title(f"Task {found['task']}, {found['title']}", loc="left", fontsize=9)
    plain_numbers(axis.xaxis)
    return figure
