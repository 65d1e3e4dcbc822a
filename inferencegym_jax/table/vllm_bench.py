"""A latency table from the result files of ``vllm bench serve --save-result``.

``folder of JSON -> BenchPoint -> columns -> table.table_from_columns``. One file is one closed-loop run:
``--max-concurrency`` is the batch size, and the mean prompt length names the prompt bucket. What the benchmark cannot
know a run states with ``--metadata``, which vLLM writes into the file: ``spec_length``, ``acceptance`` (of the drafts),
``quant_tier``, ``prefill_disagg``, ``kv_budget``, ``gpu_mem_gb``, and for open-loop tasks ``memory_gb``,
``weights_gb``, ``kv_bytes_per_token``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from inferencegym_jax.models import KNOBS, finite_number, shown
from inferencegym_jax.table.bench_files import (
    MOST_FAILED,
    PARALLEL,
    SGLANG,
    VLLM,
    failed_share,
    told,
    tool_of,
)
from inferencegym_jax.table.latency_table import (
    KEYS,
    METRICS,
    PROFILE_KEY,
    PROMPT_LENGTHS,
    LatencyTable,
    TableError,
    profile_path,
    table_from_columns,
)

POOL = ("memory_gb", "weights_gb", "kv_bytes_per_token", "kv_cache_tokens")  # what open-loop tasks need besides
STATED = ("spec_length", "quant_tier", "prefill_disagg", "kv_budget")
MEASURED = ("median_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "output_throughput", "completed", "total_input_tokens")


@dataclass(frozen=True)
class BenchPoint:
    """One run.

    Attributes:
        file: its name.
        keys: the table's key columns.
        metrics: median and p99 TTFT (ms), mean TPOT (ms), output tokens/s.
        prompt, output: mean tokens a request.
        gpu_mem_gb, acceptance: where the run states them.
        gpus: GPUs in use, 2 where prefill runs on its own.
        weight: completed requests.
        model: as the run names it.
        pool: of ``POOL``, what the run states.
    """

    file: str
    keys: dict[str, float]
    metrics: dict[str, float]
    prompt: float
    output: float
    gpu_mem_gb: float | None
    acceptance: float | None
    gpus: float
    weight: float
    model: str
    pool: dict[str, float] = field(default_factory=dict[str, float])


def read_folder(folder: str | Path) -> list[BenchPoint]:
    """Every result file of a folder and the folders in it.

    Raises:
        FileNotFoundError: no such folder.
        TableError: no result in it, or a file that lacks a field; file and field are named.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder = {str(root)!r}: no such folder")
    files = sorted(path for ending in ("*.json", "*.jsonl") for path in root.rglob(ending))
    if not files:
        raise TableError(f"{root}: no .json files; run `vllm bench serve --save-result --result-dir {root}` first")
    return [point for file in files for point in read_points(file)]


def read_points(file: Path) -> list[BenchPoint]:
    """The runs of one result file: one of vLLM (``--append-result`` writes one a line), or SGLang's, one a line.

    Raises:
        TableError: not JSON, of another tool (it is named), a run that is no closed loop of one engine on one GPU, or a
            field is missing or no usable number.
    """
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
        try:
            reports = json.loads(text)
        except ValueError:
            reports = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (UnicodeDecodeError, ValueError) as error:
        raise TableError(f"{file.name}: not a JSON result of vllm bench serve: {error}") from None
    reports = reports if isinstance(reports, list) else [reports]
    if not reports:
        raise TableError(f"{file.name}: no runs")
    return [read_point(file, report) for report in reports]


def _check_run(file: Path, report: Mapping[str, Any]) -> None:
    """Refuse what a table of one engine's closed loop cannot hold."""
    tool = tool_of(report)
    if tool not in (VLLM, SGLANG, None):
        raise TableError(
            f"{file.name}: a result of {tool}; wanted: those of `vllm bench serve --max-concurrency N --save-result` or"
            " of sglang.bench_serving"
        )
    failed = failed_share(report)
    if failed > MOST_FAILED:
        raise TableError(f"{file.name}: {failed:.0%} of its requests failed; wanted: at most {MOST_FAILED:.0%}")
    for name in (name for names in PARALLEL.values() for name in names):
        value = told(report, name)
        most = 2 if "gpu" in name and report.get("prefill_disagg") is not None else 1  # prefill on a GPU of its own
        if value is not None and _stated(file, name, value) > most:
            raise TableError(f"{file.name}: {name} = {shown(value)}; a table is of one GPU an engine, wanted: {most}")
    rate = told(report, "request_rate")
    if rate is not None and str(rate).lower() not in ("inf", "infinity"):
        raise TableError(
            f"{file.name}: request_rate = {shown(rate)}; the table needs closed-loop runs, wanted: inf (a run at a rate"
            " is for `inferencegym validate`)"
        )


def read_point(file: Path, report: Any) -> BenchPoint:
    """One run; errors are those of ``read_points``."""
    if not isinstance(report, Mapping):
        raise TableError(f"{file.name}: must be one JSON object, as vllm bench serve --save-result writes it")
    _check_run(file, report)
    number = {name: _positive(file, report, name) for name in MEASURED}
    completed = number["completed"]
    concurrency = report.get("max_concurrency")
    if concurrency is None:
        raise TableError(
            f"{file.name}: max_concurrency is missing; the table needs closed-loop runs: add --max-concurrency N"
            " (--request-rate inf)"
        )
    keys: dict[str, float] = {"batch_size": _positive(file, report, "max_concurrency")}
    for name in STATED:
        value = report.get(name, KNOBS[name].default)
        keys[name] = _stated(file, name, value)
    prompt = number["total_input_tokens"] / completed
    keys["prompt_len_bucket"] = float(nearest_bucket(prompt))
    gpu_mem = report.get("gpu_mem_gb")
    return BenchPoint(
        file=file.name,
        keys=keys,
        metrics={
            "ttft_p50_ms": number["median_ttft_ms"],
            "ttft_p99_ms": number["p99_ttft_ms"],
            "tpot_ms": number["mean_tpot_ms"],
            "tps": number["output_throughput"],
        },
        prompt=prompt,
        output=_positive(file, report, "total_output_tokens") / completed,
        gpu_mem_gb=None if gpu_mem is None else _stated(file, "gpu_mem_gb", gpu_mem),
        acceptance=None if report.get("acceptance") is None else _stated(file, "acceptance", report["acceptance"]),
        gpus=1.0 + keys["prefill_disagg"],
        weight=completed,
        model=str(told(report, "model_id", "model_path", "model") or "unknown model"),
        pool={name: _stated(file, name, report[name]) for name in POOL if report.get(name) is not None},
    )


def nearest_bucket(prompt: float) -> int:
    """The prompt bucket whose length is nearest on a log scale."""
    return int(np.argmin(np.abs(np.log(np.asarray(PROMPT_LENGTHS)) - math.log(prompt))))


def _positive(file: Path, report: Mapping[str, Any], name: str) -> float:
    if name not in report:
        raise TableError(f"{file.name}: {name} is missing; vllm bench serve --save-result writes it")
    value = finite_number(report[name])
    if value is None or value <= 0:
        raise TableError(f"{file.name}: {name} = {shown(report[name])}; must be a finite number above 0")
    return value


def _stated(file: Path, name: str, value: Any) -> float:
    try:
        number = finite_number(json.loads(value.lower()) if isinstance(value, str) else value)
    except ValueError:
        number = None
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        number = float(str(value).lower() == "true")
    if number is None:
        allowed = KNOBS[name].allowed if name in KNOBS else "a number above 0"
        raise TableError(f"{file.name}: {name} = {shown(value)}; must be {allowed}")
    return number


def build_table(points: Sequence[BenchPoint], *, gpu_mem_gb: float | None = None, price: float = 1.0) -> LatencyTable:
    """The table of these runs; runs of one point are averaged, weighted by their requests.

    Args:
        points: from ``read_folder``.
        gpu_mem_gb: memory of the runs that do not state it.
        price: of a GPU second; cost_per_1k = price x GPUs x 1000 / tps.

    Raises:
        TableError: a run without memory, several models, or the table's own checks (a cell that no run fills...).
    """
    if not points:
        raise TableError("no runs")
    price_number = finite_number(price)
    if price_number is None or price_number <= 0:
        raise TableError(f"price = {price!r}; must be a number above 0")
    models = sorted({point.model for point in points})
    if len(models) > 1:
        raise TableError(f"runs of {len(models)} models ({', '.join(models)}); one table is of one: a folder a model")
    groups: dict[tuple[float, ...], list[BenchPoint]] = {}
    for point in points:
        groups.setdefault(tuple(point.keys[key] for key in KEYS), []).append(point)
    columns: dict[str, list[float]] = {name: [] for name in (*KEYS, *METRICS)}
    for values, runs in groups.items():
        for name, value in zip(KEYS, values, strict=True):
            columns[name].append(value)
        weights = [run.weight for run in runs]
        for name in ("ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "tps"):
            columns[name].append(float(np.average([run.metrics[name] for run in runs], weights=weights)))
        memory = [run.gpu_mem_gb if run.gpu_mem_gb is not None else gpu_mem_gb for run in runs]
        if None in memory:
            raise TableError(
                f"{runs[memory.index(None)].file}: states no gpu_mem_gb; run the benchmark with"
                " --metadata gpu_mem_gb=N (peak GB that nvidia-smi shows), or pass one for all"
            )
        columns["gpu_mem_gb"].append(float(np.average(np.asarray(memory, float), weights=weights)))
        columns["cost_per_1k"].append(price_number * runs[0].gpus * 1000.0 / columns["tps"][-1])
    weights = np.asarray([point.weight for point in points])
    metadata = {
        "source": f"vllm bench serve, {len(points)} runs of {models[0]}",
        "reference_output_length": f"{np.average([point.output for point in points], weights=weights):.1f}",
    }
    for name in POOL:
        values = [value for _, value in sorted(_agreed(points, name).items())]
        if values:
            metadata[name] = json.dumps(values if name == "weights_gb" else values[0])
    accepted = [point.acceptance for point in points if point.acceptance is not None]
    if accepted:
        metadata["reference_acceptance"] = f"{np.mean(accepted):.3f}"
    return table_from_columns(columns, metadata, name=models[0])


def _agreed(points: Sequence[BenchPoint], name: str) -> dict[float, float]:
    """What the runs state of a field of ``POOL``, by quant tier for the weights; they must not contradict."""
    stated: dict[float, float] = {}
    for point in points:
        if name in point.pool:
            tier = point.keys["quant_tier"] if name == "weights_gb" else 0.0
            if stated.setdefault(tier, point.pool[name]) != point.pool[name]:
                wanted = f"must be {stated[tier]:g} as another run states"
                raise TableError(f"{point.file}: {name} = {point.pool[name]:g}; {wanted}")
    return stated


def columns_of(table: LatencyTable) -> dict[str, np.ndarray]:
    """A table as columns, one row a grid point, as ``table_from_columns`` takes them."""
    axes = [np.asarray(table.axes[key]) for key in KEYS]
    axes[-1] = np.asarray([PROMPT_LENGTHS.index(int(length)) for length in axes[-1]])
    mesh = np.meshgrid(*axes, indexing="ij")
    columns = {key: grid.ravel() for key, grid in zip(KEYS, mesh, strict=True)}
    return columns | {name: table.values[..., i].ravel() for i, name in enumerate(METRICS)}


def write_table(table: LatencyTable, path: str | Path) -> None:
    """Write a table as parquet (with its metadata and engine profile) or CSV (the profile beside it), by the file's
    ending.

    Raises:
        ValueError: another ending.
        OSError: the file cannot be written.
    """
    path = Path(path)
    arrays = {name: pa.array(column) for name, column in columns_of(table).items()}
    profile = {PROFILE_KEY: table.engine.to_json()} if table.engine else {}
    data = pa.table(arrays).replace_schema_metadata(table.metadata | profile)
    if path.suffix == ".parquet":
        parquet.write_table(data, path)
    elif path.suffix == ".csv":
        csv.write_csv(data, path)
        if table.engine:
            profile_path(path).write_text(table.engine.to_json())
    else:
        raise ValueError(f"out = {str(path)!r}: must end in .parquet or .csv")
