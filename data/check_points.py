"""Comparison of the serving model with measured end-to-end points, with the very functions that make the table.

Data flow: CSV of measured points (columns of `data/measured/llama31_8b_h100_e2e.csv`) -> `check` -> errors of TPOT.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from data.serving_model import RUNTIME_GB, Knobs, Load, colocated_tpot_ms
from data.step_time import StepTimes, model_of_alias, systems, version_or_default

COLUMNS = ("system", "backend", "model_path", "isl", "osl", "batch_size", "silicon_tpot_ms")
CACHE_SHARE = (
    0.9  # free memory given to the KV cache: `free_gpu_memory_fraction` of TensorRT-LLM, about vLLM's default too
)


class PointsError(ValueError):
    """The file of measured points cannot be used; the message names the line and what is wanted."""


def read_points(path: Path) -> list[dict[str, Any]]:
    """Rows of the CSV with numbers parsed (further columns are kept as text).

    Raises:
        PointsError: no such file, a missing column, no rows, or a cell that is not a positive number.
    """
    if not path.is_file():
        raise PointsError(f"no file {path}")
    with path.open(newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if missing:
            raise PointsError(f"{path} lacks the columns {', '.join(missing)}; wanted: {', '.join(COLUMNS)}")
        rows: list[dict[str, Any]] = list(reader)
    if not rows:
        raise PointsError(f"{path} has no rows")
    for line, row in enumerate(rows, start=2):
        for column in ("isl", "osl", "batch_size", "silicon_tpot_ms"):
            try:
                value = float(row[column])
            except (TypeError, ValueError):
                value = float("nan")
            if not (0 < value < float("inf")):
                raise PointsError(f"{path} line {line}: {column} is {row[column]!r}; wanted a positive number")
            row[column] = value
    return rows


def running_requests(times: StepTimes, asked: float, prompt: float, output: float) -> float:
    """Requests that really run when `asked` are offered: as many whole contexts as the cache has room for.

    Neither engine runs a request that it may have to evict (TensorRT-LLM's GUARANTEED_NO_EVICT; vLLM would preempt it).
    """
    free = systems()[times.system]["memory_gb"] * 1e9 - times.arch.weight_bytes("FP16") - RUNTIME_GB * 1e9
    room = CACHE_SHARE * free // ((prompt + output) * times.arch.kv_bytes_per_token)
    return max(1.0, min(asked, room))


def predicted_tpot_ms(row: dict[str, Any]) -> float:
    """TPOT of one measured row: 16-bit weights, whole cache, no speculation; kernels of the row's engine.

    Raises:
        UnknownNameError: system or model has no entry.
        KernelDataError: the engine has none.
    """
    system, engine = row["system"], row["backend"]
    model = model_of_alias(row["model_path"])
    known = system in systems() and engine in systems()[system]["versions"]
    version = version_or_default(system, engine, row.get("backend_version") or "") if known else None
    times = StepTimes.load(system, model, engine, version)
    batch = running_requests(times, row["batch_size"], row["isl"], row["osl"])
    return colocated_tpot_ms(times, Knobs(batch, row["isl"]), Load(output=row["osl"]))


def check(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Number of points, median and 90th percentile of |predicted / measured - 1| (shares: 0.017 is 1.7 %)."""
    errors = np.abs([predicted_tpot_ms(r) / r["silicon_tpot_ms"] - 1 for r in rows])
    return {
        "points": len(rows),
        "tpot_error_median": float(np.median(errors)),
        "tpot_error_p90": float(np.quantile(errors, 0.9)),
    }
