"""How every figure looks: colours, line widths, numbers on axes, and labels that keep clear of each other.

Functions take matplotlib's axes; matplotlib itself is imported where a figure is drawn, as it belongs to extras.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

INK, SOFT, FAINT = "#24292f", "#57606a", "#8c959f"
COLOURS = {
    "baseline": "#6e7781",
    "random": "#a0a8b0",
    "best_static": "#c2570c",
    "reactive": "#2457d6",
    "trained": "#13764a",
}
"""Of the built-in policies, wherever they are drawn."""
OTHER_COLOUR = "#7c3aed"
LINES = ("#6e7781", "#c2570c", "#2457d6", "#13764a", "#7c3aed", "#b3203c")
"""Of lines that have no colour of their own, in this order."""
BURST_COLOUR, OOM_COLOUR, LIMIT_COLOUR = "#e3a008", "#b3203c", "#6e7781"
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
}
"""Settings of matplotlib (``rc_context``) of every figure."""
LINE, WORD = 15, 40  # points that a number takes of an upright and of a level axis
SMALL = 7  # points, of names inside a figure
SIDES = ((-1, 1), (1, -1), (1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))  # (right, up); curves rise
AROUND = (1.0, 1.8, 2.8, 4.0, 5.5, 7.5, 10.0)  # how far from its point a name may stand, in heights of its letters


def colour_of(name: str) -> str:
    """A policy's colour."""
    return COLOURS.get(name, OTHER_COLOUR)


def readable(name: str) -> str:
    """A policy's name as people read it; of a path its last part."""
    return name.rstrip("/").rsplit("/", 1)[-1].replace("_", " ")


def tidy(axis: Any) -> None:
    """No frame but the two axes, a faint grid behind the curves, numbers with separators."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    for one in (axis.xaxis, axis.yaxis):
        plain_numbers(one)


def plain_numbers(axis: Any) -> None:
    """Numbers of one axis as people write them: 12,000 and 0.05, on log axes at 1, 2 and 5 times a power of ten.

    Args:
        axis: ``axes.xaxis`` or ``axes.yaxis``.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    if axis.get_scale() != "log":
        return
    low, high = axis.get_view_interval()
    if not 0 < low < high:
        return
    box, figure = axis.axes.get_position(), axis.axes.figure
    upright = axis.axis_name == "y"
    points = 72 * (box.height * figure.get_figheight() if upright else box.width * figure.get_figwidth())
    room = points / (LINE if upright else WORD)  # numbers that find room
    decades = math.log10(high / low)
    axis.set_minor_formatter(NullFormatter())
    if 3 * decades <= room:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=99))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(numticks=max(3, int(room))))


def number(value: float) -> str:
    """12345.0 as "12,345", 0.050 as "0.05"."""
    if value and abs(value) < 1e-4:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.4g}"


def millions(steps: Any) -> Any:
    """Steps as millions of them, the unit of every learning curve."""
    return steps / 1e6


def label_levels(
    axis: Any,
    levels: Mapping[str, float],
    colours: Mapping[str, str] | None = None,
    *,
    size: float = SMALL,
    lines: bool = True,
    wrap: int = 40,
) -> None:
    """Each level's name right of the axis and, with ``lines``, a dashed line at it; names of close levels are moved
    apart, the middle of each group staying where it is.

    Args:
        axis: with its final limits and size.
        levels: name -> value on the y axis.
        colours: name -> colour; default: of policies.
        size: of the letters, points.
        lines: draw the dashed lines.
        wrap: most letters of a line of a name.
    """
    names = sorted(levels, key=lambda name: levels[name])
    if lines:
        for name in names:
            axis.axhline(levels[name], color=(colours or COLOURS).get(name, OTHER_COLOUR), ls="--", lw=0.9)
    texts = {name: textwrap.fill(readable(name), wrap) if "\n" not in name else name for name in names}
    line = 1.35 * size / 72 / (axis.get_position().height * axis.figure.get_figheight())
    heights = {name: line * (1 + texts[name].count("\n")) for name in names}
    axis.get_ylim()  # brings the limits up to date, on which the transform rests
    to_share = axis.get_yaxis_transform() - axis.transAxes  # data to a share of the axes' height, on log axes too
    shares = [float(to_share.transform((1.0, levels[name]))[1]) for name in names]
    for name, y in zip(names, spread(shares, [heights[n] for n in names]), strict=True):
        colour = (colours or COLOURS).get(name, OTHER_COLOUR)
        place = {"va": "center", "ha": "left", "clip_on": False, "annotation_clip": False}
        axis.annotate(
            texts[name], (1.0, y), (4, 0), xycoords="axes fraction", textcoords="offset points",
            color=colour, fontsize=size, **place,
        )  # fmt: skip


def spread(centres: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres moved as little as needs be so that boxes of these heights do not overlap.

    Args:
        centres: ascending.
        heights: of the box about each.
    """
    groups: list[tuple[float, float, list[float]]] = []  # middle, height, heights of its boxes from below
    for centre, height in zip(centres, heights, strict=True):
        groups.append((centre, height, [height]))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < (groups[-1][1] + groups[-2][1]) / 2:
            (b, bh, bs), (a, ah, as_) = groups.pop(), groups.pop()
            na, nb = len(as_), len(bs)
            groups.append(((na * a + nb * b) / (na + nb), ah + bh, as_ + bs))
    placed: list[float] = []
    for middle, height, own in groups:
        edge = middle - height / 2
        for one in own:
            placed.append(edge + one / 2)
            edge += one
    return placed


def label_points(
    axis: Any, points: Sequence[tuple[float, float]], names: Sequence[str], *, size: float = SMALL
) -> None:
    """Each point's name beside it, where it covers neither another name nor a point, nor leaves the axes.

    Args:
        axis: with its final limits, scales and size.
        points: in data coordinates.
        names: one each.
        size: of the letters, points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = FigureCanvasAgg(axis.figure)
    renderer = canvas.get_renderer()
    pixel = axis.figure.dpi / 72
    at = [axis.transData.transform(point) for point in points]
    taken = [Bbox.from_extents(x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel) for x, y in at]
    inside = axis.get_window_extent(renderer)
    for point, name in zip(points, names, strict=True):
        text = axis.annotate(
            name, point, (0, 0), textcoords="offset points", fontsize=size, color=INK, annotation_clip=False
        )
        for far, (across, up) in product(AROUND, SIDES):
            text.set_position((across * far * size * 0.9, up * far * size))
            text.set_horizontalalignment({1: "left", -1: "right", 0: "center"}[across])
            text.set_verticalalignment({1: "bottom", -1: "top", 0: "center"}[up])
            box = text.get_window_extent(renderer)
            within = box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0 and box.y1 <= inside.y1
            if within and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent(renderer))
