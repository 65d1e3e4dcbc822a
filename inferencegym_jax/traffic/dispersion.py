"""How the requests of a second differ among themselves: what its count and its mean lengths do not say."""

from __future__ import annotations

import numpy as np

from inferencegym_jax.models import SHORT_OUTPUTS
from inferencegym_jax.traffic.bins import Bins

TENTHS = 10  # parts of a second in which arrivals are counted
LEAST_COARSE = 0.9  # share of whole seconds among the times from which a log is taken to have no finer ones


class Moments:
    """Sums over requests, block by block."""

    def __init__(self) -> None:
        self.products: np.ndarray = np.zeros(3)  # of prompt^2, output^2, prompt x output

        self.short: np.ndarray = np.zeros(len(SHORT_OUTPUTS))  # requests by output, see SHORT_OUTPUTS

    def add(self, prompts: np.ndarray, outputs: np.ndarray) -> None:
        """Count a block of requests; tokens."""
        self.products += [prompts @ prompts, outputs @ outputs, prompts @ outputs]
        self.short += np.diff([np.count_nonzero(outputs < x + 0.5) for x in SHORT_OUTPUTS], prepend=0)

    def short_outputs(self, requests: int) -> tuple[float, ...]:
        """Shares of so many requests that have few output tokens, by ``SHORT_OUTPUTS``."""
        return tuple((self.short / requests).tolist())

    def within(self, counts: np.ndarray, prompts: np.ndarray, outputs: np.ndarray) -> tuple[float, float, float]:
        """Coefficients of variation of prompts and outputs within a second, and their correlation.

        Unbiased: deviations from a second's own mean, over the requests less the seconds.

        Args:
            counts: float[seconds], requests.
            prompts: float[seconds], the sum of their prompts, tokens.
            outputs: float[seconds], the sum of their outputs.
        """
        present = np.maximum(counts, 1.0)
        freedom = counts.sum() - (counts > 0).sum()
        if freedom < 1:
            return 0.0, 0.0, 0.0
        means = prompts / present, outputs / present
        squares = self.products - [prompts @ means[0], outputs @ means[1], prompts @ means[1]]
        variance = np.maximum(squares[:2] / freedom, 0.0)
        spread = np.sqrt(variance)
        covariance = squares[2] / freedom
        both = spread[0] * spread[1]
        correlation = float(np.clip(covariance / both, -1.0, 1.0)) if both > 0 else 0.0
        requests = counts.sum()
        return float(spread[0] * requests / prompts.sum()), float(spread[1] * requests / outputs.sum()), correlation


class ArrivalSpread:
    """``arrival_scv`` of a whole log, block by block."""

    def __init__(self) -> None:
        self._tenths: Bins = Bins(1, np.int32)
        self._whole: int = 0
        self._rows: int = 0

    def add(self, times: np.ndarray) -> None:
        """Count a block's times; seconds, in any order."""
        self._tenths.add(np.floor(times * TENTHS).astype(np.int64), (None,))
        self._whole += int((times == np.floor(times)).sum())
        self._rows += len(times)

    @property
    def scv(self) -> float:
        """See ``arrival_scv``; 1 before anything was added."""
        low, high = self._tenths.low, self._tenths.high
        if self._rows < 2 or low is None or high is None or self._whole > LEAST_COARSE * self._rows:
            return 1.0
        counts = self._tenths.between(low, high)[0]
        counts = np.pad(counts, (low % TENTHS, -(high + 1) % TENTHS)).reshape(-1, TENTHS)
        totals = counts.sum(1, dtype=np.int64).astype(np.float64)
        squares = np.einsum("ij,ij->i", counts, counts, dtype=np.float64)
        return float((squares - totals**2 / TENTHS).sum() / (totals.sum() * (1.0 - 1.0 / TENTHS)))


def arrival_scv(times: np.ndarray) -> float:
    """Squared coefficient of variation of the gaps within a second, from counts in tenths of it.

    The variance of the counts in tenths, given the second's count, over that of requests that come independently: 1
    for Poisson arrivals, also where the rate swings from second to second. 1 where the times are whole seconds.

    Args:
        times: float[requests], seconds, in any order.
    """
    spread = ArrivalSpread()
    if len(times):
        spread.add(times)
    return spread.scv
