"""Measured closed-loop points, predicted by the engine profile that a built table holds, and their errors.

``CSV -> Point rows -> engine profile of each model, GPU, backend, cut and number format -> TPOT``. B clients each send
the next request when theirs is answered; TPOT is the steady state of ``hardware.steady_state``. Nothing is fitted to
these points.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.fidelity.measured_runs import RunError
from inferencegym_jax.hardware import Gpu, Placement, gpu_named, memory
from inferencegym_jax.hardware.any_model import profile_of_engines
from inferencegym_jax.hardware.compiled_engine import CompiledEngine, Modes, fastest
from inferencegym_jax.hardware.coverage import DTYPE_OF_KERNEL
from inferencegym_jax.hardware.dtypes import DTYPES, Dtype, checkpoint_dtype
from inferencegym_jax.hardware.gpus import price_of
from inferencegym_jax.hardware.model_files import model_file, package_folder
from inferencegym_jax.hardware.model_shape import UnknownShapeError, shape_of
from inferencegym_jax.hardware.request import Engines, Request
from inferencegym_jax.hardware.steady_state import Point, tpot_ms
from inferencegym_jax.table import EngineProfile, TableError

COLUMNS = ("system", "backend", "model_path", "isl", "osl", "batch_size", "silicon_tpot_ms")
PACKAGE_POINTS = "silicon_sample.csv"  # of the package's wheel
SAME_MODEL = {  # checkpoints that differ from a known config in their number formats only
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
}
KEEPS_ROOM = ("trtllm", "sglang")  # admit a request only where its whole output has room; vLLM preempts instead


@dataclass(frozen=True)
class Engine:
    """What a point was measured on: model, GPU, backend, cut, and the file's names of number formats."""

    model: str
    system: str
    backend: str
    placement: Placement
    gemm: str | None
    experts: str | None


@dataclass(frozen=True)
class ClosedLoopPoint:
    """One measured point: B clients (the file's batch_size is that of one attention copy), prompt and output tokens,
    TPOT in ms."""

    source: str
    engine: Engine
    precision: str
    clients: float
    prompt: float
    output: float
    tpot_ms: float


def is_closed_loop(path: Path) -> bool:
    """Whether a file has the columns of closed-loop points."""
    if not path.is_file():
        return path.name == PACKAGE_POINTS
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        try:
            return set(COLUMNS) <= set(next(csv.reader(lines), []))
        except csv.Error:  # packed, or one long line of JSON
            return False


def read_points(path: Path) -> list[ClosedLoopPoint]:
    """Points of a CSV with the columns ``COLUMNS``; disaggregated rows (``mode``) are not read.

    Args:
        path: of the file; ``silicon_sample.csv`` where there is no such file is that of aiconfigurator-core.

    Raises:
        RunError: no such file, a missing column, no rows, or a cell that is no number above 0; line and column are
            named.
    """
    folder = package_folder()
    if not path.is_file() and path.name == PACKAGE_POINTS and folder is not None:
        path = folder / "systems" / PACKAGE_POINTS
    if not path.is_file():
        raise RunError(f"{path}: no such file; give a CSV of closed-loop points with {', '.join(COLUMNS)}")
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if missing:
            raise RunError(f"{path.name}: lacks the column {missing[0]}; wanted: {', '.join(COLUMNS)}")
        points = [
            _point(f"{path.name} line {reader.line_num}", row) for row in reader if row.get("mode", "agg") == "agg"
        ]
    if not points:
        raise RunError(f"{path.name}: no closed-loop points")
    return points


def _point(source: str, row: Mapping[str, Any]) -> ClosedLoopPoint:
    def number(name: str) -> float:
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = float("nan")
        if not 0 < value < float("inf"):
            raise RunError(f"{source}: {name} is {row[name]!r}; wanted: a number above 0")
        return value

    def count(name: str) -> int:
        text = str(row.get(name) or "").strip()
        return max(1, int(float(text))) if text else 1

    dp = count("attention_dp_size")
    placement = Placement(count("tp_size"), count("moe_ep_size"), count("pp_size"), dp)
    engine = Engine(
        row["model_path"],
        row["system"],
        row["backend"],
        placement,
        row.get("gemm_quant_mode") or None,
        row.get("moe_quant_mode") or None,
    )
    batch, prompt, output, tpot = (number(name) for name in ("batch_size", "isl", "osl", "silicon_tpot_ms"))
    return ClosedLoopPoint(source, engine, str(row.get("precision") or ""), batch * dp, prompt, output, tpot)


def modes_to_try(engine: Engine, own: Dtype) -> list[Modes]:
    """Number formats of a point, the likeliest first.

    8- and 4-bit checkpoints of NVIDIA state an 8-bit cache, and the recipes of InferenceX set one; FP8 products have
    static scales there. TensorRT-LLM then computes attention in 8 bits too. What has no kernels falls back to 16-bit
    attention, then to a 16-bit cache; of several kinds of products the fastest is taken (``fastest``).
    """
    plain = engine.gemm is None or own.experts_only or own.name == "int4"
    products: list[tuple[str | None, str | None]] = [(engine.gemm, engine.experts)]
    if engine.gemm == "fp8":
        products = [(None, None)] if own.name == "fp8" else []
        products += [("fp8_static", engine.experts), ("fp8", engine.experts)]
    if plain:
        products = [(None, None)]
    low = (engine.gemm or own.name) not in ("bfloat16", "bf16") and not own.experts_only
    caches = (("fp8", "fp8"), ("fp8", "bfloat16"), ("bfloat16", "bfloat16")) if low else (("bfloat16", "bfloat16"),)
    if engine.backend != "trtllm":
        caches = caches[1:] if low else caches
    return [Modes(gemm, experts, cache, attention) for cache, attention in caches for gemm, experts in products]


def _weight_format(engine: Engine, own: Dtype) -> str:
    """The weight format of a point, as ``DTYPES`` names it: of its products, else the checkpoint's own."""
    return own.name if engine.gemm is None or own.experts_only else DTYPE_OF_KERNEL.get(engine.gemm, own.name)


@functools.cache
def weight_format(engine: Engine) -> str:
    """The weight format of what a point was measured on, as ``--dtype`` names it.

    Raises:
        TableError: the model is unknown.
    """
    return _weight_format(engine, checkpoint_dtype(model_file(SAME_MODEL.get(engine.model, engine.model)).config))


@functools.cache
def profile_of_point(engine: Engine) -> EngineProfile:
    """The profile of what a point was measured on; its one weight format stands in every tier.

    Raises:
        TableError: the model is unknown, cannot be cut so, does not fit, or has no kernels.
    """
    gpu, file = gpu_named(engine.system), model_file(SAME_MODEL.get(engine.model, engine.model))
    own = checkpoint_dtype(file.config)
    try:
        shape = shape_of(file.config)
    except UnknownShapeError:
        shape = None
    placement = engine.placement
    if shape is None or not shape.experts:
        placement = Placement(placement.tp, 1, placement.pp, 1)
    memory.checked_placement(placement, shape)
    built = fastest(file, gpu.system, engine.backend, placement, modes_to_try(engine, own))
    dtype = _weight_format(engine, own)
    kv_dtype = "fp8" if built.modes.cache == "fp8" else "bf16"
    weights, each = _memory(built, gpu, file.config, dtype, kv_dtype, placement)
    engines = Engines(file, gpu, shape, kv_dtype, {dtype: built}, {dtype: weights}, each, ())
    request = Request(engine.model, gpu.system, engine.backend, placement)
    return profile_of_engines(engines, request, price_of(gpu))


def _memory(
    built: CompiledEngine, gpu: Gpu, config: Mapping[str, Any], dtype: str, kv_dtype: str, placement: Placement
) -> tuple[float, float]:
    """GB of weights and bytes of cache a token on one GPU."""
    try:
        layout = memory.plan(shape_of(config), gpu, DTYPES[dtype], kv_dtype, placement)
    except UnknownShapeError:
        return built.weights_gb(), built.kv_bytes_per_token(memory.REFERENCE_CONTEXT)
    return layout.weights_gb, layout.kv_bytes_per_token


def running(profile: EngineProfile, point: ClosedLoopPoint) -> float:
    """Requests that run when B clients ask: as many as the cache holds, at full length or, vLLM, at half their
    output."""
    tokens = point.prompt + point.output * (1.0 if point.engine.backend in KEEPS_ROOM else 0.5)
    return max(1.0, min(point.clients, profile.pool_tokens(0) // tokens))


def predicted_tpot_ms(point: ClosedLoopPoint) -> float:
    """TPOT of a point's steady state, ms.

    Raises:
        TableError: see ``profile_of_point``.
    """
    profile = profile_of_point(point.engine)
    return tpot_ms(profile, Point(running(profile, point), point.prompt, point.output))


def compared(points: Sequence[ClosedLoopPoint]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A row a point that could be predicted, with its signed error, and the reasons of the others with their number."""
    rows: list[dict[str, Any]] = []
    left: dict[str, int] = {}
    for point in points:
        engine = point.engine
        try:
            guess = predicted_tpot_ms(point)
        except TableError as error:
            reason = f"{engine.model} on {engine.system}, {engine.backend}, {engine.placement}: {error}"
            left[reason] = left.get(reason, 0) + 1
            continue
        rows.append(
            {
                "point": point.source,
                "model": engine.model,
                "system": engine.system,
                "backend": engine.backend,
                "parallelism": str(engine.placement),
                "precision": point.precision,
                "dtype": weight_format(engine),
                "clients": point.clients,
                "prompt": point.prompt,
                "output": point.output,
                "tpot_ms": point.tpot_ms,
                "tpot_predicted_ms": guess,
                "tpot_error": guess / point.tpot_ms - 1,
            }
        )
    return rows, left


def summary(
    rows: Sequence[Mapping[str, Any]], by: Sequence[str] = ("model", "system", "backend")
) -> list[dict[str, Any]]:
    """Median and 90th percentile of the absolute TPOT error, and the signed median, by model, system and backend; the
    same of each weight format under ``dtypes``."""
    summaries: list[dict[str, Any]] = []
    for key, ones in sorted(_grouped(rows, by).items()):
        of_format = {dtype: _errors(some) for (dtype,), some in sorted(_grouped(ones, ("dtype",)).items())}
        summaries.append(dict(zip(by, key, strict=True)) | _errors(ones) | {"dtypes": of_format})
    return summaries


def _grouped(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return groups


def _errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    errors = np.asarray([row["tpot_error"] for row in rows])
    return {
        "points": len(errors),
        "tpot_error_median": round(float(np.median(np.abs(errors))), 4),
        "tpot_error_p90": round(float(np.quantile(np.abs(errors), 0.9)), 4),
        "tpot_error_signed_median": round(float(np.median(errors)), 4),
    }
