"""Figures of a run of the reference: what the fluid, or anything else, is compared with.

Requests count by their arrival: those of the window [start_s, end_s). What a window of the engine made (throughput,
requests running) counts by time in the same window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.reference.serving import Result
from tests.reference.traffic import CLASSES

QUANTILES = {"ttft_p50_ms": 0.5, "ttft_p90_ms": 0.9, "ttft_p99_ms": 0.99}


def on_time(result: Result, ttft_ms: float, tpot_ms: float) -> np.ndarray:
    """[requests] bool: first token within `ttft_ms` and mean time between tokens within `tpot_ms`.

    A rejected request, or one that was never finished, is not on time; a single token has no time between tokens.
    """
    single = result.requests.output == 1
    with np.errstate(invalid="ignore"):
        in_time = (result.ttft_ms <= ttft_ms) & (single | (result.tpot_ms <= tpot_ms))
    return in_time & np.isfinite(result.finish_ms)


def summarise(
    result: Result, objectives: Sequence[tuple[float, float]], start_s: float = 0.0, end_s: float = np.inf
) -> dict[str, float]:
    """The figures of one run.

    Args:
        result: of ``serve``.
        objectives: (TTFT, TPOT) in ms; each gives an entry ``on_time_<TTFT>_<TPOT>``.
        start_s, end_s: the window, s.

    Returns:
        - requests, finished, rejected: counts of the window's requests.
        - preemptions: of the window's requests; preemption_events: of all.
        - ttft_mean_ms, ttft_p50_ms, ttft_p90_ms, ttft_p99_ms: over requests that had a first token.
        - tpot_mean_ms: mean over requests of their TPOT; itl_mean_ms: the same weighted by tokens (all gaps over their
          number), which is the mean inter-token latency.
        - on_time_*: share of the window's requests.
        - ttft_mean_ms_<class>, ttft_p99_ms_<class>, on_time_*_<class>: where there is more than one class.
        - tokens_per_s, prompt-free: output tokens made a second of the window; running: time mean of requests that hold
          a slot; decoding: of those that decode; held_max: most tokens in the pool of any GPU; iterations: count.
        - gpu_seconds: of the whole run.
    """
    requests = result.requests
    window = (requests.arrival_ms >= 1000 * start_s) & (requests.arrival_ms < 1000 * end_s)
    gaps = (requests.output - 1)[window]
    tpot = result.tpot_ms[window]
    whole = np.isfinite(tpot)
    figures: dict[str, float] = {
        "requests": int(window.sum()),
        "finished": int(np.isfinite(result.finish_ms[window]).sum()),
        "rejected": int(result.rejected[window].sum()),
        "preemptions": int(result.preemptions[window].sum()),
        "preemption_events": int(result.preemptions.sum()),
        "tpot_mean_ms": _mean(tpot[whole]),
        "itl_mean_ms": float((tpot[whole] * gaps[whole]).sum() / max(gaps[whole].sum(), 1)),
        "gpu_seconds": result.gpu_seconds,
    }
    kept = [("", window)]
    if len(np.unique(requests.priority[window])) > 1:
        kept += [(f"_{name}", window & (requests.priority == i)) for i, name in enumerate(CLASSES)]
    for suffix, chosen in kept:
        ttft = result.ttft_ms[chosen]
        ttft = ttft[np.isfinite(ttft)]
        figures[f"ttft_mean_ms{suffix}"] = _mean(ttft)
        for name, quantile in QUANTILES.items():
            figures[name + suffix] = float(np.quantile(ttft, quantile)) if len(ttft) else float("nan")
        for ttft_ms, tpot_ms in objectives:
            figures[f"on_time_{ttft_ms:g}_{tpot_ms:g}{suffix}"] = _mean(on_time(result, ttft_ms, tpot_ms)[chosen])
    return figures | _engine_figures(result, start_s, end_s)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _engine_figures(result: Result, start_s: float, end_s: float) -> dict[str, float]:
    """What the GPUs did in the window."""
    last = max((float(rows["end_ms"].max()) for rows in result.iterations if len(rows)), default=0.0)
    start, end = 1000 * start_s, min(1000 * end_s, last)
    sums = {"tokens": 0.0, "running": 0.0, "decoding": 0.0}
    count, held = 0, 0
    for rows in result.iterations:
        inside = rows[(rows["end_ms"] > start) & (rows["end_ms"] <= end)]
        spent = inside["end_ms"] - inside["start_ms"]
        sums["tokens"] += float(inside["tokens"].sum())
        sums["running"] += float((inside["running"] * spent).sum())
        sums["decoding"] += float((inside["decoding"] * spent).sum())
        count += len(inside)
        held = max(held, int(rows["held"].max(initial=0)))
    length = max(end - start, 1e-9)
    return {
        "tokens_per_s": 1000 * sums["tokens"] / length,
        "running": sums["running"] / length,
        "decoding": sums["decoding"] / length,
        "held_max": held,
        "iterations": count,
    }


def mean_of(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Means over runs, and under ``spread`` the standard deviation between them."""
    names = list(runs[0])
    table = np.array([[run[name] for name in names] for run in runs], float)
    spread = table.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(names))
    return dict(zip(names, table.mean(axis=0).tolist(), strict=True)) | {
        "spread": dict(zip(names, spread.tolist(), strict=True))
    }
