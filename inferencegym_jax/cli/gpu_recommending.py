"""``inferencegym recommend --model --system --gpus``: how to cut N GPUs for a model and a log."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from inferencegym_jax.cli.output import answers, escape, notices, number, print_json, sentences, table
from inferencegym_jax.hardware import Request
from inferencegym_jax.recommend.gpu_choice import GpuChoice, Tried, choose_gpus
from inferencegym_jax.traffic.log_files import ReadOptions


def recommend_gpus(
    trace: Path,
    request: Request,
    gpus: int,
    objective: dict[str, Any],
    options: ReadOptions | None,
    json_output: bool,
) -> bool:
    """Search, replay and print; whether the objective is met."""
    with sentences(), Progress(console=notices(), transient=True, disable=not notices().is_terminal) as bar:
        work = bar.add_task("replaying", total=None)
        recommendation = choose_gpus(
            trace,
            request,
            gpus,
            **objective,
            options=options,
            progress=lambda done, total: bar.update(work, completed=done, total=total),
        )
    if json_output:
        print_json(to_dict(recommendation))
    else:
        show(recommendation, answers())
    return recommendation.best.meets


def row(one: Tried) -> dict[str, Any]:
    """A layout and what its replay kept, as JSON has it."""
    layout = one.layout
    return {
        "layout": str(layout),
        "gpus": layout.gpus,
        "tensor_parallel": layout.tp,
        "replicas": layout.replicas,
        "prefill_engines": layout.replicas if layout.apart else 0,
        "quant_tier": layout.tier,
        "max_num_seqs": layout.slots,
        "max_num_batched_tokens": layout.token_budget,
        "drafts": layout.drafts,
        "attainment": one.attainment,
        "ttft_p99_ms": one.ttft_p99_ms,
        "tpot_ms": one.tpot_ms,
        "dollars_per_million_tokens": one.money,
        "gpu_seconds_per_1k_tokens": one.gpu_seconds,
        "meets": one.meets,
    }


def to_dict(found: GpuChoice) -> dict[str, Any]:
    """The answer as JSON has it."""
    return {
        "model": found.model,
        "system": found.system,
        "backend": found.backend,
        "recommended": row(found.best),
        "front": [row(one) for one in found.front],
        "dtypes": found.dtypes,
        "flags": found.flags,
        "skipped": found.skipped,
        "searched": found.searched,
        "replayed": len(found.tried),
        "price_per_gpu_hour": found.price_per_gpu_hour,
        "price_source": found.price_source,
        "notices": list(found.notices),
    }


def show(found: GpuChoice, console: Console) -> None:
    """Print the answer: the cut first, then what else was worth its cost."""
    best, goal = found.best, found.objective
    limits = f"TTFT {number(goal.ttft_ms)} ms"
    limits += "" if math.isinf(goal.tpot_ms) else f", TPOT {number(goal.tpot_ms)} ms"
    dtype = found.dtypes[best.layout.tier]
    settings = f"{dtype}, {best.layout.slots} slots, {best.layout.token_budget:,} tokens an iteration"
    settings += f", {best.layout.drafts} drafts" if best.layout.drafts else ""
    if best.meets:
        console.print(f"[bold]Run: {best.layout}[/] ({settings}) of {escape(found.model)} on {found.system}")
        console.print(f"{best.attainment:.2%} of the requests came within {limits} when replayed one by one.")
    else:
        console.print(f"[bold]No cut of these GPUs meets {limits} for {goal.attainment:.2%} of the requests[/]")
        console.print(f"closest: {best.layout} ({settings}): {best.attainment:.2%}")
    console.print()
    heads = ("GPUs", "layout", "weights", "slots", "tokens", "drafts", "on time", "$ per 1M", "GPU-s per 1k")
    heads = (*heads, "TTFT p99 ms", "TPOT ms")
    rows = [
        (
            str(one.layout.gpus),
            str(one.layout),
            found.dtypes[one.layout.tier],
            one.layout.slots,
            one.layout.token_budget,
            one.layout.drafts,
            f"{one.attainment:.2%}",
            one.money,
            one.gpu_seconds,
            one.ttft_p99_ms,
            one.tpot_ms,
        )
        for one in found.front
    ]
    console.print(table(heads, rows, 3))
    shown_kinds = {one.layout.kind for one in found.front}
    beaten = {one.layout.kind: one for one in sorted(found.tried, key=lambda one: one.attainment)}
    rest = [f"{one.layout}: {one.attainment:.2%}" for kind, one in beaten.items() if kind not in shown_kinds]
    if rest:
        console.print(f"replayed and beaten by these: {', '.join(rest)}", soft_wrap=True)
    price = "no price" if found.price_per_gpu_hour is None else f"${found.price_per_gpu_hour:g} a GPU-hour"
    console.print(f"tokens are output tokens; {price} ({escape(found.price_source)})", soft_wrap=True)
    if best.meets:
        for engine, commands in found.flags.items():
            console.print(f"\n[bold]{engine}, each of {best.layout.replicas}[/]\n{escape(commands)}", soft_wrap=True)
    console.print(
        f"\n{found.searched:,} layouts judged by closed forms, {len(found.tried)} replayed request by request."
    )
    for notice in found.notices:
        console.print(f"Note: {escape(notice)}.", soft_wrap=True)
