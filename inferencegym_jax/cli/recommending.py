"""``inferencegym recommend``: which configuration to deploy for one's own traffic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from inferencegym_jax.cli.options import TableFile
from inferencegym_jax.cli.output import (
    ANSWER_NO,
    JSON,
    answers,
    escape,
    notices,
    number,
    print_json,
    sentences,
    table,
)
from inferencegym_jax.cli.pareto_plot import draw, save
from inferencegym_jax.policies.knob_text import knob_values

ROWS = {
    "goodput": "goodput requests/s",
    "attainment": "within the SLO",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p99_ms": "TTFT p99 ms",
    "tpot_ms": "TPOT ms",
    "cost_per_1k": "cost per 1k tokens",
    "gpus": "GPUs",
    "memory_gb": "peak GB",
}


def recommend(
    trace: Annotated[Path, typer.Option(help="Request log, CSV or JSON lines: time, prompt tokens, output tokens.")],
    table_file: TableFile = None,
    slo_ttft_ms: Annotated[float, typer.Option(help="Objective on a request's time to first token.")] = 300.0,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Objective on the time per output token.")] = None,
    attainment: Annotated[float, typer.Option(help="Share of requests that must be within the objectives.")] = 0.99,
    memory_gb: Annotated[
        float | None, typer.Option(help="GPU memory that the engine may use; default: that of the table's GPU.")
    ] = None,
    current: Annotated[
        str | None, typer.Option(help="What runs now: batch_size=32,...; default: the baseline.")
    ] = None,
    fixed: Annotated[str | None, typer.Option(help="Knobs to keep: quant_tier=0,prefill_disagg=false")] = None,
    acceptance: Annotated[float | None, typer.Option(help="Base acceptance rate of drafted tokens.")] = None,
    unit: Annotated[str | None, typer.Option(help="Of the log's times: s, ms, us or ns.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the Pareto front into this file (.png or .svg).")] = None,
    json_output: Annotated[bool, JSON] = False,
) -> None:
    """Search every configuration of the table on your own requests, and say what to run and what it gains.

    Exit code 1: no configuration meets the objective (the answer says how close one comes).
    """
    import warnings

    from inferencegym_jax.recommend.recommendation import recommend as search

    with sentences(), Progress(console=notices(), transient=True, disable=not notices().is_terminal) as bar:
        work = bar.add_task("compiling and replaying", total=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the answer holds the log's notices
            recommendation = search(
                trace,
                table=table_file,
                slo_ttft_ms=slo_ttft_ms,
                slo_tpot_ms=slo_tpot_ms,
                attainment=attainment,
                memory_gb=memory_gb,
                acceptance=acceptance,
                current=None if current is None else knob_values(current, "--current"),
                fixed=None if fixed is None else knob_values(fixed, "--fixed"),
                unit=unit,
                progress=lambda done, total: bar.update(work, completed=done, total=total),
            )
        if plot is not None:
            save(recommendation, plot)
    if json_output:
        print_json(recommendation.to_dict())
    else:
        show(recommendation, answers())
    if not recommendation.meets_slo:
        raise typer.Exit(ANSWER_NO)


def words(knobs: dict[str, Any]) -> str:
    """Knobs as ``name=value`` words."""
    return " ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in knobs.items()
    )


def changed(change: dict[str, float | None], unit: str = "", scale: float = 1.0) -> str:
    """A change with its sign and, where known, its 95 % interval."""
    point, low, high = (None if x is None else x * scale for x in (change["change"], change["low"], change["high"]))
    text = f"{'+' if (point or 0) >= 0 else '-'}{number(abs(point or 0.0))}{unit}"
    return text if low is None or high is None else f"{text} (95 %: {number(low)} to {number(high)})"


def show(recommendation: Any, console: Console) -> None:
    """Print the answer: the configuration first, then what it rests on."""
    best, goal = recommendation.results["recommended"], recommendation.objective
    limits = f"TTFT {number(goal.ttft_ms)} ms" + (
        "" if math.isinf(goal.tpot_ms) else f", TPOT {number(goal.tpot_ms)} ms"
    )
    console.print(f"[bold]Run: {words(recommendation.knobs)}[/]", soft_wrap=True)
    if recommendation.meets_slo:
        console.print(
            f"{best['attainment']:.2%} of the requests come within {limits}; wanted are {goal.attainment:.2%}."
        )
    else:
        console.print(
            f"[bold]No configuration meets the SLO[/] ({limits} for {goal.attainment:.2%} of the requests);"
            f" this one comes closest: {best['attainment']:.2%}, p99 TTFT {number(best['ttft_p99_ms'])} ms.",
            soft_wrap=True,
        )
    gain = recommendation.gains["recommended"]
    if recommendation.knobs == recommendation.current:
        console.print("It is what runs now: nothing else that was tried would be worth a change.")
    else:
        console.print(
            f"Over {words(recommendation.current)}:\n"
            f"    goodput  {changed(gain['goodput'])} requests/s\n"
            f"    p99 TTFT {changed(gain['ttft_p99_ms'])} ms\n"
            f"    cost     {changed(gain['cost_per_1k'])} per 1k tokens",
            soft_wrap=True,
        )
    if recommendation.one_gpu is not None:
        single = recommendation.one_gpu
        console.print(
            f"On one GPU instead: {words(single['knobs'])}: {single['attainment']:.2%} within the SLO,"
            f" cost {number(single['cost_per_1k'])} per 1k tokens.",
            soft_wrap=True,
        )
    columns = [name for name in recommendation.results if name != "best"]
    rows = [
        (label, *(_cell(key, recommendation.results[name][key]) for name in columns)) for key, label in ROWS.items()
    ]
    console.print()
    console.print(table(("", *columns), rows))
    for name in columns[2:]:
        gain = recommendation.gains[name]
        console.print(
            f"The {name} controller adds {changed(gain['goodput'])} requests/s to the recommended configuration,"
            f" p99 TTFT {changed(gain['ttft_p99_ms'])} ms.",
            soft_wrap=True,
        )
    for engine, commands in recommendation.flags.items():
        console.print(f"\n[bold]{engine}[/]\n{escape(commands)}", soft_wrap=True)
    console.print()
    draw(recommendation, console)
    traffic = recommendation.traffic
    console.print(
        f"{recommendation.searched:,} configurations on {traffic['replayed_requests']:,} requests in"
        f" {traffic['replayed_seconds']:,} s of {escape(traffic['name'])}: {number(traffic['requests_per_sec'])}"
        f" requests/s, {number(traffic['mean_prompt_tokens'])} prompt and"
        f" {number(traffic['mean_output_tokens'])} output tokens.",
        soft_wrap=True,
    )
    for notice in recommendation.notices:
        console.print(f"Note: {escape(notice)}.", soft_wrap=True)


def _cell(key: str, value: float) -> str:
    return f"{value:.2%}" if key == "attainment" else number(value)
