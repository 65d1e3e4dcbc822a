"""A day of a fleet as a figure: load, GPUs by state, share on time, cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import inferencegym_jax as ig
from inferencegym_jax.figure_style import COLOURS, FAINT, INK, OOM_COLOUR, SOFT, STYLE, tidy
from inferencegym_jax.fleet.contest import decisions_of
from inferencegym_jax.fleet.spec import FleetSpec, get_fleet
from inferencegym_jax.fleet.state import DECISION_S
from inferencegym_jax.policies.fleet_names import fleet_policy_of


def draw_day(task: str | FleetSpec, stem: Path, day: int = 0, policy: str = "reactive") -> list[Path]:
    """PNG and SVG of one day under a policy: load, GPUs asked for, starting, serving, share on time, cost.

    Args:
        task: a fleet task.
        stem: of the files.
        day: its seed.
        policy: a name or a path, see ``policies.fleet_names``.

    Returns:
        The files.

    Raises:
        ValueError, FileNotFoundError: no such task or policy.
    """
    spec = get_fleet(task)
    env, params = ig.make_fleet(spec)
    acting = fleet_policy_of(policy, spec.name)
    rows = {name: value[0, 0] for name, value in decisions_of(env, params, acting, [day]).items()}
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        title = f"Day {day} of {spec.name} under {policy}, clock x{spec.clock:g}"
        drawn = picture(Figure(figsize=(9, 6.6)), rows, title, spec.clock)
        command = f"python -m training fleet-plot --task {spec.name} --day {day} --policy {policy}"
        drawn.text(0.01, 0.012, command, fontsize=6.5, color=SOFT, family="monospace")
        for path in paths:
            drawn.savefig(path, dpi=120)
    return paths


def picture(figure: Any, rows: Mapping[str, np.ndarray], title: str, clock: float = 1.0) -> Any:
    """The figure of ``draw_day``.

    Args:
        figure: an empty one of matplotlib.
        rows: float[decisions] each: load, asked, serving, starting, draining, on_time, judged, gpu_seconds.
        title: over the panels.
        clock: how many times faster than the wall clock the day runs.

    Returns:
        The figure.
    """
    hours = np.arange(len(rows["load"])) * DECISION_S * clock / 3600.0
    figure.subplots_adjust(left=0.09, right=0.98, top=0.87, bottom=0.11, hspace=0.14)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    states = {"serving": COLOURS["trained"], "starting": COLOURS["best_static"], "draining": FAINT}
    axes[0].stackplot(
        hours, *(rows[name] for name in states), labels=list(states), colors=list(states.values()), alpha=0.6, lw=0
    )
    axes[0].plot(hours, rows["load"], color=INK, lw=0.7, label="load (GPUs at capacity)")
    axes[0].step(hours, rows["asked"], where="post", color=COLOURS["reactive"], lw=0.7, label="asked for")
    axes[0].set_ylabel("GPUs")
    axes[0].legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=5, borderaxespad=0.2)
    wide = np.ones(12)
    good, judged = (np.convolve(rows[name], wide, "same") for name in ("on_time", "judged"))
    share = np.divide(good, judged, out=np.full(len(judged), np.nan), where=judged > 0)
    axes[1].plot(hours, 100 * share, color=COLOURS["reactive"], lw=0.8)
    axes[1].set_ylabel("on time\n(% of a minute)")
    axes[2].plot(hours, np.cumsum(rows["gpu_seconds"]) / 3600.0, color=OOM_COLOUR)
    axes[2].set_ylabel("GPU-hours")
    axes[2].set_xlabel("hour of the day")
    axes[2].set_xlim(0, hours[-1])
    for axis in axes:
        tidy(axis)
    figure.align_ylabels()
    figure.suptitle(title, x=0.09, y=0.97, ha="left", fontsize=10)
    return figure
