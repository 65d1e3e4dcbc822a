"""Anybody's request log as traffic: the requests of each second of it.

``log_files -> blocks of rows -> RequestLog``. Memory is bounded by the log's length in seconds, not by its rows.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.models import OBSERVATION, SHORT_OUTPUTS, shown
from inferencegym_jax.traffic.bins import Bins
from inferencegym_jax.traffic.dispersion import ArrivalSpread, Moments
from inferencegym_jax.traffic.log_arrays import array_block
from inferencegym_jax.traffic.log_files import LogFile, open_log
from inferencegym_jax.traffic.log_oddities import LEAST_ROWS, Oddities
from inferencegym_jax.traffic.log_rows import UNITS, Block, ReadOptions, TraceError
from inferencegym_jax.traffic.log_source import regular_file

LONGEST_PROMPT = OBSERVATION["mean_prompt_len"].high  # tokens; the shipped table's longest too
LONGEST_SECONDS = 31 * 86400
RATES = (1e-3, 1e5)  # requests/s that a log may have on average; outside it the unit of time must be wrong


@dataclass(frozen=True, eq=False)
class RequestLog:
    """The requests of a log, second by second. Equal and hashed by content.

    Attributes:
        counts: int32[seconds], requests that arrive in each second from the first.
        prompts: float32[seconds], their mean prompt, tokens; in a second without requests the log's mean.
        outputs: float32[seconds], their mean output, tokens, likewise.
        requests: rows read.
        start_s: the first second, in seconds of the log's own clock.
        notices: what was put right while reading (order, unit, zero tokens) or cannot be shown (long prompts), one
            sentence each.
        name: where it came from.
        prompt_cv, output_cv, length_correlation: coefficients of variation of prompts and outputs within a second, and
            their correlation; 0 where a second's requests are alike.
        arrival_scv: squared coefficient of variation of the gaps within a second, see ``dispersion.arrival_scv``.
        short_outputs: shares of the requests that have few output tokens, by ``SHORT_OUTPUTS``, which are judged by
            their own gaps.
    """

    counts: np.ndarray
    prompts: np.ndarray
    outputs: np.ndarray
    requests: int
    start_s: float = 0.0
    notices: tuple[str, ...] = ()
    name: str = "trace"
    prompt_cv: float = 0.0
    output_cv: float = 0.0
    length_correlation: float = 0.0
    arrival_scv: float = 1.0
    short_outputs: tuple[float, ...] = (0.0,) * len(SHORT_OUTPUTS)

    @classmethod
    def from_arrays(cls, time: Any, prompt: Any, output: Any, *, unit: str = "s", name: str = "arrays") -> RequestLog:
        """A log from one entry a request, in any order.

        Args:
            time: of each arrival, numbers in ``unit`` on any clock, or ``datetime64``; shape (requests,).
            prompt: tokens, numbers of at least 0; shape (requests,).
            output: the same of the answers.
            unit: "s", "ms", "us" or "ns".
            name: what to call the log.

        Raises:
            TraceError: no requests, shapes that differ, something that is no number (array, index and value are
                named), or an absurd rate.
            ValueError: unknown unit.
        """
        if unit not in UNITS:
            raise ValueError(f"unit = {unit!r}: must be one of {', '.join(UNITS)}")
        block = array_block(time, prompt, output, UNITS[unit])
        log = _count(name, "time", iter([block]), tuple)
        for notice in log.notices:
            warnings.warn(f"{name}: {notice}", stacklevel=2)
        return log

    @property
    def seconds(self) -> int:
        """Length of the log."""
        return len(self.counts)

    @property
    def rate(self) -> float:
        """Mean requests a second."""
        return self.requests / self.seconds

    @property
    def mean_prompt(self) -> float:
        """Mean prompt over requests, tokens."""
        return float((self.counts * self.prompts.astype(np.float64)).sum() / self.requests)

    @property
    def mean_output(self) -> float:
        """Mean output over requests, tokens."""
        return float((self.counts * self.outputs.astype(np.float64)).sum() / self.requests)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """float32[seconds, 3]: requests, mean prompt, mean output; what the step reads."""
        return np.stack([self.counts.astype(np.float32), self.prompts, self.outputs], axis=-1)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        spread = (self.prompt_cv, self.output_cv, self.length_correlation, self.arrival_scv, self.short_outputs)
        return hashlib.sha256(self.rows.tobytes() + repr(spread).encode()).hexdigest()

    def __hash__(self) -> int:
        """Hash of the content."""
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        """Whether the other log has the same content."""
        return isinstance(other, RequestLog) and self.digest == other.digest


def load_trace(
    trace: str | Path | RequestLog,
    unit: str | None = None,
    *,
    columns: str | Mapping[str, str | Sequence[str]] | None = None,
    start: str | float | None = None,
    end: str | float | None = None,
    last: str | float | None = None,
) -> RequestLog:
    """Read a request log.

    Args:
        trace: a file or pipe with a time, prompt tokens and output tokens under one of their usual names (in any case
            and with any separators): CSV, JSON lines, a JSON array or Parquet, also in gzip, bzip2, xz, zstd or a zip
            archive (docs/request_logs.md). Or a ``RequestLog``, which is returned.
        unit: "s", "ms", "us" or "ns"; default: from the column's name, from the size of the numbers, or from the rate
            of the whole log.
        columns: which columns to read where their names do not tell: ``"time=ts,prompt=in+cached,output=out"`` or a
            mapping of "time", "prompt", "output" to a column or several that are added up.
        start: read the log from here on, and up to there: seconds since its first request, a duration ("2h",
            "3d"), or a date and time (UTC where it names no zone).
        end: see ``start``.
        last: read its last so many seconds, or a duration.

    Returns:
        The log. Rows out of order are sorted; that and everything else put right is in ``notices`` and is warned of.

    Raises:
        FileNotFoundError: no such file.
        TypeError: neither a path nor a log.
        TraceError: empty, lacks a column, a row that cannot be used (its line is named), or an absurd rate.
        ValueError: unknown unit or role, or a window that is none.
    """
    if isinstance(trace, RequestLog):
        return trace
    if not isinstance(trace, str | os.PathLike):
        raise TypeError(f"trace = {shown(trace)}: must be the path of a request log, or a RequestLog")
    options = ReadOptions.of(unit, columns, start, end, last)
    with regular_file(trace) as path:
        status = path.stat()
        log = _load(str(path.resolve()), (status.st_mtime_ns, status.st_size), options)
    for notice in log.notices:
        warnings.warn(f"{log.name}: {notice}", stacklevel=2)
    return log


@functools.lru_cache(maxsize=4)
def _load(path: str, stamp: tuple[int, int], options: ReadOptions) -> RequestLog:
    file = _understood(path, stamp, options)
    return _count(file.name, file.columns.time, file.blocks(), lambda: file.notices)


@functools.lru_cache(maxsize=4)
def _understood(path: str, stamp: tuple[int, int], options: ReadOptions) -> LogFile:
    del stamp  # part of the cache key only: a rewritten file is read again
    return open_log(path, options)


def open_again(path: Path, options: ReadOptions) -> LogFile:
    """The log that ``load_trace`` has counted, to read its rows; what was found out of it is not looked for again.

    Args:
        path: a regular file.
        options: how to read it.

    Raises:
        TraceError: see ``load_trace``.
    """
    status = path.stat()
    return _understood(str(path.resolve()), (status.st_mtime_ns, status.st_size), options)


def _count(file: str, column: str, blocks: Iterator[Block], read: Callable[[], tuple[str, ...]]) -> RequestLog:
    """Sum the rows of each second; ``read`` gives the notices of reading, once all is read."""
    first: float | None = None
    place: Callable[[int], str] = str
    start = np.zeros(0)  # times of the first three rows
    zeros, beyond, odd = 0, 0, Oddities()
    seconds, moments, spread_of = Bins(3), Moments(), ArrivalSpread()
    for block in blocks:
        times = block.times
        if first is None:
            first, place = float(times[0]), block.place
            start = times[:3]
        odd.add(block)
        zeros += int(((block.prompts == 0) | (block.outputs == 0)).sum())
        beyond += int((block.prompts > LONGEST_PROMPT).sum())
        second = np.floor(times)
        far = np.abs(second - np.floor(first))
        low, high = (second.min(), second.max()) if seconds.low is None else (seconds.low, seconds.high)
        if max(second.max(), high) - min(second.min(), low) >= LONGEST_SECONDS:
            i = int(np.argmax(far))
            row, value, others = block.place(i), times[i], "first row"
            if len(start) > 2 and abs(start[1] - start[0]) >= LONGEST_SECONDS > abs(start[2] - start[1]):
                row, value, others = place(0), start[0], "others"
            raise TraceError(
                f"{row}: {column} is {value:.10g}, {far[i] / 86400:.0f} days from the {others} (in seconds);"
                " wanted: at most 31 days. Of a longer log read a part: start, end or last (--from, --to,"
                " --last 7d). Or is the unit of its times another: unit (--unit ms)?"
            )
        prompts, outputs = np.maximum(block.prompts, 1.0), np.maximum(block.outputs, 1.0)
        moments.add(prompts, outputs)
        spread_of.add(times)
        seconds.add(second.astype(np.int64), (None, prompts, outputs))
    if seconds.low is None or seconds.high is None:
        raise TraceError(f"{file}: no rows; wanted: at least one request")
    low, sums, requests = seconds.low, seconds.between(seconds.low, seconds.high), odd.rows
    rate = requests / sums.shape[1]
    if rate <= RATES[1] and requests >= LEAST_ROWS and odd.latest > odd.earliest:
        rate = max(rate, (requests - 1) / (odd.latest - odd.earliest))  # within a second: is it one of another unit?
    if requests > 1 and not RATES[0] <= rate <= RATES[1]:
        raise TraceError(
            f"{file}: {requests} requests in {sums.shape[1]} s are {rate:.3g} requests/s, which no log has (allowed:"
            f" {RATES[0]:g} to {RATES[1]:g}); the times are probably in another unit: pass unit='s', 'ms', 'us' or 'ns'"
            " (--unit)"
        )
    notices = [*read(), *odd.notices()]
    if zeros:
        notices.append(f"{zeros} of {requests} rows have 0 tokens, counted as 1")
    if beyond:
        notices.append(
            f"{beyond} of {requests} rows have prompts above {LONGEST_PROMPT:.0f} tokens: a second whose mean prompt is"
            f" above that is observed, and on the shipped table served, as one of {LONGEST_PROMPT:.0f}"
        )
    means = [sums[i].sum() / requests for i in (1, 2)]
    filled = [np.where(sums[0] > 0, sums[i] / np.maximum(sums[0], 1), means[i - 1]).astype(np.float32) for i in (1, 2)]
    counts = sums[0].astype(np.int32)
    spread = moments.within(*sums)
    of_log = (requests, float(low), tuple(notices), file, *spread, spread_of.scv, moments.short_outputs(requests))
    return RequestLog(counts, filled[0], filled[1], *of_log)
