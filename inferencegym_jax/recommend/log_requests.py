"""The single requests of a log, where its seconds are not enough: whose first token comes within an objective.

``trace_files -> blocks of rows -> LoggedRequests``; ``traces.RequestLog`` has the same log second by second. Only the
stretches that are replayed are kept, so memory does not grow with the file. Which they are, and what each stands for:
``traffic.stretches``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inferencegym_jax.traffic.log_files import ReadOptions
from inferencegym_jax.traffic.log_source import regular_file
from inferencegym_jax.traffic.request_log import RequestLog, load_trace, open_again
from inferencegym_jax.traffic.stretches import Stretches, representative_stretches

TRACE_TASK = 4  # whose objectives, acceptance and trained policy stand for recorded traffic


@dataclass(frozen=True, eq=False)
class LoggedRequests:
    """Requests of some stretches of a log, by time.

    Attributes:
        log: the whole log, by seconds.
        stretches: which of it are here, and how many requests each request of one stands for.
        stretch: int32[requests], which one a request lies in.
        time_ms: float64[requests], since the beginning of its stretch.
        prompt, output: float32[requests], tokens.
        longest: tokens of the log's longest request, prompt and output.
    """

    log: RequestLog
    stretches: Stretches
    stretch: np.ndarray
    time_ms: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    longest: int

    @property
    def count(self) -> int:
        """How many requests."""
        return len(self.time_ms)

    @property
    def starts(self) -> np.ndarray:
        """Second of the log at which each stretch begins, a multiple of 200."""
        return self.stretches.starts

    @property
    def length(self) -> int:
        """Seconds of each stretch."""
        return self.stretches.length

    @property
    def seconds(self) -> int:
        """Seconds in all stretches."""
        return self.length * len(self.starts)

    @functools.cached_property
    def second(self) -> np.ndarray:
        """int32[requests], second of its stretch."""
        return np.minimum(self.time_ms / 1000.0, self.length - 1).astype(np.int32)

    @functools.cached_property
    def gap_ms(self) -> np.ndarray:
        """float32[requests], since the request before; infinite for a stretch's first."""
        gaps = np.diff(self.time_ms, prepend=-np.inf)
        gaps[np.diff(self.stretch, prepend=-1) != 0] = np.inf
        return gaps.astype(np.float32)

    @functools.cached_property
    def weight(self) -> np.ndarray:
        """float64[requests]: requests of the log for which each stands."""
        return self.stretches.weights[self.stretch]

    @functools.cached_property
    def in_busiest_hour(self) -> np.ndarray:
        """bool[requests]."""
        at = self.starts[self.stretch] + self.time_ms / 1000.0
        first, end = self.stretches.hour
        return (first <= at) & (at < end)


def load_requests(trace: str | Path, options: ReadOptions | None = None) -> LoggedRequests:
    """Read the requests of a log's stretches.

    Args:
        trace: file or pipe, see ``load_trace``.
        options: how to read it where it does not say so itself.

    Raises:
        FileNotFoundError, TraceError: see ``load_trace``.
    """
    how = ReadOptions() if options is None else options
    with regular_file(trace) as path:
        window = {"start": how.start, "end": how.end, "last": how.last}
        log = load_trace(path, how.unit, columns={role: list(names) for role, names in how.columns}, **window)
        stretches = representative_stretches(log)
        parts: list[np.ndarray] = []
        longest, whole = 1.0, True
        for block in open_again(path, how).blocks():
            whole = whole and bool((block.times == np.floor(block.times)).all())
            times = block.times - log.start_s
            which = np.searchsorted(stretches.starts, times, side="right") - 1
            inside = (which >= 0) & (times < stretches.starts[np.maximum(which, 0)] + stretches.length)
            rows = np.stack([which, times, np.maximum(block.prompts, 1.0), np.maximum(block.outputs, 1.0)], axis=-1)
            longest = max(longest, float((rows[:, 2] + rows[:, 3]).max(initial=1.0)))
            parts.append(rows[inside])
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    if whole:
        rows[:, 1] += place_in_second(rows[:, 1])
    stretch = rows[:, 0].astype(np.int32)
    since = np.maximum(rows[:, 1] - stretches.starts[stretch], 0.0) * 1000.0
    columns = (rows[:, 2].astype(np.float32), rows[:, 3].astype(np.float32))
    return LoggedRequests(log, stretches, stretch, since, *columns, int(longest))


def place_in_second(times: np.ndarray) -> np.ndarray:
    """Where in their second requests lie whose times are whole seconds: one after the other, evenly.

    Args:
        times: float64[requests], ascending, whole seconds.

    Returns:
        float64[requests] in [0, 1).
    """
    _, first, count = np.unique(times, return_index=True, return_counts=True)
    return (np.arange(len(times)) - np.repeat(first, count)) / np.repeat(count, count)
