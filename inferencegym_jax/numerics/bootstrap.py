"""Confidence intervals by the bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

Units that are independent of each other (episodes, blocks of a log, segments of a trial) are drawn with replacement,
as many as there are; an interval is between two percentiles of what the draws come to. Two quantities of the same units
are drawn together, so that their difference is paired. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = (2.5, 97.5)  # percentiles of a 95 % interval


def draw_counts(units: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each unit is in each resample, int64[resamples, units]; the same for the same arguments.

    Counts instead of indices: a sum over a resample is a matrix product with them.
    """
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1.0 / units), size=resamples)


def draw_counts_and_all(units: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """``draw_counts`` below a row of ones, which is all units as they are, int64[1 + resamples, units]."""
    return np.concatenate([np.ones((1, units), np.int64), draw_counts(units, resamples, seed)])


def percentiles(samples: Any) -> tuple[float, float]:
    """The two ends of the 95 % interval of a statistic, from its values on the resamples, float64[resamples].

    Values that are not finite (a resample in which nothing could be measured) are left out; NaN where none is left.
    """
    values = np.asarray(samples, np.float64)
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, CONFIDENCE)
    return float(low), float(high)


def all_and_interval(values: Any) -> dict[str, float]:
    """A statistic of all units with its 95 % interval: ``{"mean", "low", "high"}``.

    Args:
        values: float64[1 + resamples], the statistic on each row of ``draw_counts_and_all``.
    """
    low, high = percentiles(values[1:])
    return {"mean": float(values[0]), "low": low, "high": high}


def mean_interval(values: Any, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float]:
    """Mean of independent values, float64[units], with its 95 % interval: ``{"mean", "low", "high"}``.

    Of a paired difference, hand over the differences.
    """
    values = np.asarray(values, np.float64)
    low, high = percentiles(draw_counts(len(values), resamples, seed) @ values / len(values))
    return {"mean": float(values.mean()), "low": low, "high": high}


def interval(
    statistic: Callable[[np.ndarray], float], units: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of any statistic of the units.

    Args:
        statistic: of the units whose indices it is handed, int64[units], with repetitions.
        units: how many there are.
        resamples: how often they are drawn.
        seed: of the draws.
    """
    index = np.arange(units)
    return percentiles([statistic(np.repeat(index, counts)) for counts in draw_counts(units, resamples, seed)])
