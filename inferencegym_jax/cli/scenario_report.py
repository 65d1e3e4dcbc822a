"""A live scenario's result for people: a table of measured beside predicted, the verdict in sentences, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from inferencegym_jax.figure_style import FAINT, INK, LINES, STYLE, tidy

COLUMNS = {
    "on_time_share": ("on time", "{:.1%}"),
    "instances": ("instances paid", "{:.2f}"),
    "score": ("score", "{:.3f}"),
}
SAVED, GIVEN_UP = 0.15, 0.02  # of the instance-seconds, and of the share on time: what adaptive control is held to
POINTS = 0.05  # that a foretold share on time may be off
SMOOTHED_S = 10


def _cell(row: dict[str, Any], form: str) -> str:
    return f"{form.format(row['mean'])} [{form.format(row['low'])}, {form.format(row['high'])}]"


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table's cells as text, a row a policy: measured with its 95 % interval / predicted, and the gap in points."""
    table_rows = []
    for name, row in results["measured"].items():
        cells = [name]
        for key, (_, form) in COLUMNS.items():
            predicted = form.format(results["predicted"][name][key]["mean"])
            cells.append(f"{_cell(row[key], form)} / {predicted}")
        cells.append(f"{100 * results['gap'][name]:+.1f}")
        table_rows.append(cells)
    return table_rows


HEADS = ("policy", *(title for title, _ in COLUMNS.values()), "gap on time, points")


def scenario_table(results: dict[str, Any]) -> Table:
    """Rows of policies: measured [95 % interval] / predicted."""
    table = Table(title=f"{results['scenario']}: measured [95 % interval] / predicted")
    for i, head in enumerate(HEADS):
        table.add_column(head, justify="left" if i == 0 else "right", overflow="fold")
    for cells in rows(results):
        table.add_row(*cells)
    return table


def markdown(results: dict[str, Any]) -> list[str]:
    """The same table in Markdown, and the verdict below it."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows(results)]
    return [*lines, "", *(f"- {line}" for line in verdict(results))]


def verdict(results: dict[str, Any]) -> list[str]:
    """What the scenario says of adaptive control, of the ranks and of the prediction; sentences."""
    reference, fixed = results["how"]["reference"], results["how"]["fixed"]
    measured, predicted = results["measured"], results["predicted"]
    lines = []
    if results["scenario"] == "second-instance":
        for name in measured:
            if name not in fixed:
                lines.append(_against_two(name, reference, measured[name], predicted[name]))
    else:
        best = max((name for name in measured if name not in fixed), default=None, key=lambda n: _score(measured[n]))
        if best is not None:
            over, told = measured[best]["over_reference"]["score"], predicted[best]["over_reference"]["score"]
            way = "beats" if over["low"] > 0 else "loses to" if over["high"] < 0 else "is not told apart from"
            lines.append(
                f"{best} {way} {reference}: score {over['mean']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}], "
                f"predicted {told['mean']:+.3f}."
            )
    order = results["ranking"]
    if order["measured"] == order["predicted"]:
        lines.append(f"Ranks by score as predicted: {', '.join(order['measured'])}.")
    else:
        apart = misplaced(results)
        difference = (
            f"apart beyond their intervals: {'; '.join(' and '.join(x) for x in apart)}"
            if apart
            else ("within their intervals")
        )
        lines.append(
            f"Ranks by score: {', '.join(order['measured'])}; predicted: {', '.join(order['predicted'])}; {difference}."
        )
    worst = max(results["gap"], key=lambda name: abs(results["gap"][name]))
    within = "within" if abs(results["gap"][worst]) <= POINTS else "beyond"
    lines.append(
        f"Share on time, predicted less measured: at most {100 * results['gap'][worst]:+.1f} points ({worst}), "
        f"{within} the target of {100 * POINTS:g}."
    )
    written = results["how"]["written_down"]
    if written is not None:
        how = results["how"]
        lines.append(
            f"Shorter than written down: {how['repeats']} x {how['seconds']} s of each policy in place of "
            f"{written['repeats']} x {written['seconds']} s."
        )
    if missing := results["how"].get("not_run"):
        lines.append(f"Not run: {', '.join(missing)}.")
    return lines


def _score(row: dict[str, Any]) -> float:
    return float(row["score"]["mean"])


def _against_two(name: str, reference: str, measured: dict[str, Any], predicted: dict[str, Any]) -> str:
    over, told = measured["over_reference"], predicted["over_reference"]
    saved, late = over["instance_seconds_saved"], over["on_time_share"]
    is_met = saved["low"] >= SAVED and late["low"] >= -GIVEN_UP
    is_met_on_average = saved["mean"] >= SAVED and late["mean"] >= -GIVEN_UP
    met = "met" if is_met else "met by the means, not by the intervals" if is_met_on_average else "missed"
    return (
        f"{name} against {reference}: {saved['mean']:.1%} [{saved['low']:.1%}, {saved['high']:.1%}] fewer "
        f"instance-seconds (predicted {told['instance_seconds_saved']['mean']:.1%}), on time {100 * late['mean']:+.1f} "
        f"[{100 * late['low']:+.1f}, {100 * late['high']:+.1f}] points (predicted "
        f"{100 * told['on_time_share']['mean']:+.1f}); {SAVED:.0%} fewer at {100 * GIVEN_UP:g} points: {met}."
    )


def misplaced(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of policies that rank otherwise than predicted and whose measured intervals of the score are apart."""
    order, told = results["ranking"]["measured"], results["ranking"]["predicted"]
    pairs = []
    for i, first in enumerate(order):
        for second in order[i + 1 :]:
            a, b = (results["measured"][name]["score"] for name in (first, second))
            if told.index(first) > told.index(second) and (a["low"] > b["high"] or b["low"] > a["high"]):
                pairs.append((first, second))
    return pairs


def plot_scenario(results: dict[str, Any], path: Path, repeat: int = 0) -> None:
    """``picture`` in a file; PNG or SVG by the suffix."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        picture(results, Figure(figsize=(8, 6), layout="constrained"), repeat).savefig(path, dpi=150)


def picture(results: dict[str, Any], figure: Any, repeat: int = 0) -> Any:
    """Load, instances and share on time over one repeat, each policy, on an empty figure of matplotlib.

    Args:
        results: of a scenario.
        figure: an empty one.
        repeat: which of them.

    Returns:
        The figure.
    """
    shown = results["timeline"][repeat]
    load, policies = np.asarray(shown["load"]), shown["policies"]
    seconds = np.arange(len(load))
    axes = figure.subplots(3, 1, sharex=True)
    axes[0].fill_between(seconds, _over(load, np.ones(len(load))), color=FAINT, lw=0)
    axes[0].axhline(1.0, color=INK, lw=0.7, ls="--")
    axes[0].set_ylabel("load\n(of one instance)")
    for i, (name, one) in enumerate(policies.items()):
        colour, on_time = LINES[i % len(LINES)], results["measured"][name]["on_time_share"]["mean"]
        label = f"{name}: {results['measured'][name]['instances']['mean']:.2f} instances, {100 * on_time:.1f} % on time"
        paid = np.asarray(one["instances"]) + 0.02 * i  # beside each other where they are the same
        axes[1].step(np.arange(len(paid)), paid, where="post", color=colour, label=label)
        axes[2].plot(seconds, 100 * _over(np.asarray(one["on_time"]), np.asarray(one["asked"])), color=colour)
    axes[1].set_ylabel("instances paid")
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(min(0.8, low), max(2.1, high) + 0.8)  # room for the names
    axes[1].set_yticks([1, 2])
    axes[1].legend(fontsize=7, ncols=2, loc="upper left")
    axes[2].set_ylabel(f"on time, %\n(of {SMOOTHED_S} s)")
    axes[2].set_ylim(-3, 103)
    axes[2].set_xlabel("second of the run; dashed: what one instance can serve")
    for axis in axes:
        tidy(axis)
    return figure


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Ratio of sums over the last ``SMOOTHED_S`` seconds; NaN where the whole is 0."""
    window = np.ones(SMOOTHED_S)
    sums = [np.convolve(x, window)[: len(x)] for x in (part, whole)]
    return np.divide(sums[0], sums[1], out=np.full(len(part), np.nan), where=sums[1] > 0)
