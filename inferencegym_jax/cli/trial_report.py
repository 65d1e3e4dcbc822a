"""A trial's result for people: a table of measured beside predicted, the verdict in sentences, and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from inferencegym_jax.live.trial.outcome import ranking

COLUMNS = {
    "goodput": ("goodput, requests/s", "{:.2f}"),
    "ttft_mean_ms": ("mean TTFT, ms", "{:.0f}"),
    "ttft_p99_ms": ("p99 TTFT, ms", "{:.0f}"),
    "itl_ms": ("mean ITL, ms", "{:.1f}"),
    "violation_share": ("SLO violations", "{:.1%}"),
    "goodput_gain": ("goodput gained", "{:+.2f}"),
}


def trial_table(results: dict[str, Any]) -> Table:
    """Rows of policies; every cell is measured (95 % interval), and what was predicted."""
    table = Table(title="measured [95 % interval] / predicted")
    table.add_column("policy", overflow="fold", min_width=min(max(map(len, results["measured"])), 16))
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right")
    billed = results.get("instance_seconds", {}) if results.get("how", {}).get("spare") else {}
    if billed:
        table.add_column("instance-seconds a run", justify="right")
    for name, row in results["measured"].items():
        cells = []
        for key, (_, form) in COLUMNS.items():
            value = row[key]
            text = f"{form.format(value['mean'])} [{form.format(value['low'])}, {form.format(value['high'])}]"
            if results["predicted"]:
                text += f" / {form.format(results['predicted'][name][key]['mean'])}"
            cells.append(text)
        if billed:
            cells.append(f"{billed[name]['measured']:.0f} / {billed[name]['predicted']:.0f}")
        table.add_row(name, *cells)
    return table


def verdict(results: dict[str, Any], reference: str) -> list[str]:
    """Which policy served most within the objective, whether that is more than chance, and whether it was foretold."""
    measured = {name: row["goodput"]["mean"] for name, row in results["measured"].items()}
    order = ranking(measured)
    best = order[0]
    gain = results["measured"][best]["goodput_gain"]
    if len(measured) > 1 and len(set(measured.values())) == 1:
        same = f"All policies have the same goodput, {measured[best]:.2f} requests/s"
        return [f"{same}: another load or objective may tell them apart."]
    lines = []
    if best == reference:
        lines.append(f"{reference} has the highest goodput: no policy here serves more within the objective.")
    else:
        clear = "clear of 0" if gain["low"] > 0 else "not clear of 0"
        lines.append(
            f"{best} has the highest goodput, {gain['mean']:+.2f} requests/s over {reference} "
            f"(95 % interval {gain['low']:+.2f} to {gain['high']:+.2f}, {clear})."
        )
    if results["predicted"]:
        predicted = {name: row["goodput"]["mean"] for name, row in results["predicted"].items()}
        foretold = ranking(predicted)
        if foretold == order:
            lines.append(f"The policies rank as predicted: {', '.join(order)}.")
        else:
            swapped = [
                pair
                for pair in zip(order[:-1], order[1:], strict=True)
                if foretold.index(pair[0]) > foretold.index(pair[1])
            ]
            apart = [pair for pair in swapped if not _overlap(results, *pair)]
            lines.append(f"Measured order: {', '.join(order)}; predicted: {', '.join(foretold)}.")
            lines.append(
                "The difference lies between policies whose intervals overlap."
                if not apart
                else f"Misplaced beyond their intervals: {', '.join(' and '.join(pair) for pair in apart)}."
            )
    return lines


def _overlap(results: dict[str, Any], first: str, second: str) -> bool:
    a, b = (results["measured"][name]["goodput"] for name in (first, second))
    return a["low"] <= b["high"] and b["low"] <= a["high"]


def plot_trial(results: dict[str, Any], path: Path) -> None:
    """``picture`` in a file; PNG or SVG by the suffix."""
    import matplotlib
    from matplotlib.figure import Figure

    from inferencegym_jax.figure_style import STYLE

    with matplotlib.rc_context(STYLE):
        picture(results, Figure(figsize=(10.5, 3.9))).savefig(path, dpi=150)


def picture(results: dict[str, Any], figure: Any) -> Any:
    """Predicted against measured, a point a policy, with the measured interval, on an empty figure of matplotlib.

    Args:
        results: of a trial.
        figure: an empty one.

    Returns:
        The figure.
    """
    from inferencegym_jax.figure_style import FAINT, LINES, SOFT, readable, tidy

    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.2, top=0.78, wspace=0.34)
    for axis, key in zip(figure.subplots(1, 3), ("goodput", "ttft_mean_ms", "itl_ms"), strict=True):
        values: list[float] = []
        for i, (name, row) in enumerate(results["measured"].items()):
            measured, predicted = row[key], results["predicted"][name][key]["mean"]
            spread = [[max(measured["mean"] - measured["low"], 0.0)], [max(measured["high"] - measured["mean"], 0.0)]]
            drawn = {"fmt": "o", "markersize": 4, "capsize": 2, "lw": 1, "color": LINES[i % len(LINES)]}
            axis.errorbar(predicted, measured["mean"], yerr=spread, label=readable(name), **drawn)
            values += [predicted, measured["low"], measured["high"]]
        low, high = min(values), max(values)
        axis.plot([low, high], [low, high], color=FAINT, linewidth=1)
        title, unit = COLUMNS[key][0].rsplit(", ", 1)
        axis.set_xlabel(f"predicted {title} ({unit})")
        axis.set_ylabel(f"measured {title} ({unit})")
        tidy(axis)
        axis.locator_params(axis="x", nbins=5)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.06, 0.9), ncols=6)
    figure.suptitle("Prediction and measurement, 95 % intervals", x=0.07, y=0.97, ha="left", fontsize=10)
    figure.text(0.01, 0.015, "inferencegym trial --plot", fontsize=6.5, color=SOFT, family="monospace")
    return figure
