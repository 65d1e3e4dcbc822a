"""``inferencegym plan``: how many GPUs one's own traffic needs, and by which rule to size the fleet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from inferencegym_jax.cli.options import LogColumns, LogFrom, LogLast, LogTo, LogUnit, TableFile
from inferencegym_jax.cli.output import ANSWER_NO, JSON, answers, escape, print_json, sentences, table

SHOWN = 12
KINDS: dict[str, str] = {"fixed": "fixed size", "split": "fixed split", "rule": "rule", "learned": "learned policy"}
"""Kinds of rows whose best is named, and what people call them."""


def plan(
    trace: Annotated[
        Path, typer.Option(help="Request log (docs/request_logs.md): time, prompt tokens, output tokens.")
    ],
    table_file: TableFile = None,
    gpus: Annotated[int, typer.Option(help="GPUs that there are, 1 to 8.")] = 8,
    slo_ttft_ms: Annotated[float, typer.Option(help="Objective on a request's time to first token.")] = 1000.0,
    slo_tpot_ms: Annotated[float, typer.Option(help="Objective on the time per output token.")] = 50.0,
    share: Annotated[float, typer.Option(help="Share of requests that must be within both.")] = 0.99,
    start_s: Annotated[float, typer.Option(help="Seconds from asking for a GPU until it serves.")] = 100.0,
    batch_size: Annotated[int, typer.Option(help="Most requests running on a GPU: vLLM's --max-num-seqs.")] = 128,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
    json_output: Annotated[bool, JSON] = False,
) -> None:
    """Replay your own requests on fleets of 1 to N GPUs, on every split into prefill and decode, and under every rule.

    Exit code 1: nothing keeps the share on time (the answer says how close one comes).
    """
    from inferencegym_jax.recommend.fleet_plan import plan_fleet
    from inferencegym_jax.traffic.request_log import load_trace

    with sentences(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answer holds the log's notices
        fleet_plan = plan_fleet(
            load_trace(trace, unit, columns=columns, start=start, end=end, last=last),
            table=table_file,
            gpus=gpus,
            slo_ttft_ms=slo_ttft_ms,
            slo_tpot_ms=slo_tpot_ms,
            share=share,
            start_s=start_s,
            batch_size=batch_size,
        )
    if json_output:
        print_json(fleet_plan.to_dict())
    else:
        console = answers()
        best = fleet_plan.best
        text = f"{best.on_time_share:.2%} of the requests on time at {best.mean_gpus:.2f} GPUs on average"
        if fleet_plan.meets:
            console.print(f"[bold]Cheapest: {escape(best.name)}[/]: {text}", soft_wrap=True)
        else:
            console.print(f"[bold]Nothing keeps {share:.2%} on time[/]; closest: {escape(best.name)}: {text}")
        for kind, words in KINDS.items():
            row = fleet_plan.best_of.get(kind)
            if row is not None:
                text = f"{row.on_time_share:.2%} on time, {row.mean_gpus:.2f} GPUs"
                short = "" if row.meets else " (the closest; none keeps the share)"
                console.print(f"Best {words}: {escape(row.name)}, {text}{short}", soft_wrap=True)
        rows = [
            (
                row.name,
                row.kind,
                f"{row.on_time_share:.2%}",
                f"{row.mean_gpus:.2f}",
                f"{row.gpu_seconds:.0f}",
                f"{row.changes_an_hour:.1f}",
                ", ".join(fleet_plan.failures.get(row.name, ())) if row.kind.startswith(("rule", "learned")) else "",
            )
            for row in _shown(fleet_plan.rows)
        ]
        head = ("", "kind", "on time", "mean GPUs", "GPU-seconds", "changes/h", "fails")
        console.print(table(head, rows))
        for name, words in fleet_plan.settings.items():
            console.print(f"[bold]{name}[/]: {escape(words)}", soft_wrap=True)
        traffic = fleet_plan.traffic
        console.print(
            f"{traffic['requests']:,.0f} requests in {traffic['seconds']:,.0f} s, {traffic['mean_prompt']:.0f} prompt "
            f"and {traffic['mean_output']:.0f} output tokens on average: {traffic['mean_gpus_busy']:.2f} GPUs busy. "
            f"At most {fleet_plan.batch_size} run on a GPU at once.",
            soft_wrap=True,
        )
        for notice in fleet_plan.notices:
            console.print(f"Note: {escape(notice)}.", soft_wrap=True)
    if not fleet_plan.meets:
        raise typer.Exit(ANSWER_NO)


def _shown(rows: tuple) -> list:  # pyright: ignore[reportMissingTypeArgument]
    """The first rows, and every rule at its defaults."""
    return [row for i, row in enumerate(rows) if i < SHOWN or row.kind in ("rule at its defaults", "learned")]
