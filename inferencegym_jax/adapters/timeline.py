"""One episode drawn second by second: arrivals, queue, TTFT against its objective, memory against its limit, the knobs.

``seconds -> Timeline -> draw(axes)`` or ``picture``. Matplotlib's figures and axes only: no pyplot, so nothing is kept
between calls and threads may draw.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.figure_style import (
    BURST_COLOUR,
    COLOURS,
    INK,
    LIMIT_COLOUR,
    OOM_COLOUR,
    plain_numbers,
)
from inferencegym_jax.models import KNOBS, QuantTier

PANELS = ("arrivals", "queue", "ttft", "memory", "batch", "budget")
UNITS = (
    "arrivals\n(requests/s)",
    "queue\n(requests)",
    "TTFT\n(ms)",
    "GPU memory\n(GB)",
    "batch size\n(requests)",
    "KV budget\n(share)",
)
SMALL = 6.5  # points, of what stands inside a panel


@dataclass(frozen=True)
class Timeline:
    """What an episode, or its part so far, did; arrays of one number a second."""

    title: str
    arrivals: np.ndarray  # requests
    queue: np.ndarray  # requests
    ttft_p50_ms: np.ndarray
    ttft_p99_ms: np.ndarray
    memory_gb: np.ndarray
    out_of_memory: np.ndarray  # bool
    burst: np.ndarray  # bool
    knobs: dict[str, np.ndarray]  # in force, by name
    slo_ms: tuple[float, ...]  # TTFT objectives of the classes that have one
    memory_limit_gb: float  # infinite: none
    length: int  # seconds of a whole episode


def draw(axes: np.ndarray, timelines: Sequence[Timeline], colours: Sequence[str]) -> None:
    """Draw each timeline in its column of ``axes`` (shape (6, timelines)), rows sharing their scale.

    Args:
        axes: matplotlib axes.
        timelines: at least one.
        colours: one each.
    """
    for column, (timeline, colour) in enumerate(zip(timelines, colours, strict=True)):
        _column(axes[:, column], timeline, colour, first=column == 0)
    for row in axes:
        low, high = min(a.get_ylim()[0] for a in row), max(a.get_ylim()[1] for a in row)
        for one in row:
            one.set_ylim(low, high)
            plain_numbers(one.yaxis)


def picture(timeline: Timeline, *, inches: tuple[float, float] = (7.2, 6.4), dpi: int = 100) -> np.ndarray:
    """The timeline as uint8[height, width, 3].

    Raises:
        ImportError: matplotlib is not there; the message says what to install.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'inferencegym-jax[render]'") from error
    figure = Figure(figsize=inches, dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(PANELS), 1, sharex=True, squeeze=False)
    draw(axes, [timeline], [COLOURS["reactive"]])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _column(axes: Any, timeline: Timeline, colour: str, first: bool) -> None:
    seconds = np.arange(len(timeline.arrivals))
    panels = dict(zip(PANELS, axes, strict=True))
    for one in axes:
        one.fill_between(
            seconds,
            0,
            1,
            where=timeline.burst,
            transform=one.get_xaxis_transform(),
            color=BURST_COLOUR,
            alpha=0.15,
            lw=0,
            step="post",
        )
        one.tick_params(labelbottom=one is axes[-1])
        one.set_xlim(0, timeline.length)
        one.grid(alpha=0.2)
    panels["arrivals"].set_title(timeline.title, loc="left", fontsize=10, fontweight="bold")
    panels["arrivals"].plot(seconds, timeline.arrivals, color=INK, lw=0.8)
    panels["queue"].plot(seconds, timeline.queue, color=colour)
    panels["ttft"].semilogy(seconds, timeline.ttft_p50_ms, color=colour, label="p50")
    panels["ttft"].semilogy(seconds, timeline.ttft_p99_ms, color=colour, lw=0.7, alpha=0.5, label="p99")
    names = ("interactive", "batch", "best effort") if len(timeline.slo_ms) > 1 else ("all",)
    for name, slo, style in zip(names, timeline.slo_ms, ("--", "-.", ":"), strict=False):
        panels["ttft"].axhline(slo, color=LIMIT_COLOUR, ls=style, lw=0.9, label=f"objective, {name}")
    _legend(panels["ttft"], 4)
    panels["memory"].plot(seconds, timeline.memory_gb, color=colour, lw=0.9)
    out = np.flatnonzero(timeline.out_of_memory)
    panels["memory"].plot(
        seconds[out], timeline.memory_gb[out], "x", ms=3.5, color=OOM_COLOUR, label=f"out of memory, {len(out)} s"
    )
    if np.isfinite(timeline.memory_limit_gb):
        limit = f"limit {timeline.memory_limit_gb:g} GB"
        panels["memory"].axhline(timeline.memory_limit_gb, color=LIMIT_COLOUR, ls="--", lw=0.9, label=limit)
    _legend(panels["memory"], 2)
    batch = KNOBS["batch_size"]
    panels["batch"].step(seconds, timeline.knobs["batch_size"], color=colour, where="post", lw=1.8, zorder=3)
    panels["batch"].set_yscale("log")  # a batch of 32 that never changes is seen beside one of 512
    panels["batch"].set_ylim(batch.low / 1.5, batch.high * 1.5)
    panels["budget"].step(seconds, timeline.knobs["kv_budget"], color=colour, where="post")
    panels["budget"].set_ylim(0, 1.05)
    panels["budget"].set_xlabel(f"time (s)\n{_other_knobs(timeline.knobs)}", fontsize=SMALL + 1)
    if first:
        for one, label in zip(axes, UNITS, strict=True):
            one.set_ylabel(label, fontsize=8)


def _legend(axis: Any, columns: int) -> None:
    """A panel's legend above its curves, which leave it the height of its rows."""
    rows = -(-len(axis.get_legend_handles_labels()[1]) // columns)
    low, high = axis.get_ylim()
    if axis.get_yscale() == "log":
        axis.set_ylim(low, high * (high / low) ** (0.05 + 0.35 * rows))
    else:
        axis.set_ylim(low, high + (0.1 + 0.35 * rows) * (high - low))
    axis.legend(loc="upper center", fontsize=SMALL, frameon=False, ncols=columns)


def _other_knobs(knobs: dict[str, np.ndarray]) -> str:
    """The knobs that have no panel, as the share of seconds at each value."""
    named: dict[str, Callable[[Any], str]] = {
        "quant_tier": lambda value: QuantTier(int(value)).name,
        "spec_length": lambda value: f"{int(value)} drafts",
        "prefill_disagg": lambda value: "second GPU" if value else "one GPU",
    }
    parts: list[str] = []
    for name in KNOBS:
        if name not in named or not len(knobs[name]):
            continue
        values, counts = np.unique(knobs[name], return_counts=True)
        shares = [f" {100 * count / counts.sum():.0f} %" if len(values) > 1 else "" for count in counts]
        order = np.argsort(-counts)
        parts.append(" / ".join(named[name](values[i]) + shares[i] for i in order))
    return textwrap.fill(", ".join(parts), 80)
