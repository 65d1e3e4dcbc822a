"""What ``inferencegym measure`` prints: a progress bar, the measured table, what was fitted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from inferencegym_jax.cli.tables import open_loop, open_loop_line
from inferencegym_jax.live.measure.cells import Cells
from inferencegym_jax.live.measure.engine_figures import SPEC_LENGTHS
from inferencegym_jax.live.measure.plan import MeasureSettings, Progress
from inferencegym_jax.live.measure.run import measure_server
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.table.latency_table import PROMPT_LENGTHS, LatencyTable


def measure_and_report(
    endpoint: Endpoint,
    settings: MeasureSettings,
    out: Path,
    restart: bool,
    notices: Console,
    results: Console | None = None,
) -> dict[str, Any]:
    """``measure_server`` with a progress bar on one console and the result on another (default: the same).

    Returns:
        The JSON-ready summary.
    """
    results = results or notices

    def resumed(state: Path, cells: Cells) -> None:
        notices.print(f"going on from {state}: {len(cells.slices)} cells, {cells.elapsed_s:.0f} s spent")

    with progress_bar(notices, settings.budget_s) as progress:
        table, cells, summary = measure_server(endpoint, settings, out, restart, progress, resumed)
    show_table(table, cells, results)
    results.print(
        f"an iteration takes {summary['iteration_ms']:g} ms and {summary['running_ms']:g} ms a running request; a "
        f"request spends {summary['request_overhead_ms']:g} ms outside iterations, and its first token surfaces "
        f"{summary['first_token_extra_iterations']} iterations after its own"
        + (" (assumed: no batch tells)" if summary["first_token_source"] == "assumed" else "")
    )
    if summary["kv_cache_tokens"]:
        source = {"server": "as the server says", "stated": "as stated", "gauge": "as its gauge rose"}
        results.print(
            f"the KV pool holds {summary['kv_cache_tokens']:.0f} tokens, {source[summary['kv_cache_tokens_source']]}"
        )
    if summary["acceptance_lengths"] is not None:
        yields = ", ".join(f"{x:.2f}" for x in summary["acceptance_lengths"])
        results.print(f"a verification yields {yields} tokens with {', '.join(map(str, SPEC_LENGTHS))} drafts")
    results.print(f"[bold]{out}[/]: {summary['cells']} cells in {cells.elapsed_s:.0f} s", soft_wrap=True)
    results.print(open_loop_line(open_loop(table)), soft_wrap=True, markup=False)
    return summary


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


def show_table(table: LatencyTable, cells: Cells, console: Console) -> None:
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
