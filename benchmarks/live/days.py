"""``second-instance`` over every day that was run, in one run of ``make live`` or in several.

A repeat of ten minutes for each policy takes most of an hour, so the repeats that were written down need not be of one
run: each is kept second by second (``second-instance.days.json``), and all of them together say what a policy saved.
Runs of one day stand beside each other: the engine was measured anew for each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.live.trial.outcome import SEGMENT_S
from inferencegym_jax.numerics import bootstrap

NAME = "second-instance.days.json"


def kept_days(path: Path) -> list[dict[str, Any]]:
    """The days that are kept in a file; empty where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else []


def days_of(results: dict[str, Any], timeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's days, one for each repeat.

    Args:
        results: what the stage ``second-instance`` kept.
        timeline: load and policies of each repeat, second by second.

    Raises:
        ValueError: as many stretches as repeats are wanted.
    """
    how = results["how"]
    stretches = how["stretches"]
    if len(timeline) > len(stretches):
        raise ValueError(f"timeline: holds {len(timeline)} repeats, of which {len(stretches)} have a day")
    about = {
        "run": results["run"],
        "warmup_s": how["warmup_s"],
        "slowdown": how["spare"]["slowdown"],
        "reference": how["reference"],
    }
    return [{"day": one["day"], **about, **shown} for one, shown in zip(stretches, timeline, strict=False)]


def with_days(kept: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The days of both, in order; of a day that the same run has in both, the new one."""
    every = {(one["day"], one["run"]["date"], one["run"]["command"]): one for one in [*kept, *new]}
    return sorted(every.values(), key=lambda one: (one["day"], one["run"]["date"]))


def figures(days: list[dict[str, Any]], policy: str) -> dict[str, Any]:
    """What a policy came to on the days on which it ran, beside the reference on the same seconds.

    Returns:
        {"days", "on_time_share", "instances": floats; "saved", "on_time_over": of the reference's instance-seconds, and
        of the share on time, each {"mean", "low", "high"}, a 95 % bootstrap interval over segments of 5 s, paired}.
    """
    own, other = (np.concatenate([_sums(one, name or one["reference"]) for one in days]) for name in (policy, ""))
    counts = bootstrap.draw_counts_and_all(len(own))
    asked, on_time, paid, seconds = (counts @ own).T
    reference_asked, reference_on_time, reference_paid, _ = (counts @ other).T
    with np.errstate(invalid="ignore"):  # a resample in which nothing was asked tells nothing
        over = on_time / asked - reference_on_time / reference_asked
    return {
        "days": [one["day"] for one in days],
        "on_time_share": float(on_time[0] / asked[0]),
        "instances": float(paid[0] / seconds[0]),
        "saved": bootstrap.all_and_interval(1.0 - paid / reference_paid),
        "on_time_over": bootstrap.all_and_interval(over),
    }


def _sums(day: dict[str, Any], policy: str) -> np.ndarray:
    """float64[segments, 4]: requests that arrived, those on time, instance-seconds, seconds."""
    one, first = day["policies"][policy], int(day["warmup_s"])
    columns = np.asarray([one["asked"], one["on_time"], one["instances"], np.ones(len(one["asked"]))])[:, first:]
    return np.add.reduceat(columns, np.arange(0, columns.shape[1], int(SEGMENT_S)), axis=1).T


def _cell(day: dict[str, Any], policy: str) -> str:
    alone, foretold = figures([day], policy), day["policies"][policy]["foretold"]
    shares = f"{alone['on_time_share']:.1%} / {foretold['on_time_share']:.1%}"
    return f"{alone['instances']:.2f} / {foretold['instances']:.2f}, {shares}"


def days_lines(days: list[dict[str, Any]]) -> list[str]:
    """Markdown: what each policy paid on each day, and what it saved on all of them; nothing for a single day."""
    if len(days) < 2:
        return []
    names = list(dict.fromkeys(name for one in days for name in one["policies"]))
    every_day = ("all its days: fewer instance-seconds", "on time, points")
    longest = max(len(one["load"]) for one in days)
    numbers = [one["day"] for one in days]
    dated = [(one["day"], one["run"]["date"]) for one in days]
    named = [
        f"day {one['day']}"
        + (f" on {one['run']['date']}" if numbers.count(one["day"]) > 1 else "")
        + (f", {dated[:place].count(dated[place]) + 1}" if dated.count(dated[place]) > 1 else "")
        + (f", {len(one['load'])} s" if len(one["load"]) < longest else "")
        for place, one in enumerate(days)
    ]
    heads = ["policy", *named, *every_day]
    lines = [
        "#### Every day that was run",
        "",
        "Instances paid and share on time of a run a day, measured / predicted; differences to "
        f"{days[0]['reference']} on the same days, with 95 % intervals over segments of 5 s.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
    ]
    for name in names:
        cells, ran = [name], [one for one in days if name in one["policies"]]
        for one in days:
            cells.append(_cell(one, name) if one in ran else "")
        every = figures(ran, name)
        saved, over = every["saved"], {key: 100 * value for key, value in every["on_time_over"].items()}
        cells += [
            "{mean:.1%} [{low:.1%}, {high:.1%}]".format(**saved),
            "{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(**over),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    runs = list(dict.fromkeys((one["run"]["date"], one["run"]["command"]) for one in days))
    return [*lines, "", *(f"- {date}: `{command}`" for date, command in runs)]
