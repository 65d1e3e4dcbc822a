"""Fit the traffic of an open-loop task to a request log: arrivals, prompt and output lengths, and how well they fit.

    python data/fit_traces.py AzureLLMInferenceTrace_conv.csv
    python data/fit_traces.py mooncake_conversation_first4000.jsonl --share 0.25

Prints the JSON that goes into `workload_configs.json` under "traffic" and the figures of the fit. The logs are not
part of the project; anybody who has them can repeat this.

Arrivals: log rate = sum of smooth noises (`inferencegym_jax/traffic/fitted.py`). What a log shows of the rate is the
relative variance of its counts over windows of w seconds, less the Poisson part: V(w) = (var(N) - E N) / (E N)^2. A
noise of period T contributes v g(w / T), with g computed from the noise's own autocovariance; the v >= 0 are found by
non-negative least squares over a grid of periods, and sigma^2 = log(1 + v).

Lengths: mean and coefficient of variation of the tokens (prompts clamped to 32 to 8,192, the observation's range). The
step uses the mean over each second's requests, so that is what the fit is judged on: Kolmogorov-Smirnov distance
between the log's and the model's mean lengths a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from inferencegym_jax.traffic.log_files import open_log  # noqa: E402

WINDOWS = (1, 2, 5, 10, 20, 30, 60, 120, 300)
SLOW, MIDDLE, FAST = (300, 450, 600, 900), (20, 40, 60, 90, 120), (2, 3, 5, 10)
SHORTEST, LONGEST = 32.0, 8192.0


def noise_autocovariance(period: int, lags: int) -> np.ndarray:
    """Autocovariance (lags + 1) of the smooth noise, averaged over its phase."""
    steps = np.arange(lags + 1)
    result = np.zeros(lags + 1)
    for phase in range(period):
        u0 = phase / period
        at = phase + steps
        cell, u = at // period, at % period / period
        first = np.stack([1 - u0, u0]) / np.sqrt(1 - 2 * u0 * (1 - u0))
        scale = 1 / np.sqrt(1 - 2 * u * (1 - u))
        # lattice points 0 and 1 are the first step's; `cell` and `cell + 1` are this one's
        shared = np.where(cell == 0, first[0] * (1 - u) + first[1] * u, np.where(cell == 1, first[1] * (1 - u), 0.0))
        result += shared * scale
    return result / period


def window_share(period: int, windows: tuple[int, ...] = WINDOWS) -> np.ndarray:
    """g: variance of the noise's mean over each window, for a unit-variance noise."""
    covariance = noise_autocovariance(period, max(windows))
    shares = []
    for w in windows:
        lag = np.arange(1, w)
        shares.append((w * covariance[0] + 2 * ((w - lag) * covariance[lag]).sum()) / w**2)
    return np.array(shares)


def excess_variance(counts: np.ndarray, windows: tuple[int, ...] = WINDOWS) -> np.ndarray:
    """V(w): relative variance of the rate over windows, from counts a second; sliding windows, unbiased for Poisson."""
    result = []
    sums = np.concatenate([[0], np.cumsum(counts)])
    for w in windows:
        n = sums[w:] - sums[:-w]
        result.append((n.var() - n.mean()) / n.mean() ** 2)
    return np.array(result)


def fit_arrivals(counts: np.ndarray, windows: tuple[int, ...] = WINDOWS) -> dict[str, Any]:
    """Periods and sigmas of three noises (slow, middle, fast), and V(w) of log and model."""
    from scipy.optimize import nnls

    wanted = np.maximum(excess_variance(counts, windows), 0.0)
    weight = 1 / np.sqrt(np.maximum(wanted, 1e-3))
    best: tuple[float, tuple[int, ...], np.ndarray] | None = None
    for periods in itertools.product(SLOW, MIDDLE, FAST):
        design = np.stack([window_share(p, windows) for p in periods], axis=1)
        v, error = nnls(design * weight[:, None], wanted * weight)
        if best is None or error < best[0]:
            best = (error, periods, v)
    assert best is not None
    _, periods, v = best
    model = np.stack([window_share(p, windows) for p in periods], axis=1) @ v
    return {
        "periods": list(periods),
        "sigma": [round(float(np.sqrt(np.log1p(x))), 4) for x in v],
        "fit": {
            "windows_s": list(windows),
            "relative_sd_of_rate_log": [round(float(np.sqrt(x)), 3) for x in wanted],
            "relative_sd_of_rate_model": [round(float(np.sqrt(x)), 3) for x in model],
        },
    }


def mean_lengths(counts: np.ndarray, mean: float, cv: float, low: float, high: float, seed: int = 0) -> np.ndarray:
    """The model's mean length of each second that has requests."""
    rng = np.random.default_rng(seed)
    k = counts[counts > 0]
    variance = np.log1p(cv**2 / k)
    return np.clip(mean * np.exp(np.sqrt(variance) * rng.standard_normal(len(k)) - variance / 2), low, high)


def fit_lengths(tokens: np.ndarray, seconds: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """Mean and coefficient of variation, quantiles of the log, and the distance of the second's means."""
    from scipy.stats import ks_2samp

    clamped = np.clip(tokens, low, high)
    mean, cv = float(clamped.mean()), float(clamped.std() / clamped.mean())
    counts = np.bincount(seconds)
    sums = np.bincount(seconds, weights=clamped)
    of_log = sums[counts > 0] / counts[counts > 0]
    of_model = np.concatenate([mean_lengths(counts, mean, cv, low, high, seed) for seed in range(20)])
    return {
        "mean": round(mean, 1),
        "cv": round(cv, 4),
        "fit": {
            "quantiles": [5, 25, 50, 75, 95],
            "log_a_request": [round(float(x)) for x in np.percentile(tokens, [5, 25, 50, 75, 95])],
            "log_a_second": [round(float(x)) for x in np.percentile(of_log, [5, 25, 50, 75, 95])],
            "model_a_second": [round(float(x)) for x in np.percentile(of_model, [5, 25, 50, 75, 95])],
            "ks_distance_a_second": round(float(np.asarray(ks_2samp(of_log, of_model))[0]), 3),
        },
    }


def fit(path: Path, share: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """All of a log's traffic.

    Args:
        path: CSV or JSON lines.
        share: of the log's requests, chosen at random, that go to the one GPU: a log of a cluster is more than one can
            serve.
        seed: of that choice.
    """
    rows = list(open_log(path).blocks())
    times, prompts, outputs = (np.concatenate([getattr(b, n) for b in rows]) for n in ("times", "prompts", "outputs"))
    times = times - times.min()
    kept = np.random.default_rng(seed).random(len(times)) < share
    # a log written in steps coarser than a second (Mooncake's: 3 s) says nothing about what happens within one
    gaps = np.asarray(np.diff(np.unique(times)), np.float64)
    step = float(np.median(gaps))
    windows = tuple(w for w in WINDOWS if w >= 2 * step) if step > 1 else WINDOWS
    spread = np.random.default_rng(seed).random(len(times)) * (step if step > 1 else 0.0)
    counts = np.bincount(np.floor(times + spread).astype(int))
    seconds = np.floor(times + spread).astype(int)
    arrivals = fit_arrivals(counts, windows)
    return {
        "rate": round(float(share * len(times) / (times.max() + max(step, 1.0) if step > 1 else times.max())), 3),
        "share_of_log": share,
        "periods": arrivals["periods"],
        "sigma": arrivals["sigma"],
        "prompt": fit_lengths(prompts[kept], seconds[kept], SHORTEST, LONGEST),
        "output": fit_lengths(outputs[kept], seconds[kept], 1.0, LONGEST),
        "fit": arrivals["fit"] | {"time_step_of_log_s": round(step, 3)},
    }


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="CSV or JSON-lines request log")
    parser.add_argument("--share", type=float, default=1.0, help="share of the requests that one GPU gets (default 1)")
    arguments = parser.parse_args()
    print(json.dumps(fit(arguments.log, arguments.share), indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
