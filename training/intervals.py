"""What several training runs come to: the interquartile mean, with an interval that draws runs and episodes anew.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym_jax.numerics.bootstrap import RESAMPLES, percentiles


def interquartile_mean(values: Any) -> float:
    """Mean of the middle half of all numbers, those at its ends counted in part."""
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    edges = np.arange(len(ordered) + 1) / len(ordered)
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float((ordered * weight).sum() / weight.sum())


def interquartile(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float]:
    """Interquartile mean over runs of their means over episodes, with its stratified 95 % bootstrap interval.

    Args:
        values: float64[runs, episodes]; in each resample runs are drawn with replacement, and episodes, the same ones
            for all runs, since these are paired by episode.
        resamples: how many.
        seed: of the draws.

    Returns:
        ``{"mean", "low", "high"}``.
    """
    rng = np.random.default_rng(seed)
    runs, episodes = values.shape
    means = []
    for _ in range(resamples):
        picked = values[rng.integers(runs, size=runs)][:, rng.integers(episodes, size=episodes)]
        means.append(interquartile_mean(picked.mean(axis=1)))
    low, high = percentiles(means)
    return {"mean": interquartile_mean(values.mean(axis=1)), "low": low, "high": high}
