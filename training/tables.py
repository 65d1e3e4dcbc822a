"""Results as tables for the terminal, and the consoles that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from inferencegym_jax.scoring.described import SHARES, STATISTICS
from inferencegym_jax.scoring.episode_log import is_scored_by_request
from inferencegym_jax.tasks import TaskSpec, get_task

WIDTH = 140  # columns of what goes to a file or a pipe

OUTCOME = ("goodput_share", "on_time_share", "gpu_seconds", "late", "rejected", "arrivals", "oom_share")


def screen(stderr: bool = False) -> Console:
    """A console; wide where it is no terminal, so that no column is cut in a file."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def span(value: Mapping[str, float], digits: int = 4) -> str:
    """``mean [low, high]``."""
    return f"{value['mean']:.{digits}g} [{value['low']:.{digits}g}, {value['high']:.{digits}g}]"


def percent(share: float) -> str:
    """A share as a percentage; one that is not 0 never reads as 0."""
    return "0 %" if share == 0 else f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def outcome_heads(spec: TaskSpec) -> list[str]:
    """Columns that stand beside a task's score wherever it is printed; ``outcome_cells`` fills them."""
    counted = ["tokens on time", "requests on time", "GPU-seconds", "late"] if is_scored_by_request(spec) else []
    return [*counted, "rejected", "out of memory"]


def outcome_cells(spec: TaskSpec, values: Mapping[str, Any]) -> list[str]:
    """What became of the requests, and what that took: means over episodes as text, shares as percentages.

    Args:
        spec: the task.
        values: statistics by name, numbers or arrays with one entry an episode: those of ``evaluation.columns``.
    """
    mean = {name: float(np.mean(values[name])) for name in OUTCOME}
    arrived = max(mean["arrivals"], 1.0)
    lost = [percent(mean["rejected"] / arrived), percent(mean["oom_share"])]
    if not is_scored_by_request(spec):
        return lost
    shares = percent(mean["goodput_share"]), percent(mean["on_time_share"])
    return [*shares, f"{mean['gpu_seconds']:.0f}", percent(mean["late"] / arrived), *lost]


def evaluation_table(found: Mapping[str, Any]) -> Table:
    """What ``evaluation.evaluate`` returned."""
    table = Table(
        title=f"task {found['task']}, {found['policy']}, {found['episodes']} held-out episodes, mean and 95 % interval"
    )
    table.add_column("metric")
    table.add_column("mean [low, high]", justify="right")
    table.add_column("unit")
    for name in ("score", "return"):
        table.add_row(f"[bold]{name}", span(found[name]), "")
    for rival, differences in found["paired"].items():
        for name, value in differences.items():
            table.add_row(f"{name} - {rival}'s", span(value), "")
    table.add_section()
    for name in (*SHARES, *(name for name in found["metrics"] if name not in SHARES)):
        said = STATISTICS[name]
        table.add_row(said.title, span(found["metrics"][name]), said.unit)
    return table


def sweep_table(rows: Sequence[Mapping[str, float]], most: int = 20) -> Table:
    """The best members of a sweep."""
    table = Table(title=f"best {min(most, len(rows))} of {len(rows)} settings by validation score")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows[:most]:
        table.add_row(*(f"{value:.4g}" for value in row.values()))
    return table


def rank_table(found: Mapping[str, Any]) -> Group:
    """What ``ranks.rank_policies`` returned."""
    table = Table(
        title=f"task {found['task']}, {found['episodes']} episodes: return and score of {found['policies']} policies"
    )
    table.add_column("policy")
    spec = get_task(found["task"])
    for name in ("score", "rank", "return", "rank", *outcome_heads(spec)):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        cells = (
            f"{row['score']:.3f}",
            str(row["score_rank"]),
            f"{row['return']:.1f}",
            str(row["return_rank"]),
            *outcome_cells(spec, row),
        )
        table.add_row(row["policy"], *cells)
    lines = ["Spearman's rank correlation of return and score [95 % interval over policies]:"]
    names = {"all": "all policies", "static": "static actions only", "top": "the quarter with the best scores"}
    for key, name in names.items():
        x = found[key]
        lines.append(f"    {x['spearman']:.3f} [{x['low']:.3f}, {x['high']:.3f}] {name}")
    apart = found["apart"]
    alike = "" if apart["alike"] is None else f", {apart['alike']:.2f} of them ordered alike by the return"
    lines.append(
        f"Of that quarter's {apart['pairs']} pairs the episodes tell {apart['apart']} apart by score{alike}; its scores"
        f" span {apart['spread']:.4f}."
    )
    return Group(table, Text("\n".join(lines)))
