"""The single requests of a log, where its seconds are not enough: whose first token comes within an objective.

``trace_files -> blocks of rows -> LoggedRequests``; ``traces.RequestLog`` has the same log second by second. Only the
stretches that are replayed are kept, so memory does not grow with the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inferencegym_jax.models import EPISODE_LENGTH
from inferencegym_jax.traffic.log_files import ReadOptions, open_log
from inferencegym_jax.traffic.request_log import RequestLog, load_trace

WHOLE_LOG_S = 7200  # a log of up to so many seconds is replayed whole
TRACE_TASK = 4  # whose objectives, acceptance and trained policy stand for recorded traffic
STRETCHES, STRETCH_S = 6, 1200  # of a longer one
MOST_REQUESTS = 150_000  # in all stretches; a busier log is replayed for less time


@dataclass(frozen=True, eq=False)
class LoggedRequests:
    """Requests of some stretches of a log, by time.

    Attributes:
        log: the whole log, by seconds.
        starts: int[stretches], second of the log at which each begins, a multiple of 200.
        length: seconds of each.
        stretch: int32[requests], which one a request lies in.
        second: int32[requests], second of its stretch.
        gap_ms: float32[requests], since the request before; infinite for a stretch's first.
        prompt, output: float32[requests], tokens.
    """

    log: RequestLog
    starts: np.ndarray
    length: int
    stretch: np.ndarray
    second: np.ndarray
    gap_ms: np.ndarray
    prompt: np.ndarray
    output: np.ndarray

    @property
    def count(self) -> int:
        """How many requests."""
        return len(self.second)

    @property
    def seconds(self) -> int:
        """Seconds in all stretches."""
        return self.length * len(self.starts)


def stretches(log: RequestLog) -> tuple[np.ndarray, int]:
    """Starts (multiples of 200 s, for that is where ``traffic.replay`` can begin) and length of what is replayed."""
    busiest = max(int(MOST_REQUESTS / log.rate), EPISODE_LENGTH)
    if log.seconds <= min(WHOLE_LOG_S, busiest):
        return np.zeros(1, np.int64), log.seconds
    length = max(min(STRETCH_S, busiest // STRETCHES), EPISODE_LENGTH)
    count = max(min(STRETCHES, busiest // length), 1)
    last = (log.seconds - length) // EPISODE_LENGTH
    return np.unique(np.linspace(0, last, count).astype(np.int64)) * EPISODE_LENGTH, length


def load_requests(trace: str | Path, unit: str | None = None) -> LoggedRequests:
    """Read the requests of a log's stretches.

    Args:
        trace: CSV or JSON-lines file, see ``load_trace``.
        unit: of its times, see ``load_trace``.

    Raises:
        FileNotFoundError, TraceError: see ``load_trace``.
    """
    log = load_trace(trace, unit)
    starts, length = stretches(log)
    parts: list[np.ndarray] = []
    for block in open_log(Path(trace), ReadOptions(unit)).blocks():
        times = block.times - log.start_s
        which = np.searchsorted(starts, times, side="right") - 1
        inside = (which >= 0) & (times < starts[np.maximum(which, 0)] + length)
        rows = np.stack([which, times, np.maximum(block.prompts, 1.0), np.maximum(block.outputs, 1.0)], axis=-1)
        parts.append(rows[inside])
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    stretch = rows[:, 0].astype(np.int32)
    gaps = np.diff(rows[:, 1] * 1000.0, prepend=-np.inf)
    gaps[np.diff(stretch, prepend=-1) != 0] = np.inf
    second = np.minimum(rows[:, 1] - starts[stretch], length - 1).astype(np.int32)
    columns = (gaps.astype(np.float32), rows[:, 2].astype(np.float32), rows[:, 3].astype(np.float32))
    return LoggedRequests(log, starts, length, stretch, second, *columns)
