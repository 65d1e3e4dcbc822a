"""One episode second by second: arrivals, queue, TTFT against SLO, memory against limit, the knobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.environment import effective_action
from inferencegym_jax.policies import policy_of

PANELS = ("arrivals", "queue", "ttft", "memory", "batch", "budget")
LABEL = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.8}
OOM_COLOUR, LIMIT_COLOUR = "#c0392b", "#7f8c8d"


@dataclass(frozen=True)
class Timeline:
    """What one episode did; arrays of one number a second."""

    title: str
    trajectory: ig.Trajectory
    action: ig.ServeAction  # the knobs in force: locked ones at the baseline's value
    score: float
    slo_ms: tuple[float, ...]  # of the classes that have one
    memory_limit_gb: float


def record(problem: Problem, name: str, seed: int) -> Timeline:
    """Play one episode under the policy of a name."""
    env, params, spec = problem.env, problem.params, problem.spec
    policy = policy_of(name, problem)
    found = ig.rollout(env, params, policy, np.asarray([seed]))
    statistics = ig.evaluate(env, params, policy, np.asarray([seed]))
    trajectory = jax.tree.map(lambda x: np.asarray(x)[:, 0], found)
    action = jax.tree.map(np.asarray, effective_action(env.table, trajectory.action.as_arrays(), params))
    score = float(problem.score(statistics)[0])
    slo = tuple(x for x in spec.slo_ttft_ms if np.isfinite(x))
    return Timeline(name.replace("_", " "), trajectory, action, score, slo, float(params.memory_limit_gb))


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


def _column(axes: Any, timeline: Timeline, colour: str, first: bool) -> None:
    data, seconds = timeline.trajectory, np.arange(len(timeline.trajectory.reward))
    panels = dict(zip(PANELS, axes, strict=True))
    for one in axes:
        _shade(one, seconds, np.asarray(data.workload.is_burst))
        one.tick_params(labelbottom=one is axes[-1])
        one.set_xlim(0, len(seconds))
    total = float(data.reward.sum())
    panels["arrivals"].set_title(
        f"{timeline.title}: score {timeline.score:.2f}, return {total:.0f}", loc="left", fontsize=10, fontweight="bold"
    )
    panels["arrivals"].plot(seconds, data.workload.arrivals, color="#34495e", lw=0.8)
    panels["queue"].plot(seconds, data.workload.queue_depth, color=colour)
    panels["ttft"].semilogy(seconds, data.metrics.ttft_p50_ms, color=colour, label="p50")
    panels["ttft"].semilogy(seconds, data.metrics.ttft_p99_ms, color=colour, lw=0.7, alpha=0.5, label="p99")
    names = ("interactive", "batch") if len(timeline.slo_ms) > 1 else ("all",)
    for name, slo in zip(names, timeline.slo_ms, strict=False):
        panels["ttft"].axhline(slo, color=LIMIT_COLOUR, ls="--", lw=0.9)
        panels["ttft"].text(
            len(seconds) - 1, slo, f"SLO {name}", fontsize=6.5, color="#2c3e50", ha="right", va="bottom", bbox=LABEL
        )
    panels["memory"].plot(seconds, data.metrics.gpu_memory_gb, color=colour, lw=0.9)
    out = np.flatnonzero(data.oom)
    panels["memory"].plot(
        seconds[out],
        data.metrics.gpu_memory_gb[out],
        "x",
        ms=3.5,
        color=OOM_COLOUR,
        label=f"out of memory, {len(out)} s",
    )
    limit = f"limit {timeline.memory_limit_gb:g} GB"
    panels["memory"].axhline(timeline.memory_limit_gb, color=LIMIT_COLOUR, ls="--", lw=0.9, label=limit)
    panels["memory"].set_ylim(top=48)
    panels["memory"].legend(loc="upper center", fontsize=6.5, frameon=False, ncols=2)
    panels["batch"].step(seconds, timeline.action.batch_size, color=colour, where="post")
    panels["budget"].step(seconds, timeline.action.kv_budget, color=colour, where="post")
    panels["budget"].text(
        0.99,
        0.93,
        _other_knobs(timeline.action),
        transform=panels["budget"].transAxes,
        fontsize=6.5,
        ha="right",
        va="top",
    )
    panels["budget"].set_ylim(0, 1.08)
    panels["budget"].set_xlabel("time (s)")
    if first:
        units = (
            "arrivals\n(requests/s)",
            "queue\n(requests)",
            "TTFT\n(ms)",
            "GPU memory\n(GB)",
            "batch size\n(requests)",
            "KV budget\n(share)",
        )
        for one, label in zip(axes, units, strict=True):
            one.set_ylabel(label)
        panels["ttft"].legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), fontsize=6.5, frameon=False, ncols=2)


def _shade(axis: Any, seconds: np.ndarray, burst: np.ndarray) -> None:
    axis.fill_between(
        seconds, 0, 1, where=burst, transform=axis.get_xaxis_transform(), color="#f39c12", alpha=0.15, lw=0, step="post"
    )


def _other_knobs(action: ig.ServeAction) -> str:
    """The three knobs that have no panel, as the share of seconds at each value."""
    tiers = {tier.value: tier.name for tier in ig.QuantTier}
    parts = []
    for values, label in (
        (action.quant_tier, lambda v: tiers[int(v)]),
        (action.spec_length, lambda v: f"{int(v)} drafts"),
        (action.prefill_disagg, lambda v: "second GPU" if v else "one GPU"),
    ):
        found, counts = np.unique(np.asarray(values), return_counts=True)
        order = np.argsort(-counts)
        words = [
            label(found[i]) + (f" {100 * counts[i] / counts.sum():.0f} %" if len(found) > 1 else "") for i in order
        ]
        parts.append(" / ".join(words))
    return ", ".join(parts)
