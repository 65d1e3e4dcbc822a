"""One run of a measurement: probe the server, go on from what was measured, measure, write the table."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from inferencegym_jax.live.measure.cells import Cells
from inferencegym_jax.live.measure.plan import Measurement, MeasureSettings, Progress
from inferencegym_jax.live.server.probe import probe
from inferencegym_jax.live.server.streaming import Endpoint, open_client
from inferencegym_jax.table.latency_table import LatencyTable


class Measured(NamedTuple):
    """What a measurement came to."""

    table: LatencyTable
    cells: Cells
    summary: dict[str, Any]  # JSON-ready


def measure_server(
    endpoint: Endpoint,
    settings: MeasureSettings,
    out: Path,
    restart: bool,
    progress: Callable[[Progress], None] = lambda _: None,
    resumed: Callable[[Path, Cells], None] = lambda *_: None,
) -> Measured:
    """Measure a server and write its table.

    Args:
        endpoint: the server.
        settings: what to measure and how long.
        out: parquet file to write; ``OUT.state.json`` beside it holds what was measured.
        restart: forget what the state file holds.
        progress: called with what is being done.
        resumed: called with the state file and what it holds, where an earlier run is gone on from.

    Raises:
        EngineError: the server cannot be measured.
        StateError: the state file is of another run.
        FileNotFoundError: the folder of ``out`` is not there.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}")
    state = out.with_name(out.name + ".state.json")
    if restart:
        state.unlink(missing_ok=True)
    return asyncio.run(_measure(endpoint, settings, out, state, progress, resumed))


async def _measure(
    endpoint: Endpoint,
    settings: MeasureSettings,
    out: Path,
    state: Path,
    progress: Callable[[Progress], None],
    resumed: Callable[[Path, Cells], None],
) -> Measured:
    async with open_client(endpoint) as client:
        engine = await probe(client, endpoint)
        config = {
            "model": endpoint.model,
            "version": engine.version,
            "output_tokens": settings.output_tokens,
            "max_model_len": engine.max_model_len,
        }
        cells = Cells.load(state, config) if state.exists() else Cells(config)
        if cells.slices:
            resumed(state, cells)
        measurement = Measurement(client, engine, settings, cells, state, progress)
        await measurement.run()
        table = measurement.table(out)
    summary = {
        "table": str(out),
        "cells": int(table.values[..., 0].size),
        "seconds": cells.elapsed_s,
        "batch_sizes": [int(x) for x in table.axes["batch_size"]],
        "prompt_lengths": [int(x) for x in table.axes["prompt_len_bucket"]],
        **json.loads(table.metadata["fitted"]),
        "kv_cache_tokens": float(table.metadata.get("kv_cache_tokens", 0.0)) or None,
        "kv_cache_tokens_source": table.metadata.get("kv_cache_tokens_source"),
        "acceptance_lengths": json.loads(table.metadata.get("acceptance_lengths", "null")),
    }
    return Measured(table, cells, summary)
