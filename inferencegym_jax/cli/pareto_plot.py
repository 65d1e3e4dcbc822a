"""The Pareto front of a recommendation: as text in the terminal, as a figure in a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from inferencegym_jax.cli.output import escape, number, table
from inferencegym_jax.models import KNOBS

WIDTH, HEIGHT = 64, 10


def points(recommendation: Any) -> list[tuple[str, float, float, str]]:
    """(mark, p99 TTFT, goodput, label) of the front, of what runs now and of the controllers."""
    front = [
        (chr(ord("1") + i), one["ttft_p99_ms"], one["goodput"], label(one))
        for i, one in enumerate(recommendation.pareto)
    ]
    others = [
        (name[0].upper() if name != "current" else "c", one["ttft_p99_ms"], one["goodput"], name)
        for name, one in recommendation.results.items()
        if name not in ("recommended", "promised")
    ]
    # who waits for ever has no place on the axis
    return front + [one for one in others if math.isfinite(one[1]) and one[1] > 0.0]


def label(one: dict[str, Any]) -> str:
    """A configuration of the front in words: what differs from the baseline."""
    changed = [knob.text(one["knobs"][name]) for name, knob in KNOBS.items() if one["knobs"][name] != knob.default]
    return ", ".join(changed) or "the baseline"


def draw(recommendation: Any, console: Console) -> None:
    """The front as a table and, over it, goodput against p99 TTFT."""
    marks = points(recommendation)
    if not marks:
        return
    low, high = math.log(min(x for _, x, _, _ in marks)), math.log(max(x for _, x, _, _ in marks))
    bottom, top = min(y for _, _, y, _ in marks), max(y for _, _, y, _ in marks)
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, x, y, _ in reversed(marks):
        column = round((math.log(x) - low) / max(high - low, 1e-9) * (WIDTH - 1))
        row = round((top - y) / max(top - bottom, 1e-9) * (HEIGHT - 1))
        rows[row][column] = mark
    console.print("goodput requests/s against p99 TTFT (log scale); digits are the Pareto front")
    for i, row in enumerate(rows):
        scale = number(top) if i == 0 else number(bottom) if i == HEIGHT - 1 else ""
        console.print(escape(f"{scale:>8} |" + "".join(row).rstrip()))
    console.print(" " * 9 + "+" + "-" * WIDTH)
    console.print(f"{' ' * 10}{number(math.exp(low))} ms{number(math.exp(high)) + ' ms':>{WIDTH - 8}}")
    front = recommendation.pareto
    lines = [
        (str(i + 1), label(one), one["goodput"], one["ttft_p99_ms"], one["cost_per_1k"], one["memory_gb"])
        for i, one in enumerate(front)
    ]
    console.print(table(("", "configuration", "requests/s", "p99 TTFT ms", "cost per 1k", "peak GB"), lines, left=2))


def check_ending(path: Path) -> None:
    """Whether a figure can be drawn into a file of that name.

    Raises:
        ValueError: the ending is not .png or .svg.
    """
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"--plot {str(path)!r}: must end in .png or .svg")


def save(recommendation: Any, path: Path) -> None:
    """Draw the front into a file.

    Raises:
        ValueError: matplotlib is not installed, or the ending is not .png or .svg.
    """
    check_ending(path)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'inferencegym-jax[demo]'") from None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    front = sorted(recommendation.pareto, key=lambda one: one["ttft_p99_ms"])
    axes.plot([one["ttft_p99_ms"] for one in front], [one["goodput"] for one in front], "o-", color="#1f77b4")
    for one in front:
        axes.annotate(
            label(one), (one["ttft_p99_ms"], one["goodput"]), fontsize=7, xytext=(4, -9), textcoords="offset points"
        )
    for mark, x, y, name in points(recommendation)[len(front) :]:
        axes.plot([x], [y], "s", markersize=6, label=name, color={"c": "#7f7f7f", "R": "#2ca02c"}.get(mark, "#d62728"))
    axes.axvline(recommendation.objective.ttft_ms, linestyle=":", color="#7f7f7f", linewidth=1)
    axes.set(xscale="log", xlabel="p99 TTFT (ms)", ylabel="goodput (requests/s within the SLO)")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
