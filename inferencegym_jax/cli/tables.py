"""``inferencegym table``: check, describe and build latency tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from inferencegym_jax.cli import table_building
from inferencegym_jax.cli.output import (
    ANSWER_NO,
    JSON,
    answers,
    escape,
    fail,
    number,
    print_json,
    sentences,
    table,
)
from inferencegym_jax.hardware import Placement
from inferencegym_jax.models import KNOBS
from inferencegym_jax.table import vllm_bench as bench_results
from inferencegym_jax.table.derived_profile import profile_of
from inferencegym_jax.table.latency_table import KEYS, METRICS, LatencyTable, TableError, load_table

app = typer.Typer(no_args_is_help=True, help="Latency tables: check, describe, build from measurements.")

TableArgument = Annotated[Path | None, typer.Argument(help="Parquet or CSV file; default: the shipped table.")]


def description(loaded: LatencyTable) -> dict[str, Any]:
    """Axes, ranges and provenance of a table."""
    flat = loaded.values.reshape(-1, len(METRICS))
    return {
        "name": loaded.name,
        "rows": int(np.prod(loaded.values.shape[:-1])),
        "axes": {key: list(loaded.axes[key]) for key in KEYS},
        "locked_knobs": list(loaded.locked_knobs),
        "metrics": {
            name: {"min": float(flat[:, i].min()), "max": float(flat[:, i].max())} for i, name in enumerate(METRICS)
        },
        "metadata": loaded.metadata,
        "digest": loaded.digest,
        "open_loop": open_loop(loaded),
    }


def open_loop(loaded: LatencyTable) -> dict[str, Any]:
    """Whether open-loop tasks can use a table: where its engine profile comes from and the pool of each weight format,
    or what is missing."""
    try:
        profile = profile_of(loaded)
    except TableError as error:
        return {"ready": False, "missing": str(error)}
    tiers = [int(tier) for tier in loaded.axes["quant_tier"]]
    return {
        "ready": True,
        "profile": "derived from the TPOT columns" if loaded.engine is None else "its own",
        "memory_gb": profile.memory_gb,
        "pool_tokens": [int(profile.pool_tokens(tier)) for tier in tiers],
        "digest": profile.digest,
    }


def open_loop_line(about: dict[str, Any]) -> str:
    """``open_loop`` in words."""
    if not about["ready"]:
        return f"closed-loop tasks only: {about['missing']}"
    pools = ", ".join(f"{tokens:,}" for tokens in about["pool_tokens"])
    return f"open-loop tasks: engine profile {about['profile']}; KV pool of {pools} tokens"


def print_axes(about: dict[str, Any]) -> None:
    """The values on each axis of a table's description."""
    rows = [(key, ", ".join(f"{x:g}" for x in values)) for key, values in about["axes"].items()]
    answers().print(table(("axis", "values"), rows, 2))


@app.command()
def check(file: TableArgument = None, json_output: Annotated[bool, JSON] = False) -> None:
    """Check a table: exit code 0 if the environment can use it, 1 with the first offending row if not."""
    try:
        loaded = load_table(file)
    except TableError as error:
        if json_output:
            print_json({"ok": False, "error": str(error)})
            raise typer.Exit(ANSWER_NO) from None
        fail(error, ANSWER_NO)
    except OSError as error:
        fail(error)
    about = description(loaded)
    if json_output:
        print_json({"ok": True} | {key: about[key] for key in ("rows", "locked_knobs", "open_loop")})
        return
    axes = " x ".join(f"{len(values)} {key}" for key, values in about["axes"].items() if len(values) > 1)
    console = answers()
    console.print(f"ok: {about['rows']:,} rows = {axes or 'one point'}")
    for name in loaded.locked_knobs:
        value = loaded.axes[name][0]
        console.print(f"    {name} has one value, {value:g}: the knob is locked ({KNOBS[name].description})")
    console.print(f"    {escape(open_loop_line(about['open_loop']))}", soft_wrap=True)


@app.command()
def info(file: TableArgument = None, json_output: Annotated[bool, JSON] = False) -> None:
    """Axes, ranges and provenance of a table."""
    with sentences():
        about = description(load_table(file))
    if json_output:
        print_json(about)
        return
    console = answers()
    console.print(f"[bold]{escape(about['name'])}[/]  {about['rows']:,} rows")
    print_axes(about)
    console.print()
    rows = [(name, number(bounds["min"]), number(bounds["max"])) for name, bounds in about["metrics"].items()]
    console.print(table(("metric", "least", "most"), rows))
    console.print()
    console.print(escape(open_loop_line(about["open_loop"])), soft_wrap=True)
    for name, value in about["metadata"].items():
        console.print(f"[bold]{escape(name)}[/]  {escape(str(value))}", soft_wrap=True)


@app.command("list")
def list_(
    system: table_building.System = None,
    model: table_building.Model = None,
    backend: Annotated[str | None, typer.Option("--backend", help="vllm, trtllm or sglang.")] = None,
    json_output: Annotated[bool, JSON] = False,
) -> None:
    """What is measured: models x systems x backends x weight formats, and how it compares with measured runs."""
    table_building.list_covered(system, model, backend, json_output)


@app.command()
def build(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of JSON files that `vllm bench serve --save-result` wrote.")
    ] = None,
    model: table_building.Model = None,
    system: table_building.System = None,
    backend: table_building.Backend = "vllm",
    tp: table_building.Gpus = 1,
    ep: table_building.ExpertParts = 1,
    pp: table_building.Stages = 1,
    dp: table_building.Copies = 1,
    dtype: table_building.WeightFormat = None,
    kv_dtype: table_building.CacheFormat = None,
    price_per_gpu_hour: table_building.GpuPrice = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Table to write (.parquet or .csv).")] = Path(
        "measured.parquet"
    ),
    gpu_mem_gb: Annotated[
        float | None, typer.Option(help="GPU memory (GB) of every run that does not state gpu_mem_gb itself.")
    ] = None,
    price: Annotated[
        float, typer.Option(help="Price of a GPU second; cost_per_1k = price x GPUs x 1000 / tokens/s.")
    ] = 1.0,
    json_output: Annotated[bool, JSON] = False,
) -> None:
    """Build a table: of any model on any measured GPU (--model, --system), or from a folder of `vllm bench serve` runs.

    A folder holds one JSON file a point, closed-loop runs with --max-concurrency. Knobs that a run does not state are
    at their defaults; state them with `--metadata spec_length=4 quant_tier=1`.
    """
    if folder is None:
        with sentences():
            placement = Placement(tp, ep, pp, dp)
            request = table_building.request_of(model, system, backend, placement, dtype, kv_dtype, price_per_gpu_hour)
        table_building.build_any(request, out, json_output)
        return
    if model is not None or system is not None:
        fail(f"folder = {str(folder)!r} and --model or --system: give a folder of measured runs, or a model and a GPU")
    with sentences():
        points = bench_results.read_folder(folder)
        built = bench_results.build_table(points, gpu_mem_gb=gpu_mem_gb, price=price)
        bench_results.write_table(built, out)
    summary = {"out": str(out), "runs": len(points), **description(built)}
    if json_output:
        print_json(summary)
        return
    console = answers()
    console.print(f"{len(points)} runs -> {escape(str(out))}: {summary['rows']} rows")
    print_axes(summary)
    if built.locked_knobs:
        console.print(f"locked, as one value was measured: {', '.join(built.locked_knobs)}")
