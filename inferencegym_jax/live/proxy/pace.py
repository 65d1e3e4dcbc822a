"""How fast requests end at the upstream, lately."""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
MOST = 4096  # ends that are kept: enough for 136 a second


class Pace:
    """Ends a second over the last ``WINDOW_S`` seconds in which the upstream was busy; times on one monotonic clock."""

    def __init__(self) -> None:
        self._inside = 0
        self._busy_since = 0.0
        self._ends: deque[float] = deque(maxlen=MOST)

    def begin(self, now: float) -> None:
        """A request went to the upstream."""
        if not self._inside:
            self._busy_since = now
        self._inside += 1

    def end(self, now: float) -> None:
        """A request ended."""
        self._inside -= 1
        self._ends.append(now)

    def rate(self, now: float) -> float:
        """Ends a second, above 0: one more end than was seen, over a second at least."""
        start = max(now - WINDOW_S, self._busy_since)
        if len(self._ends) == MOST:
            start = max(start, self._ends[0])
        ends = sum(1 for moment in self._ends if moment >= start)
        return (ends + 1) / max(now - start, 1.0)
