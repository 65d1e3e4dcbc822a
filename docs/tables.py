"""Tables of the pages that have a source in the code or the data: `python docs/tables.py` writes them anew.

Each stands between ``<!-- name: ... -->`` and ``<!-- end -->``. With ``--check`` nothing is written, and the exit code
says whether they are up to date.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from inferencegym_jax.models import KNOBS, OBSERVATION, Knob  # noqa: E402
from inferencegym_jax.tasks import shipped_specs  # noqa: E402

TOKENS = (1, 32, 128, 512, 2048)  # of the table of matrix products


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def knobs() -> str:
    """The five knobs, from ``models.KNOBS``."""
    rows = [(f"`{name}`", values(knob), str(knob.default).lower(), knob.description) for name, knob in KNOBS.items()]
    return table(("knob", "values", "default", "meaning"), rows)


def values(knob: Knob) -> str:
    """The allowed values of a knob, short."""
    if knob.kind == "choice":
        return ", ".join(map(str, knob.choices))
    return "true or false" if knob.kind == "bool" else f"{knob.low:g} to {knob.high:g}"


def observation() -> str:
    """The fields of an observation, from ``models.OBSERVATION``."""
    rows = [
        (f"`{name}`", f"{field.low:g} to {field.high:g}".replace("to inf", "up"), field.unit, field.description)
        for name, field in OBSERVATION.items()
    ]
    return table(("field", "range", "unit", "meaning"), rows)


def calibration() -> str:
    """Baseline and best static action of each task, from ``data/calibration.json``."""
    tasks = json.loads((ROOT / "data" / "calibration.json").read_text())["tasks"]
    rows = []
    for name, entry in tasks.items():
        best, base = entry["best_static"], entry["baseline"]
        chosen = {knob: value for knob, value in best["action"].items() if value != KNOBS[knob].default}
        action = ", ".join(f"{knob} {shown(value)}" for knob, value in chosen.items()) or "the default action"
        scores = (f"{base['score_seed_0']:.3f}", f"{base['mean_score']:.3f}", f"{best['mean_score']:.3f}")
        rows.append((f"{shipped_specs()[name].id} {name}", *scores, action))
    return table(("task", "baseline, seed 0", "baseline, mean", "best static, mean", "best static action"), rows)


def shown(value: float | bool) -> str:
    """A knob's value as a reader writes it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def products() -> str:
    """Matrix products of an iteration by weight format, from the engine profile of the shipped table."""
    profile = json.loads((ROOT / "data" / "traces_llama3_8b.engine.json").read_text())["products_ms"]
    columns = [profile["tokens"].index(tokens) for tokens in TOKENS]
    rows = [
        (f"{tokens:,}", *(f"{tier[i]:.1f}" for tier in profile["ms"]))
        for tokens, i in zip(TOKENS, columns, strict=True)
    ]
    return table(("tokens in the iteration", "FP16", "INT8 (W8A8)", "INT4 (weights only)"), rows)


def headroom(name: str) -> str:
    """What control is worth on a task, as ``python -m training headroom`` found it, kept in ``docs/headroom``."""
    found = json.loads((ROOT / "docs" / "headroom" / f"{name}.json").read_text())
    head = ("policy", "score", "over best static", "worst", "over best reactive", "normalised", "G", "S")
    head += ("GPU-seconds", "switches")
    rows = []
    for row in found["rows"]:
        paired, beyond = row["paired"], row.get("over_reactive")
        cells = (
            row["policy"] if row["policy"] != "oracle" else "oracle, at least",
            f"{row['score']['mean']:.3f}",
            f"{paired['mean']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]",
            f"{row['worst']['paired']:+.3f}",
            "" if beyond is None else f"{beyond['mean']:+.3f} [{beyond['low']:+.3f}, {beyond['high']:+.3f}]",
            "" if row["normalised"] is None else f"{row['normalised']:.2f}",
            *(f"{row[part]['mean']:.3f}" for part in ("goodput_share", "on_time_share")),
            *(f"{row[part]['mean']:,.0f}" for part in ("gpu_seconds", "switches")),
        )
        rows.append(cells)
    return f"{found['episodes']} held-out episodes, mean [95 % interval].\n\n{table(head, rows)}"


def worth() -> str:
    """What the best controller and the oracle win on the tasks that were measured."""
    head = ("task", "best static", "best reactive", "worst", "with true rates", "PPO", "worst", "oracle, at least")
    rows = []
    for path in sorted((ROOT / "docs" / "headroom").glob("task*.json"), key=lambda path: (len(path.stem), path.stem)):
        found = json.loads(path.read_text())
        by_name = {row["policy"]: row for row in found["rows"]}

        def over(name: str, rows: dict[str, Any] = by_name) -> str:
            if name not in rows:
                return ""
            paired = rows[name]["paired"]
            return f"{paired['mean']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]"

        def worst(name: str, rows: dict[str, Any] = by_name) -> str:
            return f"{rows[name]['worst']['paired']:+.3f}" if name in rows else ""

        what = path.stem.removeprefix("task").replace("-free", ", switching free")
        learned = "PPO" if "PPO" in by_name else "PPO with memory"
        cells = (
            f"{what} {found['title']}",
            f"{by_name['best static']['score']['mean']:.3f}",
            over("best reactive"),
            worst("best reactive"),
            over("best reactive, true rates"),
            over(learned),
            worst(learned),
            over("oracle"),
        )
        rows.append(cells)
    return table(head, rows)


def elsewhere() -> str:
    """The general policy where it was never trained, from ``docs/headroom/transfer.json``."""
    from training.transfer import markdown

    found = json.loads((ROOT / "docs" / "headroom" / "transfer.json").read_text())
    return f"{found['episodes']} held-out episodes of each, mean [95 % interval].\n\n{markdown(found)}"


def by_draw() -> str:
    """What the learned policies win on task 8 over the controller tuned once, by what the episode drew."""
    found = json.loads((ROOT / "docs" / "headroom" / "task8.json").read_text())
    learned = {row["policy"]: row for row in found["rows"] if "over_reactive_by_draw" in row}
    first = next(iter(learned.values()))
    rows = []
    for group in first["over_reactive_by_draw"]:
        cells = [group, str(first["over_reactive_by_draw"][group]["episodes"])]
        for row in learned.values():
            cells += _win(row["over_reactive_by_draw"][group])
        rows.append(cells)
    rows.append(
        ["all", str(found["episodes"]), *(cell for row in learned.values() for cell in _win(row["over_reactive"]))]
    )
    return table(("episodes", "number", *(head for name in learned for head in (name, "median", "worst"))), rows)


def _win(over: dict[str, float]) -> list[str]:
    span = f"{over['mean']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}]"
    return [span, f"{over['median']:+.3f}", f"{over['worst']:+.3f}"]


def conditions() -> str:
    """The general policy beside the controller tuned for each condition, from ``docs/headroom/conditions.json``."""
    from training.conditions import markdown

    found = json.loads((ROOT / "docs" / "headroom" / "conditions.json").read_text())
    head = f"{len(found['rows'])} conditions, {found['episodes']} held-out episodes of each, mean [95 % interval]."
    return f"{head}\n\n{markdown(found)}"


def ablated() -> str:
    """What delays, the clock, a forecast and memory are worth, from ``docs/headroom/ablations.json``."""
    from training.ablations import markdown, read

    return markdown(read(ROOT / "docs" / "headroom" / "ablations.json"))


def fit() -> str:
    """Hours of the log of task 7's traffic beside those of the model, from ``data/traffic_pools.json``."""
    found = json.loads((ROOT / "data" / "traffic_pools.json").read_text())["m-large"]["fit"]
    head = ("GPUs needed in an hour", *(f"{q} %" if q < 100 else "most" for q in found["quantiles"]))
    rows = [(who, *(f"{x:.2f}" for x in found[f"gpus_by_hour_{who}"])) for who in ("log", "model")]
    return table(head, rows)


WORTH: dict[str, Callable[[], str]] = {
    f"headroom{name.replace('-', '')}": functools.partial(headroom, f"task{name}") for name in ("6", "7", "72", "8")
}
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/second_gpu.md": {"fit": fit} | {key: WORTH[key] for key in WORTH if key.startswith("headroom7")},
    "docs/training.md": {"worth": worth, "ablations": ablated},
    "docs/drafts_by_load.md": {"headroom6": WORTH["headroom6"]},
    "docs/one_for_all.md": {
        "headroom8": WORTH["headroom8"],
        "drawn8": by_draw,
        "conditions": conditions,
        "transfer": elsewhere,
    },
    "ENVIRONMENT.md": {"knobs": knobs, "observation": observation, "calibration": calibration},
    "docs/physics.md": {"products": products},
}


def filled(name: str) -> str:
    """A page with its tables made anew."""
    page = (ROOT / name).read_text(encoding="utf-8")
    for key, make in TABLES[name].items():
        pattern = rf"(<!-- {key}: [^\n]*-->\n)(.*?)(\n?<!-- end -->)"
        page, count = re.subn(
            pattern, lambda found, make=make: f"{found[1]}\n{make()}\n\n<!-- end -->", page, flags=re.S
        )
        if count != 1:
            raise ValueError(f"{name}: {count} places for the table {key}; there must be one")
    return page


def main() -> int:
    """Write the tables, or compare them with what is there."""
    stale = [name for name in TABLES if filled(name) != (ROOT / name).read_text(encoding="utf-8")]
    if "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}; run python docs/tables.py" if stale else "up to date")
        return 1 if stale else 0
    for name in stale:
        (ROOT / name).write_text(filled(name), encoding="utf-8")
        print(f"wrote the tables of {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
