"""Counts by whole number (a second, a tenth of one) of which neither the first nor the last is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST_ROOM = 4096


class Bins:
    """Sums by index in an array that grows, by doubling, to either side.

    Attributes:
        values: [rows, room], the sums; column j is of index ``origin + j``.
        origin: index of the first column.
        low, high: least and greatest index that was counted; None before the first.
    """

    def __init__(self, rows: int, dtype: type = np.float64):
        self.values: np.ndarray = np.zeros((rows, FIRST_ROOM), dtype)
        self.origin: int = 0
        self.low: int | None = None
        self.high: int | None = None

    def add(self, index: np.ndarray, weights: Sequence[np.ndarray | None]) -> None:
        """Add to every row its weights (None: 1 each) at ``index``, int64[entries]."""
        low, high = int(index.min()), int(index.max())
        if self.low is None or self.high is None:
            self.origin, self.low, self.high = low, low, high
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._make_room()
        part = slice(low - self.origin, high - self.origin + 1)
        for row, weight in zip(self.values, weights, strict=True):
            row[part] += np.bincount(index - low, weights=weight).astype(row.dtype, copy=False)

    def _make_room(self) -> None:
        assert self.low is not None and self.high is not None
        room = self.values.shape[1]
        before, after = max(0, self.origin - self.low), max(0, self.high - (self.origin + room) + 1)
        if before or after:
            before, after = (max(x, room) if x else 0 for x in (before, after))
            self.values = np.pad(self.values, ((0, 0), (before, after)))
            self.origin -= before

    def between(self, low: int, high: int) -> np.ndarray:
        """The sums from index ``low`` to ``high``, both counted in; [rows, high - low + 1]."""
        return self.values[:, low - self.origin : high - self.origin + 1]
