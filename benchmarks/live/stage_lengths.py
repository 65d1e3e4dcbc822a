"""How long the stages of ``make live`` are where no option says otherwise, and how long they took."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class StageLengths:
    """Defaults of the options of the same names: lengths in s, and the rivals of ``second-instance``."""

    budget: float
    second_seconds: int
    drift_seconds: int
    rivals: str


LONG_RUN = StageLengths(420.0, 240, 180, "one always,two always,general,fewest instances")  # all under 75 minutes
SHORT_RUN = StageLengths(150.0, 120, 60, "one always,two always,general")  # the short set: under 30


class StageTimes:
    """Seconds that each stage of a run took, from the end of the one before it."""

    def __init__(self) -> None:
        self._begun = self._end = time.monotonic()
        self._took: dict[str, float] = {}
        self._last = ""

    def ended(self, name: str) -> dict[str, float]:
        """What every stage took so far, in their order, the one that has ended now included; one that ends again has
        gone on."""
        if name != self._last:
            self._begun, self._last = self._end, name
        self._end = time.monotonic()
        self._took[name] = round(self._end - self._begun, 1)
        return dict(self._took)
