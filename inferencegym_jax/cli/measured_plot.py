"""Predicted against measured: the figure of ``validate --plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = {"itl_mean": "mean ITL (ms)", "ttft_mean": "mean TTFT (ms)", "latency_mean": "mean latency (ms)"}
ROLES = {"predicted": ("reactive", "o"), "fitted": ("baseline", "s")}


def save(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw ``picture`` into a file; PNG or SVG by its ending.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'inferencegym-jax[demo]'") from None
    from inferencegym_jax.figure_style import STYLE

    with matplotlib.rc_context(STYLE):
        picture(rows, Figure(figsize=(10.5, 3.9))).savefig(path, dpi=150)


def picture(rows: Sequence[dict[str, Any]], figure: Any) -> Any:
    """A point a run in three panels, and the line on which prediction and measurement are equal.

    Args:
        rows: of ``fidelity.validation.compare``, with ``role``, "fitted" or "predicted".
        figure: an empty one of matplotlib.

    Returns:
        The figure.
    """
    from inferencegym_jax.figure_style import COLOURS, FAINT, SOFT, tidy

    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.2, top=0.78, wspace=0.34)
    for axis, (name, title) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        shown = [row for row in rows if f"{name}_predicted_ms" in row and f"{name}_ms" in row]
        values = [row[f"{name}{which}_ms"] for row in shown for which in ("", "_predicted")] or [1.0]
        ends = [0.9 * min(values), 1.1 * max(values)]
        axis.plot(ends, ends, color=FAINT, linewidth=1, label="equal")
        for role, (colour, marker) in ROLES.items():
            part = [row for row in shown if row["role"] == role]
            if part:
                at = ([row[f"{name}_ms"] for row in part], [row[f"{name}_predicted_ms"] for row in part])
                axis.plot(*at, marker, ms=4, color=COLOURS[colour], mec="white", mew=0.4, label=f"{role} ({len(part)})")
        axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axis.set(xlabel=f"measured {title}", ylabel=f"predicted {title}")
        tidy(axis)
    figure.axes[0].legend(loc="lower left", bbox_to_anchor=(-0.03, 1.0), ncols=3, borderaxespad=0.2)
    runs = f"{len(rows):,} measured {'run' if len(rows) == 1 else 'runs'}"
    figure.suptitle(f"Prediction and measurement of {runs}", x=0.07, y=0.97, ha="left", fontsize=10)
    figure.text(0.01, 0.015, "inferencegym validate --plot", fontsize=6.5, color=SOFT, family="monospace")
    return figure
