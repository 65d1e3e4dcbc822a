"""One episode of a long task under several policies: load, what the policies do, TTFT and TPOT, over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.figure_style import FAINT, INK, LIMIT_COLOUR, tidy

SMOOTHED_S = 15


def draw_episode(
    axes: Any,
    problem: ig.Problem,
    load: np.ndarray,
    lines: Mapping[str, tuple[Any, str]],
    objectives: Sequence[Sequence[float]] | None = None,
) -> None:
    """Draw it; the second panel has the GPUs paid where the task may lease one, else the draft tokens.

    Args:
        axes: four of matplotlib, over each other, with one x axis.
        problem: the task.
        load: float32[seconds], what arrives, as a share of one GPU's capacity.
        lines: label -> (``Trajectory`` with leading axes (seconds, 1), colour).
        objectives: on TTFT and on TPOT, ms, by class; default: the task's.
    """
    leases, seconds = "prefill_disagg" in problem.spec.active_knobs, np.arange(len(load))
    axes[0].fill_between(seconds, load, color=FAINT, lw=0)
    axes[0].axhline(1.0, color=INK, lw=0.7, ls="--")
    axes[0].set_ylabel("load\n(of one GPU)")
    for label, (played, colour) in lines.items():
        line = {"color": colour, "lw": 1.1, "label": label}
        done = played.outcome.gpu_seconds if leases else played.action.spec_length
        axes[1].step(seconds, np.asarray(done)[:, 0], where="post", **line)
        axes[2].semilogy(seconds, smooth(played.metrics.ttft_p50_ms[:, 0]), **line)
        axes[3].semilogy(seconds, smooth(played.metrics.tpot_ms[:, 0]), **line)
    axes[1].set_ylabel("GPUs paid" if leases else "draft tokens")
    drawn = objectives or (problem.spec.slo_ttft_ms, problem.spec.tpot_objectives_ms)
    for axis, label, limits in zip(axes[2:], ("TTFT, median\n(ms)", "TPOT (ms)"), drawn, strict=True):
        axis.set_ylabel(label)
        for limit in {x for x in limits if np.isfinite(x)}:
            axis.axhline(limit, color=LIMIT_COLOUR, lw=0.8, ls="--")
    for axis in axes:
        axis.set_xlim(0, len(load))
        tidy(axis)
    if leases:
        axes[1].set_yticks([1, 2])
    else:
        axes[1].yaxis.get_major_locator().set_params(integer=True)


def episode_figure(
    drawing: Any,
    problem: ig.Problem,
    load: np.ndarray,
    lines: Mapping[str, tuple[Any, str]],
    title: str,
    objectives: Sequence[Sequence[float]] | None = None,
) -> Any:
    """``draw_episode`` on an empty figure, the lines' names above the panels; returns the figure.

    Args:
        drawing: an empty figure of matplotlib, 7.4 by 6.2 inches.
        problem: the task.
        load: float32[seconds], what arrives, as a share of one GPU's capacity.
        lines: label -> (``Trajectory`` with leading axes (seconds, 1), colour).
        title: over it all.
        objectives: see ``draw_episode``.
    """
    drawing.subplots_adjust(left=0.12, right=0.965, top=0.9, bottom=0.09, hspace=0.16)
    panels = drawing.subplots(4, 1, sharex=True)
    draw_episode(panels, problem, load, lines, objectives)
    panels[-1].set_xlabel("second of the episode; dashed: one GPU's capacity, objectives")
    drawing.align_ylabels()
    names = panels[1].get_legend_handles_labels()
    drawing.legend(*names, loc="upper left", bbox_to_anchor=(0.11, 0.955), ncols=len(lines))
    drawing.suptitle(title, x=0.12, y=0.985, ha="left", fontsize=10)
    return drawing


def steepest(load: np.ndarray) -> int:
    """Which of float32[episodes, seconds] differs most between its first and its second half."""
    half = load.shape[1] // 2
    return int(np.argmax(np.abs(load[:, :half].mean(axis=1) - load[:, half:].mean(axis=1))))


def smooth(values: Any, span: int = SMOOTHED_S) -> np.ndarray:
    """float64[seconds]: mean over the last ``span`` seconds, fewer at the start."""
    total = np.cumsum(np.concatenate([np.zeros(span), np.asarray(values, np.float64)]))
    return (total[span:] - total[:-span]) / np.minimum(np.arange(1, len(total) - span + 1), span)
