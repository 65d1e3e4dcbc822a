"""``inferencegym validate`` on closed-loop points: TPOT error by model, system and backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inferencegym_jax.cli.output import answers, escape, notices, print_json, sentences, table, working
from inferencegym_jax.fidelity.closed_loop_points import ClosedLoopPoint, compared, read_points, summary
from inferencegym_jax.hardware.compiled_engine import require_package
from inferencegym_jax.hardware.coverage import WORST_MEDIAN
from inferencegym_jax.hardware.gpus import gpu_named
from inferencegym_jax.hardware.model_files import plain_name


def validate_points(path: Path, model: str | None, system: str | None, json_output: bool, out: Path | None) -> None:
    """Predict every point of a file and print the errors; ``out`` keeps them as ``table list`` reads them."""
    with sentences():
        require_package()
        points = [point for point in read_points(path) if _wanted(point, model, system)]
        if not points:
            raise ValueError(f"{path}: no points of {model or 'any model'} on {system or 'any system'}")
        with working(f"predicting {len(points):,} points"):
            rows, left = compared(points)
        if not rows:
            raise ValueError(f"{path}: no point could be predicted; {next(iter(left))}")
    summaries = summary(rows)
    if out is not None:
        write(out, path, summaries, left)
    if json_output:
        print_json({"summary": summaries, "left_out": left, "points": rows})
        return
    shown = [
        (
            r["model"],
            r["system"],
            r["backend"],
            r["points"],
            f"{r['tpot_error_median']:.1%}",
            f"{r['tpot_error_p90']:.1%}",
            f"{r['tpot_error_signed_median']:+.1%}",
            "not validated" if r["tpot_error_median"] > WORST_MEDIAN else "",
        )
        for r in summaries
    ]
    heads = ("model", "system", "backend", "points", "TPOT error, median", "p90", "signed", "")
    answers().print(table(heads, shown, 3))
    answers().print(f"{len(rows):,} of {len(points):,} points predicted; nothing is fitted to them")
    for reason, count in sorted(left.items(), key=lambda item: -item[1]):
        notices().print(f"left out, {count}: {escape(reason)}", soft_wrap=True)


def _wanted(point: ClosedLoopPoint, model: str | None, system: str | None) -> bool:
    same_model = model is None or plain_name(model) == plain_name(point.engine.model)
    return same_model and (system is None or gpu_named(system).system == point.engine.system)


def write(out: Path, path: Path, summaries: list[dict[str, Any]], left: dict[str, int]) -> None:
    """Keep the errors, and the causes that the file already names for the same rows."""
    before = json.loads(out.read_text()) if out.is_file() else {}
    causes = before.get("causes", [])
    for row in summaries:
        for cause in causes:
            if all(row[key] in values for key, values in cause["of"].items()):
                row["cause"] = cause["cause"]
    content = {
        "made_by": f"inferencegym validate {path.name} --out data/table_accuracy.json",
        "left_out_points": sum(left.values()),
        "causes": causes,
        "rows": summaries,
    }
    lines = [f" {json.dumps(key)}: {_lines(value)}" for key, value in content.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _lines(value: Any) -> str:
    """A list with one item a line; anything else as JSON has it."""
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"
