"""From measured cells to a latency table: its columns, what was fitted, and the parquet file.

``cells -> prefill, decode iterations -> columns``. What a client sees of an engine's iterations:

    lone request   TTFT(1, P) = h + (1 + e) t(1) + p(P)   nobody else prefills: its ITL is t(1)
    N in flight    ITL = t(m) + k q(P)             m requests in an iteration and k prefills of others in a gap,
                                                   both counted from when tokens came (``cell_run.shared``)
    N in flight    TTFT = h + (1.5 + e) ITL + q(P)        it arrives half an iteration before its own, on average

h is the time outside iterations, p what a prompt adds to an engine that does nothing else, q what it adds to an
iteration of others, e the iterations after its own until a first token surfaces (``measure.first_token``). t is read
off the gaps in which nobody prefilled (``cell_run.undisturbed``), and then q off the others; where a prompt takes
several iterations, no gap is its own: there q = p. So each cell gives
t at its own m; each prompt length's curve is read off at the whole numbers n of the axis, and the table holds what
every table means by TPOT: ``t(n) + (n / O) q``, n requests that decode outputs of O tokens and one prefill for each
that leaves, with ``tps = n / tpot``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inferencegym_jax.live.measure.cells import Cells
from inferencegym_jax.live.measure.engine_figures import first_token, first_token_seen
from inferencegym_jax.live.server.probe import Engine
from inferencegym_jax.table.latency_table import PROMPT_LENGTHS, LatencyTable, table_from_columns
from inferencegym_jax.tasks import calibration

LEAST_MS = 1e-3  # of an iteration: noise must not make it nothing
MEMORY_FLOOR_GB = 1e-3  # of a server that does not tell its memory: the table needs a number above 0


def prefill(cells: Cells, buckets: list[int], token_budget: int | None = None) -> tuple[np.ndarray, float]:
    """What a prompt of each length adds to the iterations, and the time that a request spends outside them, ms.

    A prompt longer than an iteration's ``token_budget`` takes several, each with its constant, which is not the
    prompt's: beside requests that decode those iterations are there anyway. The time outside iterations is that of
    lone requests whose prompt is one token (with what ``first_token`` tells apart of it). Without those it is the
    intercept of a line through a lone request's TTFT in P, less its own iterations, which is too little where short
    prompts cost an iteration next to nothing; with one prompt length the two cannot be told apart, and all is prefill.
    """
    lengths = np.array([PROMPT_LENGTHS[bucket] for bucket in buckets], float)
    unloaded_ms = np.array([cells.ttft_ms((1, bucket), 50) for bucket in buckets])
    chunks = np.ceil(lengths / token_budget) if token_budget else np.ones(len(buckets))
    rest = unloaded_ms - chunks * np.array([cells.gap_ms((1, bucket)) for bucket in buckets])
    overhead = cells.single_overhead_ms()
    if overhead is None:
        overhead = float(np.polyfit(lengths, rest, 1, w=1.0 / unloaded_ms)[1]) if len(buckets) > 1 else 0.0
    overhead = min(max(overhead, 0.0), max(float(rest.min()), 0.0))
    return np.maximum(rest - overhead, 0.0), overhead


def beside(
    cells: Cells, buckets: list[int], alone_ms: np.ndarray, token_budget: int | None = None
) -> tuple[np.ndarray, list[bool]]:
    """What a prompt of each length adds to an iteration of requests that decode, ms, and whether the cells showed it.

    Args:
        cells: measured.
        buckets: of the prompts.
        alone_ms: what it adds to an engine that does nothing else, which stands where the cells do not show it.
        token_budget: tokens of an iteration; None where it is not known.
    """
    own = [
        None if token_budget and PROMPT_LENGTHS[bucket] > token_budget else cells.beside_ms(bucket)
        for bucket in buckets
    ]
    added = [alone if one is None else one for one, alone in zip(own, alone_ms, strict=True)]
    return np.asarray(added, float), [one is not None for one in own]


class _Prompts(NamedTuple):
    """What prompts cost, an entry a bucket, ms, and when their first tokens surface."""

    alone: np.ndarray
    beside: np.ndarray
    seen: list[bool]  # whether the cells showed what they add beside others
    overhead: float
    extra: int
    estimate: float | None  # of ``extra`` by TTFT, before rounding
    source: str  # what told ``extra``: gaps, TTFT, or nothing ("assumed")


def _prompts(cells: Cells, batch_sizes: list[int], buckets: list[int], token_budget: int | None) -> _Prompts:
    alone, overhead = prefill(cells, buckets, token_budget)
    extra, estimate = first_token(cells, batch_sizes, buckets[0])
    source = "assumed" if estimate is None else "TTFT"
    whole = [bucket for bucket in buckets if not token_budget or PROMPT_LENGTHS[bucket] <= token_budget]
    if (seen := first_token_seen(cells, whole)) is not None:
        extra, source = seen, "gaps"
    return _Prompts(alone, *beside(cells, buckets, alone, token_budget), overhead, extra, estimate, source)


def build_columns(
    cells: Cells,
    batch_sizes: list[int],
    buckets: list[int],
    engine: Engine,
    output_tokens: int,
    base_memory_gb: float,
    token_budget: int | None = None,
    in_flight: Callable[[int, int], int] = lambda n, _: n,
) -> dict[str, list[float]]:
    """The table's columns.

    Args:
        cells: holds every combination of the two axes.
        batch_sizes: rising, from 1.
        buckets: rising.
        engine: for the size of its KV cache.
        output_tokens: mean over the requests.
        base_memory_gb: memory of weights and runtime, which no server tells.
        token_budget: tokens of an iteration; None where it is not known.
        in_flight: of a batch size and a prompt length (tokens): as many requests as the cell had in flight.
    """
    scale = float(calibration()["cost_scale"])
    columns: dict[str, list[float]] = {name: [] for name in ("batch_size", "prompt_len_bucket")}
    metrics = ("ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "tps", "gpu_mem_gb", "cost_per_1k")
    columns |= {name: [] for name in metrics}
    prompts = _prompts(cells, batch_sizes, buckets, token_budget)
    for bucket, prompt_ms, shown in zip(buckets, prompts.beside, prompts.seen, strict=True):
        column = [(n, bucket) for n in batch_sizes]
        inside = np.array([cells.inside(cell) for cell in column])
        iteration = np.array([max(cells.decode_ms(cell, prompt_ms, shown), LEAST_MS) for cell in column])
        p50 = np.array([cells.ttft_ms(cell, 50) for cell in column])
        p99 = np.array([cells.ttft_ms(cell, 99) for cell in column])
        # of cells that the pool cut to one number, the first: the line to it goes on to the others
        _, distinct = np.unique([in_flight(n, PROMPT_LENGTHS[bucket]) for n in batch_sizes], return_index=True)
        iteration, p50, p99 = (read_off(batch_sizes, inside, values, distinct) for values in (iteration, p50, p99))
        p99 = np.maximum(p99, p50)
        for n, cell, t, first, late in zip(batch_sizes, column, iteration, p50, p99, strict=True):
            share = cells.memory_share(cell)
            pool = engine.kv_cache_gb or 0.0
            tpot = t + n / output_tokens * prompt_ms  # per token: t is an iteration over the tokens that it yields
            tps = 1000.0 * n / tpot
            row = (n, bucket, first, late, tpot, tps, max(base_memory_gb + (share or 0.0) * pool, MEMORY_FLOOR_GB))
            for name, value in zip(columns, (*row, scale * 1000.0 / tps), strict=True):
                columns[name].append(float(value))
    return columns


def read_off(
    nodes: list[int], measured_at: np.ndarray, values: np.ndarray, use: np.ndarray | None = None
) -> np.ndarray:
    """``values``, known at ``measured_at``, at ``nodes``: linear between, the last segment's line beyond; of the places
    in ``use`` alone, where it is given.

    Where the abscissae do not rise (a server that holds requests back itself) the values stand as they were measured.
    """
    every, use = values, np.arange(len(nodes)) if use is None else use
    measured_at, values = measured_at[use], values[use]
    if len(values) == 1 or not np.all(np.diff(measured_at) > 0):
        return every
    result = np.interp(nodes, measured_at, values)
    for i, node in enumerate(nodes):
        edge = (0, 1) if node < measured_at[0] else (-2, -1) if node > measured_at[-1] else None
        if edge is not None:
            a, b = edge
            slope = (values[b] - values[a]) / (measured_at[b] - measured_at[a])
            near = a if node < measured_at[0] else b
            result[i] = max(values[near] + slope * (node - measured_at[near]), 0.5 * values[near])
    return result


def fit(
    cells: Cells,
    columns: dict[str, list[float]],
    buckets: list[int],
    output_tokens: int,
    token_budget: int | None = None,
) -> dict[str, Any]:
    """What an iteration and a prompt cost; the line ``a + b n`` through the decode iterations gives their constant.

    Returns:
        prefill_ms (beside requests that decode, one a bucket), prefill_alone_share (what a prompt adds to an idle
        engine, over that; the mean), request_overhead_ms, first_token_extra_iterations with what told them and the
        estimate by TTFT, iteration_ms (a), running_ms (b), fit_error (median share).
    """
    batch_sizes = sorted(set(map(int, columns["batch_size"])))
    alone, added, _, overhead, extra, estimate, source = _prompts(cells, batch_sizes, buckets, token_budget)
    n, tpot = np.asarray(columns["batch_size"]), np.asarray(columns["tpot_ms"])
    place = np.searchsorted(buckets, np.asarray(columns["prompt_len_bucket"], int))
    iteration = tpot - n / output_tokens * added[place]
    b, a = np.polyfit(n, iteration, 1, w=1.0 / tpot) if len(np.unique(n)) > 1 else (0.0, float(iteration.mean()))
    error = float(np.median(np.abs(a + b * n - iteration) / tpot))
    alone_ms = cells.gap_ms((1, buckets[0]))
    return {
        "prefill_ms": [round(float(x), 4) for x in added],
        "prefill_alone_share": round(float(alone.sum() / added.sum()), 4) if added.sum() > 0.0 else 1.0,
        # of the intercept, what extra iterations of a lone request do not explain
        "request_overhead_ms": round(max(overhead - extra * alone_ms, 0.0), 4),
        "first_token_extra_iterations": extra,
        "first_token_source": source,
        "first_token_estimate": None if estimate is None else round(estimate, 3),
        "iteration_ms": round(float(a), 4),
        "running_ms": round(float(b), 6),
        "fit_error": round(error, 4),
    }


def build_metadata(
    cells: Cells,
    batch_sizes: list[int],
    buckets: list[int],
    engine: Engine,
    fitted: dict[str, Any],
    output_tokens: int,
    base_memory_gb: float,
) -> dict[str, str]:
    """The table's text metadata: engine, version, model, when, spread of every cell, what was fitted."""

    def share(value: float) -> float | None:
        return round(value, 4) if np.isfinite(value) else None

    spread = {
        f"{n}:{bucket}": {name: share(value) for name, value in cells.spread((n, bucket)).items()}
        for n in batch_sizes
        for bucket in buckets
    }
    memory = "server's /metrics: share of the KV cache in use" if engine.kv_cache_gb else "unknown to the server"
    return {
        "source": "measured on a live server by `inferencegym measure`",
        "engine": "vllm" if engine.has_metrics else "openai-compatible",
        "version": engine.version or "unknown",
        "model": engine.endpoint.model,
        "base_url": engine.endpoint.shown,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": f"{cells.elapsed_s:.0f}",
        "licence": "the measurer's own",
        "reference_output_length": str(output_tokens),
        "memory_source": memory,
        "kv_cache_gb": str(engine.kv_cache_gb or 0.0),
        "base_memory_gb": str(base_memory_gb),
        "engine_overhead_ms": "0",  # wall-clock iterations hold the scheduler's time already
        "path_ms": str(fitted["request_overhead_ms"]),
        "first_token_extra_iterations": str(fitted["first_token_extra_iterations"]),
        "prefill_ms": json.dumps(fitted["prefill_ms"]),
        "prefill_alone_share": str(fitted["prefill_alone_share"]),
        "fitted": json.dumps(fitted),
        "spread": json.dumps(spread),
    }


def pool_metadata(
    engine: Engine, kv_cache_tokens: float, kv_bytes_per_token: float, seen_tokens: float | None = None
) -> dict[str, str]:
    """What open-loop tasks need of the KV pool: as the server tells it, else as stated (0: not stated), else as its
    gauge was seen to rise (``measure.engine_figures.pool_seen``)."""
    tokens = engine.kv_cache_tokens or kv_cache_tokens or seen_tokens or 0.0
    token = kv_bytes_per_token
    if not token and engine.kv_cache_gb and tokens:
        token = engine.kv_cache_gb * 1e9 / tokens
    known = {"kv_cache_tokens": tokens, "kv_bytes_per_token": token}
    source = "server" if engine.kv_cache_tokens else "stated" if kv_cache_tokens else "gauge"
    if engine.kv_cache_tokens and engine.kv_block_tokens:
        known["kv_block_tokens"] = engine.kv_block_tokens
    return {key: f"{value:.10g}" for key, value in known.items() if value} | (
        {"kv_cache_tokens_source": source} if tokens else {}
    )


def write_table(columns: dict[str, list[float]], metadata: dict[str, str], path: Path) -> LatencyTable:
    """Check the columns as any table is checked, and write them as parquet.

    Raises:
        TableError: see ``table.table_from_columns``.
    """
    table = table_from_columns(columns, metadata, name=str(path))
    arrays = {
        name: pa.array(values, pa.int32() if name in ("batch_size", "prompt_len_bucket") else pa.float32())
        for name, values in columns.items()
    }
    written = pa.table(arrays).replace_schema_metadata(metadata)
    part = path.with_name(path.name + ".part")
    pq.write_table(written, part)
    part.replace(path)
    return table
