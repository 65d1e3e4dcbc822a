"""One sitting of a measurement: probe, resume, measure with a progress bar, write the table, show it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from inferencegym_jax.live.measure.cells import Cells
from inferencegym_jax.live.measure.plan import Measurement, MeasureSettings, Progress
from inferencegym_jax.live.server.probe import probe
from inferencegym_jax.live.server.streaming import Endpoint, open_client
from inferencegym_jax.table.latency_table import PROMPT_LENGTHS, LatencyTable


def measure_server(
    endpoint: Endpoint,
    settings: MeasureSettings,
    out: Path,
    restart: bool,
    console: Console,
    answer: Console | None = None,
) -> dict[str, Any]:
    """Measure a server and write its table.

    Args:
        endpoint: the server.
        settings: what to measure and how long.
        out: parquet file to write; ``OUT.state.json`` beside it holds what was measured.
        restart: forget what the state file holds.
        console: for the progress bar.
        answer: for the result; default: ``console``.

    Returns:
        A JSON-ready summary.

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
    return asyncio.run(_sitting(endpoint, settings, out, state, console, answer or console))


async def _sitting(
    endpoint: Endpoint, settings: MeasureSettings, out: Path, state: Path, console: Console, answer: Console
) -> dict[str, Any]:
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
            console.print(f"going on from {state}: {len(cells.slices)} cells, {cells.elapsed_s:.0f} s spent")
        with progress_bar(console, settings.budget_s) as report:
            measurement = Measurement(client, engine, settings, cells, state, report)
            await measurement.run()
        table = measurement.table(out)
    show(table, cells, answer)
    fitted = json.loads(table.metadata["fitted"])
    answer.print(
        f"an iteration takes {fitted['iteration_ms']:g} ms and {fitted['running_ms']:g} ms a running request; a "
        f"request spends {fitted['request_overhead_ms']:g} ms outside iterations"
    )
    answer.print(f"[bold]{out}[/]: {table.values[..., 0].size} cells in {cells.elapsed_s:.0f} s", soft_wrap=True)
    return {
        "table": str(out),
        "cells": int(table.values[..., 0].size),
        "seconds": cells.elapsed_s,
        "batch_sizes": [int(x) for x in table.axes["batch_size"]],
        "prompt_lengths": [int(x) for x in table.axes["prompt_len_bucket"]],
        **fitted,
    }


@contextlib.contextmanager
def progress_bar(console: Console, budget_s: float) -> Iterator[Any]:
    """A bar over the budget with what is being done and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=budget_s, left="")

        def report(progress: Progress) -> None:
            left = progress.budget_s - progress.elapsed_s
            text = f"at most {left:.0f} s left" if left > 0 else "budget spent; finishing the grid"
            bar.update(task, completed=progress.elapsed_s, description=progress.doing, left=text)

        yield report


def show(table: LatencyTable, cells: Cells, console: Console) -> None:
    """The table as rows of concurrency and columns of prompt length: TPOT and median TTFT with their half-widths,
    "?" where there are not yet two values for one."""

    def within(share: float) -> str:
        return f"({share:.0%})" if math.isfinite(share) else "(?)"

    grid = Table(title="TPOT / median TTFT, ms (95 % half-width)")
    grid.add_column("batch", justify="right")
    prompts = [int(x) for x in table.axes["prompt_len_bucket"]]
    for length in prompts:
        grid.add_column(f"prompt {length}", justify="right")
    for i, n in enumerate(table.axes["batch_size"]):
        row = [f"{n:.0f}"]
        for j, length in enumerate(prompts):
            ttft, _, tpot = table.values[0, 0, 0, i, 0, j, :3]
            spread = cells.spread((int(n), PROMPT_LENGTHS.index(length)))
            row.append(f"{tpot:.1f} {within(spread['tpot'])} / {ttft:.0f} {within(spread['ttft'])}")
        grid.add_row(*row)
    console.print(grid)
