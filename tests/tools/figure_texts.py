"""What is written in a figure, and whether two of its texts lie over each other, over a curve, or one leaves it."""

from __future__ import annotations

from itertools import combinations
from typing import Any


def texts(figure: Any) -> list[tuple[str, Any]]:
    """Every text that is drawn, with its box in pixels. Ticks beyond an axis's limits exist and are not drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure).draw()
    ticks = {
        label: low <= tick.get_loc() <= high
        for panel in figure.axes
        for axis in (panel.xaxis, panel.yaxis)
        for low, high in [sorted(axis.get_view_interval())]
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
    }
    found = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    return [(one.get_text(), one.get_window_extent()) for one in found if ticks.get(one, True)]


def collisions(figure: Any) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap, and (text, "cut off") for one that leaves the figure."""
    drawn = texts(figure)
    over = [(a, b) for (a, one), (b, other) in combinations(drawn, 2) if one.overlaps(other)]
    width, height = figure.bbox.width, figure.bbox.height
    out = [(a, "cut off") for a, box in drawn if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    return over + out


def on_curves(figure: Any) -> list[tuple[str, str]]:
    """(text, name of the line) where a curve or a marker that is drawn runs through a text's box.

    Grid lines, straight lines across the whole panel and what belongs to a legend are no curves.
    """
    import numpy as np

    found, drawn = [], texts(figure)
    for panel in figure.axes:
        seen = panel.get_window_extent()
        for line in panel.lines:
            points = line.get_transform().transform(np.column_stack(line.get_data(orig=False)).astype(float))
            if line.get_drawstyle().startswith("steps"):  # as they are drawn: along, then up
                corners = np.column_stack([points[1:, 0], points[:-1, 1]])
                points = np.insert(points, np.arange(1, len(points)), corners, axis=0)
            if len(points) == 2 and np.ptp(points, axis=0).min() < 1e-6:
                continue
            if line.get_linestyle() != "None":
                longest = np.abs(np.diff(points, axis=0)).max(initial=1.0)
                between = np.linspace(0, 1, int(min(longest, 4000)) + 2)[:, None, None]  # a pixel apart
                points = (points[:-1] + between * (points[1:] - points[:-1])).reshape(-1, 2)
            points = points[(points >= seen.min - 1).all(axis=1) & (points <= seen.max + 1).all(axis=1)]
            for text, box in drawn:
                if ((points > box.min) & (points < box.max)).all(axis=1).any():
                    found.append((text, str(line.get_label())))
    return found
