"""The figures of the physics page and of the specification, from the shipped table, its engine profile and the tasks:
`python docs/figures.py`. Needs the demo extra."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import inferencegym_jax as ig  # noqa: E402
from inferencegym_jax.table import EngineProfile, profile_of  # noqa: E402
from inferencegym_jax.table.latency_table import KEYS, METRICS  # noqa: E402

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
    """One plain plot."""
    drawing = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = drawing.subplots()
    for label, (x, y) in lines.items():
        axes.plot(x, y, "o-", markersize=4, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, **options)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(drawing, name)


def save(drawing: Figure, name: str) -> None:
    """Write a figure as SVG without anything that changes from run to run."""
    drawing.savefig(OUT / f"{name}.svg", metadata={"Date": None})


def task_traffic() -> None:
    """Arrivals of one episode of each task, seed 0."""
    specs = [spec for spec in ig.task_specs().values() if spec.episode_length <= 200]  # others have a page each
    drawing = Figure(figsize=(7.2, 1.15 * len(specs) + 0.4), layout="constrained")
    for axes, spec in zip(drawing.subplots(len(specs), 1, sharex=True), specs, strict=True):
        env, params = ig.make(spec.id)
        arrivals = ig.rollout(env, params, ig.policies.baseline, seeds=np.arange(1)).workload.arrivals[:, 0]
        axes.fill_between(np.arange(len(arrivals)), np.asarray(arrivals), step="mid", alpha=0.6)
        axes.set_title(f"{spec.id} {spec.name}", loc="left", fontsize=9)
        axes.set_ylim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("second of the episode")
    drawing.supylabel("requests per second", fontsize=10)
    save(drawing, "task_traffic")


def at(nodes: np.ndarray, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Linear between the measured nodes."""
    return np.interp(x, nodes, values)


def iteration(profile: EngineProfile, context: float = 1024.0, prompt: float = 1024.0) -> None:
    """What is in one iteration (FP16, no drafts), stacked, and what one prompt adds to it."""
    n = np.arange(1, 257)
    column = [at(profile.decode_context, row, np.array([context]))[0] for row in profile.decode_attention_ms]
    parts = {
        "scheduler and sampler (c)": np.full(len(n), profile.overhead_ms),
        "matrix products L(n)": at(profile.products_tokens, profile.products_ms[0], n),
        "output head": at(profile.head_tokens, profile.head_ms, n),
        f"attention, context {context:,.0f}": at(profile.decode_sequences, np.array(column), n),
    }
    products = at(profile.products_tokens, profile.products_ms[0], n + prompt) - parts["matrix products L(n)"]
    own = at(profile.prefill_tokens, profile.prefill_attention_ms, np.array([prompt]))[0]
    drawing = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = drawing.subplots()
    axes.stackplot(n, *parts.values(), labels=list(parts), alpha=0.8)
    top = np.sum(list(parts.values()), axis=0)
    axes.plot(n, top + products + own, "k--", label=f"with a prompt of {prompt:,.0f} tokens (+ p)")
    axes.set(
        xlabel="running requests n",
        ylabel="one iteration (ms)",
        xlim=(1, 256),
        ylim=(0, 1.4 * (top + products + own).max()),
    )
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="upper left")
    save(drawing, "iteration")


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
    iteration(profile_of(table))
    task_traffic()


if __name__ == "__main__":
    main()
