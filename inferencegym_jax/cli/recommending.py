"""``inferencegym recommend``: which configuration to deploy for one's own traffic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from inferencegym_jax.cli import table_building
from inferencegym_jax.cli.options import LogColumns, LogFrom, LogLast, LogTo, LogUnit, TableFile
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
from inferencegym_jax.cli.pareto_plot import check_ending, draw, save
from inferencegym_jax.policies.knob_text import knob_values

if TYPE_CHECKING:
    from inferencegym_jax.recommend.recommendation import Recommendation

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
    trace: Annotated[
        Path, typer.Option(help="Request log (docs/request_logs.md): time, prompt tokens, output tokens.")
    ],
    table_file: TableFile = None,
    slo_ttft_ms: Annotated[float, typer.Option(help="Objective on a request's time to first token.")] = 300.0,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Objective on the time per output token.")] = None,
    attainment: Annotated[float, typer.Option(help="Share of requests that must be within the objectives.")] = 0.99,
    memory_gb: Annotated[
        float | None, typer.Option(help="GPU memory that the engine may use; default: 0.9 of the table's GPU's.")
    ] = None,
    current: Annotated[
        str | None, typer.Option(help="What runs now: batch_size=32,...; default: the baseline.")
    ] = None,
    fixed: Annotated[
        str | None,
        typer.Option(help="Knobs that may not change, for controllers too: quant_tier=0,prefill_disagg=false"),
    ] = None,
    acceptance: Annotated[
        float | None, typer.Option(help="Probability that a drafted token is accepted; default: measured.")
    ] = None,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
    model: table_building.Model = None,
    system: table_building.System = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="With --model and --system: at most so many GPUs.")] = None,
    backend: table_building.Backend = "vllm",
    dtype: table_building.WeightFormat = None,
    kv_dtype: table_building.CacheFormat = None,
    price_per_gpu_hour: table_building.GpuPrice = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the Pareto front into this file (.png or .svg).")] = None,
    json_output: Annotated[bool, JSON] = False,
) -> None:
    """Search every configuration of the table on your own requests, replay the best, and say what to run and what it
    gains.

    With --model, --system and --gpus: how to cut so many GPUs for that model, tensor parallel x replicas x prefill
    engines x weight format x slots x token budget x drafts, each answer replayed.

    Exit code 1: no configuration meets the objective (the answer says how close one comes, and what would meet it).
    """
    import warnings

    if model is not None or system is not None or gpus is not None:
        from inferencegym_jax.cli.gpu_recommending import recommend_gpus
        from inferencegym_jax.traffic.log_files import ReadOptions

        with sentences():
            if gpus is None:
                raise ValueError("--gpus is missing: --model and --system ask how to cut so many GPUs")
            table_options = {"--table": table_file, "--current": current, "--fixed": fixed, "--memory-gb": memory_gb}
            for name, value in (table_options | {"--acceptance": acceptance, "--plot": plot}).items():
                if value is not None:
                    raise ValueError(f"{name} has no place beside --model, --system and --gpus")
            cut = table_building.Placement()
            request = table_building.request_of(model, system, backend, cut, dtype, kv_dtype, price_per_gpu_hour)
            options = ReadOptions.of(unit, columns, start, end, last)
        goal = {"slo_ttft_ms": slo_ttft_ms, "slo_tpot_ms": slo_tpot_ms, "attainment": attainment}
        if not recommend_gpus(trace, request, gpus, goal, options, json_output):
            raise typer.Exit(ANSWER_NO)
        return

    from inferencegym_jax.recommend.recommendation import recommend as search

    with sentences():
        if plot is not None:
            check_ending(plot)
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
                columns=columns,
                start=start,
                end=end,
                last=last,
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


def changed(change: Mapping[str, float | None], unit: str = "", scale: float = 1.0) -> str:
    """A change with its sign and, where known, its 95 % interval."""
    point, low, high = (None if x is None else x * scale for x in (change["change"], change["low"], change["high"]))
    if point is not None and not math.isfinite(point):
        return "not to be said: some requests never had a token"
    text = f"{'+' if (point or 0) >= 0 else '-'}{number(abs(point or 0.0))}{unit}"
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return text
    return f"{text} (95 %: {number(low)} to {number(high)})"


def verdict(change: Mapping[str, float | None]) -> str:
    """Whether a change of goodput is a gain, a loss, or neither: its interval holds 0."""
    low, high = change["low"], change["high"]
    if low is not None and high is not None and low <= 0.0 <= high:
        return "neither gains nor loses clearly"
    point = change["change"] or 0.0
    return "gains" if point > 0 else "loses" if point < 0 else "changes nothing"


def show(recommendation: Recommendation, console: Console) -> None:
    """Print the answer: the configuration first, or what it would take; then what it rests on."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    goal = recommendation.objective
    limits = f"TTFT {number(goal.ttft_ms)} ms" + (
        "" if math.isinf(goal.tpot_ms) else f", TPOT {number(goal.tpot_ms)} ms"
    )
    if recommendation.meets_slo:
        say(f"[bold]Run: {words(recommendation.knobs)}[/]")
        say(f"{_kept(recommendation)} within {limits}; wanted are {goal.attainment:.2%}.")
    else:
        say(f"[bold]No configuration meets the SLO[/] ({limits} for {goal.attainment:.2%} of the requests).")
        say(f"This one comes closest: {words(recommendation.knobs)}: {_kept(recommendation)}.")
        for text in would_do(recommendation):
            say(text)
    _busiest(recommendation, say)
    _compared(recommendation, say)
    columns = list(recommendation.results)
    each = int(recommendation.engine["gpus"])
    rows = [
        (label, *(_cell(key, recommendation.results[name][key] * (each if key == "gpus" else 1)) for name in columns))
        for key, label in ROWS.items()
    ]
    console.print()
    console.print(table(("", *columns), rows))
    say(
        "recommended, current: replayed request by request as the flags below set them; promised (the recommended) and"
        " the controllers: simulated second by second."
    )
    for name in list(recommendation.gains):
        if name == "recommended":
            continue
        gain = recommendation.gains[name]
        say(
            f"The {name} controller {verdict(gain['goodput'])} against what is promised of the recommended"
            f" configuration: {changed(gain['goodput'])} requests/s, p99 TTFT {changed(gain['ttft_p99_ms'], ' ms')}."
        )
    remedy = recommendation.remedies
    if remedy is not None:
        say(f"\nWhat sets up each of the {remedy.engines} engines:" if remedy.engines else "\nWhat sets it up:")
    for engine, commands in recommendation.flags.items():
        say(f"\n[bold]{engine}[/]\n{escape(commands)}")
    console.print()
    draw(recommendation, console)
    traffic = recommendation.traffic
    say(
        f"{recommendation.searched:,} configurations and {recommendation.replayed} replays on"
        f" {traffic['replayed_requests']:,} of {traffic['requests']:,} requests"
        f" ({traffic['replayed_share']:.1%}), in {traffic['replayed_seconds']:,} of {traffic['seconds']:,} s of"
        f" {escape(traffic['name'])}: {number(traffic['replayed_requests_per_sec'])} requests/s,"
        f" {number(traffic['replayed_prompt_tokens'])} prompt and {number(traffic['replayed_output_tokens'])} output"
        " tokens in what was replayed."
    )
    for notice in recommendation.notices:
        say(f"Note: {escape(notice)}.")


def _kept(recommendation: Recommendation) -> str:
    """Replay and promise side by side."""
    kept, promised = (recommendation.results[name]["attainment"] for name in ("recommended", "promised"))
    text = f"{kept:.2%} of the requests come in time in the replay, {promised:.2%} were promised"
    if recommendation.agrees:
        return text
    return f"{text} (they are {abs(kept - promised) * 100:.1f} points apart: do not rely on the promise)"


def would_do(recommendation: Recommendation) -> list[str]:
    """What would make the objective feasible, one sentence each."""
    remedy, goal = recommendation.remedies, recommendation.objective
    if remedy is None:
        return []
    said: list[str] = []
    if remedy.engines is not None and remedy.knobs is not None:
        said.append(
            f"What would do: spread it over {remedy.engines} engines ({remedy.gpus} GPUs) of {words(remedy.knobs)},"
            f" each request to one in turn: {remedy.attainment:.2%} in time in the replay."
        )
    elif remedy.idle_attainment < goal.attainment:
        said.append(
            f"No number of engines would do: where every request finds its engine idle, {remedy.idle_attainment:.2%}"
            " are in time."
        )
    else:
        said.append(f"{remedy.most_engines} engines would not do; more were not tried.")
    if remedy.ttft_ms is not None:
        limit = "" if remedy.tpot_ms is None else f" and on TPOT of {number(remedy.tpot_ms)} ms"
        said.append(
            f"Or another objective: on TTFT of {number(remedy.ttft_ms)} ms{limit} it would be met by the closest one."
        )
    elif remedy.tpot_ms is not None:
        said.append(f"Or another objective: {goal.attainment:.2%} have a TPOT within {number(remedy.tpot_ms)} ms.")
    if remedy.longest_request_gb is not None:
        said.append(
            f"The KV pool holds {recommendation.engine['pool_tokens']:,} tokens, less than the longest request: with"
            f" --memory-gb {remedy.longest_request_gb:.1f} it holds that."
        )
    return said


def _busiest(recommendation: Recommendation, say: Callable[[str], None]) -> None:
    hour = recommendation.traffic["busiest_hour"]
    if hour["seconds"] < recommendation.traffic["seconds"]:
        say(
            f"Busiest hour (from second {hour['start_s']:,}; {hour['requests']:,} requests,"
            f" {hour['replayed_requests']:,} of them replayed): {recommendation.busiest_hour:.2%} in time."
        )


def _compared(recommendation: Recommendation, say: Callable[[str], None]) -> None:
    """The answer beside what runs now and beside fewer GPUs."""
    gain = recommendation.gains.get("recommended")
    if recommendation.knobs == recommendation.current:
        say("It is what runs now: nothing else that was tried would be worth a change.")
    elif gain is not None:
        say(
            f"Over {words(recommendation.current)} it {verdict(gain['goodput'])}:\n"
            f"    goodput  {changed(gain['goodput'])} requests/s\n"
            f"    p99 TTFT {changed(gain['ttft_p99_ms'], ' ms')}\n"
            f"    cost     {changed(gain['cost_per_1k'])} per 1k tokens"
        )
    single, pair, each = recommendation.one_gpu, recommendation.two_engines, int(recommendation.engine["gpus"])
    if single is not None and pair is not None:
        fewer = "one GPU" if each == 1 else f"{each} GPUs"
        say(
            f"On {fewer} instead: {words(single['knobs'])}: {single['attainment']:.2%} in time in the replay; two"
            f" engines of that, each request to one in turn: {pair['attainment']:.2%}."
        )


def _cell(key: str, value: float) -> str:
    return f"{value:.2%}" if key == "attainment" else number(value)
