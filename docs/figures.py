"""The figures of the physics page, drawn from the shipped table: `python docs/figures.py`. Needs the demo extra."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import inferencegym_jax as ig
from inferencegym_jax.table.latency_table import KEYS, METRICS

OUT = Path(__file__).resolve().parent / "images"
TIERS = ("FP16", "INT8 (W8A8)", "INT4 (weights)")
FIXED = {
    "spec_length": 0,
    "quant_tier": 0,
    "prefill_disagg": 0,
    "batch_size": 32,
    "kv_budget": 1.0,
    "prompt_len_bucket": 256,
}


def along(table: ig.LatencyTable, metric: str, axis: str, **at: float) -> tuple[np.ndarray, np.ndarray]:
    """A metric along one axis of the table, the other axes fixed at ``FIXED`` or as given."""
    index = tuple(slice(None) if key == axis else table.axes[key].index(float({**FIXED, **at}[key])) for key in KEYS)
    return np.asarray(table.axes[axis]), table.values[(*index, METRICS.index(metric))]


def figure(
    name: str, xlabel: str, ylabel: str, lines: dict[str, tuple[np.ndarray, np.ndarray]], **options: object
) -> None:
    """One plain plot, as SVG without anything that changes from run to run."""
    drawing = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = drawing.subplots()
    for label, (x, y) in lines.items():
        axes.plot(x, y, "o-", markersize=4, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, **options)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    drawing.savefig(OUT / f"{name}.svg", metadata={"Date": None})


def main() -> None:
    """Draw all of them."""
    matplotlib.rcParams |= {"svg.hashsalt": "inferencegym", "svg.fonttype": "none"}
    table = ig.load_table()
    tiers = {name: along(table, "tps", "batch_size", quant_tier=i) for i, name in enumerate(TIERS)}
    figure("throughput_by_batch", "batch size (requests)", "output tokens/s", tiers, xscale="log", yscale="log")
    base = along(table, "tps", "batch_size")[1]
    drafts = {}
    for k in (1, 2, 4, 8):
        batch, tps = along(table, "tps", "batch_size", spec_length=k)
        drafts[f"{k} drafts"] = (batch, tps / base)
    figure("speculation_gain", "batch size (requests)", "tokens/s over no drafts", drafts, xscale="log")
    prompts = {f"batch {b}": along(table, "ttft_p50_ms", "prompt_len_bucket", batch_size=b) for b in (1, 32, 128)}
    figure("ttft_by_prompt", "prompt (tokens)", "median TTFT (ms)", prompts, xscale="log", yscale="log")
    memory = {
        f"KV budget {k:g}": along(table, "gpu_mem_gb", "batch_size", kv_budget=k, prompt_len_bucket=1024)
        for k in (0.1, 0.25, 0.5, 1.0)
    }
    figure(
        "memory_by_batch",
        "batch size (requests)",
        "GPU memory (GB), prompts of 1,024",
        memory,
        xscale="log",
        yscale="log",
    )
    evicted = {
        f"prompt {p}": along(table, "tpot_ms", "kv_budget", batch_size=128, prompt_len_bucket=p)
        for p in (256, 1024, 4096)
    }
    figure("tpot_by_kv_budget", "KV budget (share kept)", "TPOT (ms), batch 128", evicted, yscale="log")


if __name__ == "__main__":
    main()
