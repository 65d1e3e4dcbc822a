"""``inferencegym table build`` and ``table list``: tables of any model, and what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from inferencegym_jax.cli.output import answers, escape, notices, print_json, sentences, table
from inferencegym_jax.hardware import Covered, Placement, Request, build, covered
from inferencegym_jax.hardware.dtypes import DTYPES
from inferencegym_jax.hardware.gpus import gpu_named, money_per_million_tokens
from inferencegym_jax.table import METRICS, LatencyTable
from inferencegym_jax.table import vllm_bench as bench_results

PROMPT, MOST_SHOWN = 1024.0, 64  # of the example that a built table is shown with

Model = Annotated[str | None, typer.Option("--model", help="Name on Hugging Face, or the path of a config.json.")]
System = Annotated[str | None, typer.Option("--system", help="GPU, such as h100_sxm; `table list` shows them.")]
Backend = Annotated[str, typer.Option("--backend", help="vllm, trtllm or sglang.")]
Gpus = Annotated[int, typer.Option("--tp", help="GPUs that share every layer (tensor parallel).")]
ExpertParts = Annotated[int, typer.Option("--ep", help="Parts into which the experts are dealt (expert parallel).")]
Stages = Annotated[int, typer.Option("--pp", help="Pipeline stages.")]
Copies = Annotated[int, typer.Option("--dp", help="Copies of the attention layers that share the experts.")]
WeightFormat = Annotated[
    str | None,
    typer.Option("--dtype", help="bf16, fp8, int8, int4, fp4; default: the checkpoint's, or all that are measured."),
]
CacheFormat = Annotated[str | None, typer.Option("--kv-dtype", help="bf16, fp8 or int8; default: the checkpoint's.")]
GpuPrice = Annotated[
    float | None, typer.Option("--price-per-gpu-hour", help="Dollars; default: a list price with its source and date.")
]


def request_of(
    model: str | None,
    system: str | None,
    backend: str,
    placement: Placement,
    dtype: str | None,
    kv_dtype: str | None,
    price: float | None,
) -> Request:
    """The request of a command line.

    Raises:
        ValueError: model or system is not given.
    """
    for name, value in (("--model", model), ("--system", system)):
        if value is None:
            raise ValueError(f"{name} is missing: a table of any model needs --model and --system")
    assert model is not None and system is not None
    return Request(model, system, backend, placement, dtype, kv_dtype, price_per_gpu_hour=price)


def build_any(request: Request, out: Path, json_output: bool) -> None:
    """Build the table of a request, write it, and say what it rests on."""
    with sentences():
        built = build(request)
        bench_results.write_table(built.table, out)
    if json_output:
        print_json({"out": str(out), "metadata": built.table.metadata, "notices": list(built.notices)})
        return
    show(built.table, out)
    for notice in built.notices:
        notices().print(f"Note: {escape(notice)}.", soft_wrap=True)


def show(built: LatencyTable, out: Path) -> None:
    """What a table of measured kernels holds: memory, cache, price, and what an hour of it serves."""
    about, profile, console = built.metadata, built.engine, answers()
    assert profile is not None
    gpus = int(about["gpus_per_engine"])
    console.print(f"[bold]{escape(str(out))}[/]  {escape(built.name)}: {about['engine']}, {about['parallelism']}")
    dtypes = json.loads(about["dtypes"])
    pools, weights = json.loads(about["pool_tokens"]), json.loads(about["weights_gb_per_gpu"])
    price = profile.price_per_gpu_hour
    rows: list[tuple[Any, ...]] = []
    for tier, name in dtypes.items():
        values = built.values[0, sorted(dtypes).index(tier), 0, :, 0, built.axes["prompt_len_bucket"].index(PROMPT)]
        room = pools[name] // (PROMPT + built.output_length)
        running = [int(n) for n in built.axes["batch_size"] if n <= min(room, MOST_SHOWN)]
        if running:
            row = dict(zip(METRICS, values[len(running) - 1].tolist(), strict=True))
            money = None if price is None else money_per_million_tokens(row["cost_per_1k"], price)
            served = (running[-1], row["tpot_ms"], row["tps"], money)
        else:
            served = (0, None, None, None)
        rows.append((f"{tier} {name}", DTYPES[name].meaning, f"{weights[name]:.1f}", pools[name], *served))
    heads = ("tier", "weights", "GB a GPU", "KV tokens", "running", "TPOT ms", "tokens/s", "$ per 1M tokens")
    console.print(table(heads, rows, 2))
    console.print(
        f"requests of {PROMPT:,.0f} prompt and {built.output_length:g} output tokens, up to {MOST_SHOWN} at once"
    )
    each = float(about["kv_bytes_per_token_per_gpu"])
    console.print(
        f"one GPU: {profile.memory_gb:g} GB, of which {profile.runtime_gb:.1f} GB runtime; KV cache"
        f" {about['kv_dtype']}, {each:,.0f} bytes a token on each of {gpus}"
    )
    cost = "unknown" if price is None else f"${price:g}"
    console.print(f"price a GPU-hour: {cost} ({escape(about['price_source'])})")


def list_covered(system: str | None, model: str | None, backend: str | None, json_output: bool) -> None:
    """Print what is measured; one line a model where a model or a system and backend are named."""
    with sentences():
        systems = covered(None if system is None else gpu_named(system).system, model, backend)
    if json_output:
        print_json([described(one) for one in systems])
        return
    if model is None and (system is None or backend is None):
        _summary(systems)
        return
    rows = [(c.model, c.system, f"{c.backend} {c.version}", c.measured, " ".join(c.dtypes), _short(c)) for c in systems]
    answers().print(table(("model", "system", "backend", "kernels", "dtypes", "against measured runs"), rows, 6))


def _short(one: Covered) -> str:
    return "; ".join(by.text for by in one.by_dtype.values()) or "-"


def described(one: Covered) -> dict[str, Any]:
    """A line of the list as JSON."""
    return {
        "model": one.model,
        "system": one.system,
        "backend": one.backend,
        "version": one.version,
        "measured": one.measured,
        "dtypes": list(one.dtypes),
        "validated": one.verdict.validated,
        "verdict": one.verdict.text,
        "by_dtype": {name: {"validated": by.validated, "verdict": by.text} for name, by in one.by_dtype.items()},
    }


def _summary(systems: list[Covered]) -> None:
    groups: dict[tuple[str, str], list[Covered]] = {}
    for one in systems:
        groups.setdefault((one.system, f"{one.backend} {one.version}"), []).append(one)
    rows = []
    for (system, backend), ones in groups.items():
        verdicts = [by.validated for one in ones for by in one.by_dtype.values()]
        counts = (verdicts.count(True), verdicts.count(False))
        rows.append((system, backend, " ".join(ones[0].dtypes), len(ones), *counts))
    heads = ("system", "backend", "dtypes", "models measured", "validated", "not validated")
    answers().print(table(heads, rows, 3))
    names = sorted({one.model for one in systems})
    answers().print("validated or not: model x weight format, where there are measured runs")
    answers().print(f"{len(names)} models; `--model`, or `--system` with `--backend`, lists them with their errors")
