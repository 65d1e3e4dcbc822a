"""The tables of ``fleet-headroom``: Markdown and JSON of what was measured.

``measure's dictionary -> rows -> files``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.fleet_search import WANTED


def setting_words(part: Mapping[str, Any]) -> str:
    """What a setting is called in a table: clock, start, how many days or windows."""
    unit = "days" if part["hours"] > 23.0 else f"windows of {part['hours']:g} h, of days apart"
    return f"x{part['clock']:g}, start {part['start_s']:g} s, {part['days']} {unit}"


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of a task: every row in every setting that was measured."""
    parts = found["parts"] if "parts" in found else [found]
    several = f" ({'; '.join(setting_words(part) for part in parts)})"
    heads = (f"GPUs at 99 %, {setting_words(part)} | over best fixed | best setting within 99 %" for part in parts)
    lines = [
        f"{found['task']}: mean GPUs at 99 % of requests on time, held-out days, 95 % interval over days{several}",
        "",
        f"| rule | {' | '.join(heads)} |",
        "|" + " --- |" * (1 + 3 * len(parts)),
    ]
    by_rule = [{row["rule"]: row for row in part["rows"]} for part in parts]
    for name in by_rule[0]:
        cells = [cell for rows in by_rule for cell in (_cells(rows[name]) if name in rows else ("", "", ""))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    head = " | ".join(f"on time, {setting_words(part)} | worst day | mean GPUs | changes an hour" for part in parts)
    lines += ["", f"| rule at its defaults | {head} |", "|" + " --- |" * (1 + 4 * len(parts))]
    for rows in zip(*(part["defaults"] for part in parts), strict=True):
        cells = [
            f"{row['on_time_share']:.2%} | {row['worst_day']:.2%} | {row['gpus']:.2f} | {row['changes_an_hour']:.1f}"
            for row in rows
        ]
        lines.append(f"| {rows[0]['rule']} | " + " | ".join(cells) + " |")
    failures = parts[0]["failures"]
    if not failures:
        return "\n".join(lines)
    lines += [
        "",
        "| rule | changes an hour at constant load (at most 6) | over need in a burst (at most 1) | s until a step is "
        "met | over need under a hopeless objective (at most 1) | on time with an empty cache (at least 95 %) | "
        "fails |",
        "|" + " --- |" * 7,
    ]
    for name, row in failures.items():
        lines.append(
            f"| {name} | {row['changes_an_hour']:.1f} | {row['burst_over']:+.0f} | {row['reaction_s']:.0f} "
            f"({row['step_on_time']:.1%}) | {row['hopeless_over']:+.1f} | {row['empty_cache_on_time']:.1%} | "
            f"{', '.join(row['failed']) or 'none'} |"
        )
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """GPUs at 99 %, what they are over the best fixed size, and the cheapest setting within 99 % (the closest where
    there is none)."""
    gpus, over = row["gpus"], row["over_fixed"]
    inside = [s for s in row["settings"] if s["on_time_share"] >= WANTED]
    best = min(inside, key=lambda s: s["gpus"]) if inside else max(row["settings"], key=lambda s: s["on_time_share"])
    label = best["setting"] if isinstance(best["setting"], str) else f"{best['setting']:g}"
    return (
        "not reached" if gpus is None else f"{gpus['mean']:.2f} [{gpus['low']:.2f}, {gpus['high']:.2f}]",
        "" if over is None else f"{over:+.1%}",
        f"{label}: {best['on_time_share']:.2%}, {best['changes_an_hour']:.1f} changes/h",
    )


def write(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """JSON and Markdown of a task; returns the files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(".json"), stem.with_suffix(".md")]
    paths[0].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(found) + "\n", encoding="utf-8")
    return paths


def read(path: Path) -> dict[str, Any]:
    """What ``write`` wrote of both settings.

    Raises:
        FileNotFoundError, ValueError: no such file, or none of ``fleet-headroom`` with both settings.
    """
    measured = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(measured, dict) or not {"task", "parts"} <= set(measured):
        raise ValueError(f"{path}: not what fleet-headroom writes of both settings (without --windows 0)")
    return measured
