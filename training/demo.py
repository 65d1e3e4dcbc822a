"""``make demo``: every policy on every task, a policy that learns in front of you, and a second GPU that pays.

1. Roll out baseline, random, reactive, best static (and trained, where it ships) over 1,024 vmapped episodes of each
short task; print a table. 2. Train task 1 from scratch. 3. Play 24 windows of task 7, second-gpu, with two GPUs always,
the best setting with one, and under the general policy, which was never trained there; print what each pays and keeps.
demo.png holds one window and the learning curve.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from inferencegym_jax.policies import NAMES
from inferencegym_jax.scoring.episode_log import is_scored_by_request
from training.tables import outcome_cells, outcome_heads, screen

if TYPE_CHECKING:
    from training.second_gpu import Windows

EPISODES = 1024
TABLE_WIDTH = 140  # a narrower terminal wraps the lines rather than lose columns
LATENCIES = {"mean_ttft_p50_ms": ("TTFT p50\nms", ",.0f"), "mean_ttft_p99_ms": ("TTFT p99\nms", ",.0f")}
SHOWN = {
    "mean_tps": ("tokens/s", ",.0f"), **LATENCIES, "mean_violation_rate": ("violation\nrate", ".3f"),
    "total_cost": ("cost", ".2f"),
}  # fmt: skip
SHOWN_BY_REQUEST = {**LATENCIES, "mean_tpot_ms": ("TPOT\nms", ",.0f")}
COMMAND = "make demo   (python -m training.demo)"
CURVE_TASK = 1
SHOWN_AS = ("best_static", "baseline", "trained")  # whose colours the three policies of the window have
LINES = ("baseline", "random", "reactive", "best_static")  # beside the learning curve


def score_policies(task: int, count: int, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a policy: intervals of score and return, means of the metrics, episodes a second of a compiled call."""
    import inferencegym_jax as ig
    from inferencegym_jax.numerics.bootstrap import mean_interval
    from inferencegym_jax.policies import policy_of
    from training.evaluation import episodes

    problem, rows = ig.problem(task), []
    for name in NAMES:
        advance(f"task {task}: {name.replace('_', ' ')}")
        try:
            policy = policy_of(name, problem)
        except FileNotFoundError:
            continue
        episodes(problem, policy, np.arange(count))  # compiles
        start = time.perf_counter()
        values = episodes(problem, policy, np.arange(count))
        seconds = time.perf_counter() - start
        means = {key: float(value.mean()) for key, value in values.items()}
        rows.append({"policy": name, "score": mean_interval(values["score"]), "means": means, "rate": count / seconds})
    return rows


def results_table(results: dict[int, list[dict[str, Any]]], count: int) -> Group:
    """All rows as tables for the terminal: tasks that are scored by the second, and those that are by the request."""
    import inferencegym_jax as ig

    kinds: dict[bool, dict[int, list[dict[str, Any]]]] = {}
    for task, rows in results.items():
        kinds.setdefault(is_scored_by_request(ig.get_task(task)), {})[task] = rows
    return Group(*(_table(of_kind, count) for of_kind in kinds.values()))


def _table(results: dict[int, list[dict[str, Any]]], count: int) -> Table:
    import inferencegym_jax as ig

    specs = {task: ig.get_task(task) for task in results}
    shown = SHOWN_BY_REQUEST if is_scored_by_request(next(iter(specs.values()))) else SHOWN
    table = Table(
        title=f"{count:,} episodes a row (seeds 0 to {count - 1}); score: mean and half its 95 % bootstrap interval",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    outcome = [
        head.replace(" on time", "\non time").replace("GPU-", "GPU-\n").replace("of memory", "of\nmemory")
        for head in outcome_heads(next(iter(specs.values())))
    ]
    heads = ("task", "policy", "score", "return", *outcome, *(head for head, _ in shown.values()), "episodes/s")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < 2 else "right", no_wrap=True)
    for task, rows in results.items():
        best = max(row["score"]["mean"] for row in rows)
        for row in rows:
            means, score = row["means"], row["score"]
            table.add_row(
                str(task),
                row["policy"].replace("_", " "),
                f"{score['mean']:.3f} ± {(score['high'] - score['low']) / 2:.3f}",
                f"{means['return']:.1f}",
                *outcome_cells(specs[task], means),
                *(f"{means[name]:{digits}}" for name, (_, digits) in shown.items()),
                f"{row['rate']:,.0f}",
                style="bold" if score["mean"] == best else None,
            )
        table.add_section()
    return table


def draw(windows: Windows, results: dict[int, list[dict[str, Any]]], curve: Sequence[dict[str, float]]) -> Any:
    """The figure of demo.png: a window of second-gpu under three policies, and the learning curve."""
    from matplotlib.figure import Figure

    import inferencegym_jax as ig
    from inferencegym_jax.figure_style import COLOURS, SOFT, label_levels, millions, tidy
    from training import second_gpu

    figure = Figure(figsize=(10.5, 9.5))
    upper, lower = figure.add_gridspec(
        2, 1, height_ratios=(3.4, 1), left=0.08, right=0.9, top=0.93, bottom=0.08, hspace=0.24
    )
    axes = upper.subgridspec(4, 1, hspace=0.16).subplots(sharex=True)
    second_gpu.draw(axes, windows, dict(zip(windows.played, (COLOURS[name] for name in SHOWN_AS), strict=True)))
    axis = figure.add_subplot(lower)
    axis.plot(
        [millions(row["env_steps"]) for row in curve],
        [row["score"] for row in curve],
        color=COLOURS["trained"],
        label="PPO",
    )
    axis.set_xlim(0, millions(curve[-1]["env_steps"]))
    axis.set_ylim(0, 1.05)
    levels = {row["policy"]: row["score"]["mean"] for row in results[CURVE_TASK] if row["policy"] in LINES}
    label_levels(axis, levels)
    axis.set_xlabel("environment steps (millions)")
    axis.set_ylabel("mean score")
    tidy(axis)
    spec = ig.get_task(CURVE_TASK)
    axis.set_title(
        f"Learning task {spec.id}, {spec.title}: PPO from scratch in {curve[-1]['seconds']:.0f} s",
        loc="left",
        fontsize=11,
    )
    axis.legend(loc="lower right")
    figure.suptitle(
        f"Task {windows.problem.spec.id}, {windows.problem.spec.title}: half an hour of a production pool, one GPU "
        "and one that can be leased",
        x=0.08,
        y=0.965,
        ha="left",
        fontsize=11,
    )
    figure.text(0.01, 0.006, COMMAND, fontsize=7, color=SOFT, family="monospace")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the figure (default: demo.png)")
    parser.add_argument(
        "--episodes", type=int, default=EPISODES, help=f"episodes of each task and policy (default: {EPISODES})"
    )
    options = parser.parse_args(arguments)
    if options.episodes < 2:
        parser.error(f"--episodes {options.episodes}: must be at least 2")
    started, console = time.perf_counter(), screen()

    from training.cache import use_cache

    use_cache()
    import matplotlib

    import inferencegym_jax as ig
    from inferencegym_jax.figure_style import STYLE
    from inferencegym_jax.models import EPISODE_LENGTH
    from training import second_gpu
    from training.config import task_config
    from training.runner import run

    # tasks of long episodes have a table of their own: python -m training headroom
    tasks = [spec.id for spec in ig.task_specs().values() if spec.episode_length <= EPISODE_LENGTH]
    config = task_config(CURVE_TASK)
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        stage = bar.add_task("starting", total=len(tasks) * len(NAMES), status="")

        def advance(text: str) -> None:
            bar.update(stage, advance=1, description=text)

        results = {task: score_policies(task, options.episodes, advance) for task in tasks}
        bar.update(stage, description="policies scored")
        learning = bar.add_task(f"task {CURVE_TASK}: PPO learns", total=1.0, status="compiling")
        result = run(
            config,
            report=lambda report: bar.update(
                learning,
                completed=report.done,
                status=f"score {report.row['score']:.3f}, {report.row['steps_per_second']:,.0f} steps/s",
            ),
        )
        leasing = bar.add_task(f"task {second_gpu.TASK}: a second GPU", total=1.0, status="compiling")
        windows = second_gpu.play()
        bar.update(leasing, completed=1.0, status="")
        drawing = bar.add_task(f"drawing {options.out}", total=1.0, status="")
        with matplotlib.rc_context(STYLE):
            draw(windows, results, result.rows).savefig(options.out, dpi=130)
        bar.update(drawing, completed=1.0)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(results_table(results, options.episodes))
    console.print(second_gpu.table(windows))
    last = result.rows[-1]
    console.print(
        f"PPO on task {CURVE_TASK}: score {last['score']:.3f} after {last['env_steps']:,.0f} environment steps, "
        f"{result.seconds:.0f} s with compilation.\n"
        f"Figure: {options.out}. All of it took {time.perf_counter() - started:.0f} s. Next: python -m training --help",
        highlight=False,
    )


if __name__ == "__main__":
    main()
