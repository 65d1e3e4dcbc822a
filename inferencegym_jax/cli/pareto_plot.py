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
    console.print("goodput requests/s against p99 TTFT (log scale); digits are the Pareto front, replayed")
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
    picture(recommendation, Figure()).savefig(path, dpi=150)


def picture(recommendation: Any, figure: Any) -> Any:
    """The front on an empty figure of matplotlib: goodput against p99 TTFT, a number a configuration, which stand below
    in words; what is recommended, what runs now and the controllers beside it. Returns the figure."""
    from inferencegym_jax.figure_style import COLOURS, INK, LIMIT_COLOUR, OTHER_COLOUR, label_points, number, tidy

    front = sorted(recommendation.pareto, key=lambda one: one["ttft_p99_ms"])
    numbers = {id(one): str(i + 1) for i, one in enumerate(recommendation.pareto)}
    figure.set_size_inches(7.2, 4.4 + 0.16 * len(front))
    share = 0.16 * (len(front) + 1) / figure.get_figheight()
    axes = figure.add_axes((0.1, share + 0.12, 0.87, 0.76 - share))
    at = [(one["ttft_p99_ms"], one["goodput"]) for one in front]
    axes.step([x for x, _ in at], [y for _, y in at], "o-", where="post", color=INK, markersize=3.5, label="front")
    colours = {"current": COLOURS["baseline"], "Reactive": COLOURS["reactive"], "Trained": COLOURS["trained"]}
    for _, x, y, name in points(recommendation)[len(front) :]:
        axes.plot([x], [y], "s", markersize=6, label=name, color=colours.get(name, OTHER_COLOUR))
    recommended = recommendation.results["recommended"]
    star = {"markersize": 13, "color": COLOURS["best_static"], "markeredgecolor": "white", "label": "recommended"}
    axes.plot([recommended["ttft_p99_ms"]], [recommended["goodput"]], "*", zorder=4, **star)
    objective = recommendation.objective.ttft_ms
    axes.axvline(objective, ls="--", color=LIMIT_COLOUR, lw=1, label=f"objective, {number(objective)} ms")
    axes.set(xscale="log", xlabel="p99 TTFT (ms)", ylabel="goodput (requests/s within the objectives)")
    axes.margins(0.12)
    tidy(axes)
    axes.tick_params(labelsize=8)
    for one in (axes.xaxis, axes.yaxis):
        one.label.set_fontsize(9)
    label_points(axes, at, [numbers[id(one)] for one in front], size=8)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=5, columnspacing=1.2)
    for i, one in enumerate(recommendation.pareto):
        y = share - 0.16 * (i + 1) / figure.get_figheight()
        figure.text(0.1, y, f"{i + 1}  {label(one)}", fontsize=7, va="bottom", color=INK)
    return figure
