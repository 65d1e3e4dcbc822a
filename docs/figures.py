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
from inferencegym_jax.figure_style import COLOURS, OOM_COLOUR, OTHER_COLOUR, STYLE, tidy  # noqa: E402
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


SHADES = (COLOURS["reactive"], COLOURS["best_static"], COLOURS["trained"], OTHER_COLOUR, OOM_COLOUR)


def along(table: ig.LatencyTable, metric: str, axis: str, **at: float) -> tuple[np.ndarray, np.ndarray]:
    """A metric along one axis of the table, the other axes fixed at ``FIXED`` or as given."""
    index = tuple(slice(None) if key == axis else table.axes[key].index(float({**FIXED, **at}[key])) for key in KEYS)
    return np.asarray(table.axes[axis]), table.values[(*index, METRICS.index(metric))]


def figure(
    name: str, xlabel: str, ylabel: str, lines: dict[str, tuple[np.ndarray, np.ndarray]], **options: object
) -> None:
    """One plain plot, into a file."""
    save(picture(xlabel, ylabel, lines, **options), name)


def picture(xlabel: str, ylabel: str, lines: dict[str, tuple[np.ndarray, np.ndarray]], **options: object) -> Figure:
    """One plain plot: a named line each, the names above."""
    drawing = Figure(figsize=(6.4, 3.6))
    axes = drawing.add_axes((0.12, 0.14, 0.85, 0.75))
    for (label, (x, y)), colour in zip(lines.items(), SHADES, strict=False):
        axes.plot(x, y, "o-", markersize=3, color=colour, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, **options)
    tidy(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=len(lines), borderaxespad=0.2)
    return drawing


def save(drawing: Figure, name: str) -> None:
    """Write a figure as SVG without anything that changes from run to run."""
    drawing.savefig(OUT / f"{name}.svg", metadata={"Date": None})


def task_traffic() -> None:
    """Arrivals of one episode of each task, seed 0."""
    specs = [spec for spec in ig.task_specs().values() if spec.episode_length <= 200]  # others have a page each
    arrivals = {}
    for spec in specs:
        env, params = ig.make(spec.id)
        played = ig.rollout(env, params, ig.policies.baseline, seeds=np.arange(1))
        arrivals[f"{spec.id} {spec.name}"] = np.asarray(played.workload.arrivals[:, 0])
    save(traffic_picture(arrivals), "task_traffic")


def traffic_picture(arrivals: dict[str, np.ndarray]) -> Figure:
    """Requests of each second, a panel a task."""
    drawing = Figure(figsize=(7.2, 1.15 * len(arrivals) + 0.4), layout="constrained")
    for axes, (name, counts) in zip(drawing.subplots(len(arrivals), 1, sharex=True), arrivals.items(), strict=True):
        axes.fill_between(np.arange(len(counts)), counts, step="mid", color=COLOURS["reactive"], alpha=0.6, lw=0)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_ylim(0, None)
        axes.set_xlim(0, len(counts))
        tidy(axes)
    axes.set_xlabel("second of the episode")
    drawing.supylabel("requests per second", fontsize=9)
    return drawing


def at(nodes: np.ndarray, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Linear between the measured nodes."""
    return np.interp(x, nodes, values)


def iteration(profile: EngineProfile, context: float = 1024.0, prompt: float = 1024.0) -> Figure:
    """What is in one iteration (FP16, no drafts), stacked, and what one prompt adds to it, as a figure."""
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
    drawing = Figure(figsize=(6.4, 3.6))
    axes = drawing.add_axes((0.1, 0.14, 0.87, 0.64))
    axes.stackplot(n, *parts.values(), labels=list(parts), colors=SHADES[: len(parts)], alpha=0.6, lw=0)
    top = np.sum(list(parts.values()), axis=0)
    axes.plot(n, top + products + own, "k--", label=f"with a prompt of {prompt:,.0f} tokens (+ p)")
    axes.set(
        xlabel="running requests n",
        ylabel="one iteration (ms)",
        xlim=(1, 256),
        ylim=(0, 1.05 * (top + products + own).max()),
    )
    tidy(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2)
    return drawing


def main() -> None:
    """Draw all of them."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "inferencegym", "svg.fonttype": "none"}):
        draw_all()


def draw_all() -> None:
    """Draw them in matplotlib's settings as they are."""
    table = ig.load_table()
    tiers = {name: along(table, "tps", "batch_size", quant_tier=i) for i, name in enumerate(TIERS)}
    figure("throughput_by_batch", "batch size (requests)", "output tokens/s", tiers, xscale="log", yscale="log")
    base = along(table, "tps", "batch_size")[1]
    drafts = {}
    for k in (1, 2, 4, 8):
        batch, tps = along(table, "tps", "batch_size", spec_length=k)
        drafts[f"{k} draft" + "s" * (k > 1)] = (batch, tps / base)
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
        f"prompt {p:,}": along(table, "tpot_ms", "kv_budget", batch_size=128, prompt_len_bucket=p)
        for p in (256, 1024, 4096)
    }
    figure("tpot_by_kv_budget", "KV budget (share kept)", "TPOT (ms), batch 128", evicted, yscale="log")
    save(iteration(profile_of(table)), "iteration")
    task_traffic()


if __name__ == "__main__":
    main()
