"""Anybody's request log as traffic: the requests of each second of it.

``trace_files -> blocks of rows -> RequestLog``. Memory is bounded by the log's length in seconds, not by its rows.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.models import OBSERVATION, SHORT_OUTPUTS
from inferencegym_jax.traffic.dispersion import Moments, arrival_scv
from inferencegym_jax.traffic.log_arrays import array_block
from inferencegym_jax.traffic.log_files import UNIT_SUFFIX, Block, TraceError, open_log

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
UNIT_OF_SUFFIX = {"s": "s", "m": "ms", "u": "us", "n": "ns"}

LONGEST_PROMPT = OBSERVATION["mean_prompt_len"].high  # tokens; the shipped table's longest too
LONGEST_SECONDS = 31 * 86400
RATES = (1e-3, 1e5)  # requests/s that a log may have on average; outside it the unit of time must be wrong
PLAUSIBLE_RATE = 0.02  # below it, times in no stated unit are taken for milliseconds


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
        short_outputs: shares of the requests that have few output tokens, by ``SHORT_OUTPUTS``; fleets judge those by
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
        block = array_block(time, prompt, output)
        log = _count(name, ["time"], iter([block]), unit, row="entry")
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
        spread = (self.prompt_cv, self.output_cv, self.length_correlation, self.arrival_scv)
        return hashlib.sha256(self.rows.tobytes() + repr(spread).encode()).hexdigest()

    def __hash__(self) -> int:
        """Hash of the content."""
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        """Whether the other log has the same content."""
        return isinstance(other, RequestLog) and self.digest == other.digest


def load_trace(trace: str | Path | RequestLog, unit: str | None = None) -> RequestLog:
    """Read a request log.

    Args:
        trace: a CSV or JSON-lines file with a time, prompt tokens and output tokens under one of their usual names (in
            any case and with any separators), or a ``RequestLog``, which is returned.
        unit: "s", "ms", "us" or "ns"; default: from the column's name, from the size of the numbers, or from the rate.

    Returns:
        The log. Rows out of order are sorted; that and everything else put right is in ``notices`` and is warned of.

    Raises:
        FileNotFoundError: no such file.
        TraceError: empty, lacks a column, a row that cannot be used (its line is named), or an absurd rate.
    """
    if isinstance(trace, RequestLog):
        return trace
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unit = {unit!r}: must be one of {', '.join(UNITS)}")
    path = Path(trace)
    if not path.is_file():
        raise FileNotFoundError(f"trace = {str(path)!r}: no such file; give a CSV or JSON-lines request log")
    status = path.stat()
    log = _load(str(path.resolve()), (status.st_mtime_ns, status.st_size), unit)
    for notice in log.notices:
        warnings.warn(f"{path.name}: {notice}", stacklevel=2)
    return log


@functools.lru_cache(maxsize=4)
def _load(path: str, stamp: tuple[int, int], unit: str | None) -> RequestLog:
    del stamp  # part of the cache key only: a rewritten file is read again
    file = Path(path)
    names, blocks = open_log(file)
    return _count(file.name, names, blocks, unit)


def seconds_a_unit(file: str, column: str, block: Block, unit: str | None) -> tuple[float, str | None]:
    """Seconds in one unit of the time column, and a notice where it was guessed."""
    if block.dates:
        return 1.0, None
    if unit is not None:
        return UNITS[unit], None
    suffix = UNIT_SUFFIX.search(column.lower().strip())
    if suffix and suffix.group(1) not in ("s",):
        return UNITS[UNIT_OF_SUFFIX[suffix.group(1)[0]]], None
    if suffix and column.lower().strip().endswith("_s"):
        return 1.0, None
    size = float(np.abs(block.times).max())
    for least, name in ((1e17, "ns"), (1e14, "us"), (1e11, "ms")):
        if size >= least:  # seconds since 1970 are about 1.7e9
            return UNITS[name], f"times of the size {size:.3g} are taken as {name} since 1970"
    span = float(np.ptp(block.times))
    if size < 1e8 and len(block.times) > 1 and len(block.times) < PLAUSIBLE_RATE * span:
        rate = 1000 * len(block.times) / span
        return (
            1e-3,
            f"times are taken as milliseconds ({rate:.3g} requests/s; as seconds it would be {rate / 1000:.2g})",
        )
    return 1.0, None


def _count(file: str, names: list[str], blocks: Iterator[Block], unit: str | None, row: str = "line") -> RequestLog:
    """Sum the rows of each second; ``row`` is what messages call one."""
    sums = np.zeros((3, 4096))
    origin, scale, notices = 0, 1.0, []
    low = high = first = None
    last, disordered, zeros, beyond, requests = -np.inf, 0, 0, 0, 0
    moments, scv = Moments(), 1.0
    for block in blocks:
        if first is None:
            scale, notice = seconds_a_unit(file, names[0], block, unit)
            notices += [notice] if notice else []
            first = float(block.times[0]) * scale
            origin = int(np.floor(first))
            scv = arrival_scv(block.times * scale)  # of the first 4 MB: tenths of seconds are not kept
        times = block.times * scale
        latest = np.maximum.accumulate(np.concatenate(([last], times)))
        disordered += int((times < latest[:-1]).sum())
        last = float(latest[-1])
        zeros += int(((block.prompts == 0) | (block.outputs == 0)).sum())
        beyond += int((block.prompts > LONGEST_PROMPT).sum())
        requests += len(times)
        second = np.floor(times).astype(np.int64)
        low = int(second.min()) if low is None else min(low, int(second.min()))
        high = int(second.max()) if high is None else max(high, int(second.max()))
        if high - low >= LONGEST_SECONDS:
            i = int(np.argmax(np.abs(second - origin)))
            raise TraceError(
                f"{file} {row} {block.first_line + i}: {names[0]} is {block.times[i]:.10g},"
                f" {abs(second[i] - origin) / 86400:.0f} days from the first row; wanted: a log of at most 31 days"
                " (is the unit right? pass unit='s', 'ms', ...)"
            )
        sums, origin = _room(sums, origin, low, high)
        prompts, outputs = np.maximum(block.prompts, 1.0), np.maximum(block.outputs, 1.0)
        moments.add(prompts, outputs)
        for i, values in enumerate((None, prompts, outputs)):
            sums[i] += np.bincount(second - origin, weights=values, minlength=sums.shape[1])
    if first is None or low is None or high is None:
        raise TraceError(f"{file}: no rows; wanted: at least one request")
    sums = sums[:, low - origin : high - origin + 1]
    rate = requests / sums.shape[1]
    if requests > 1 and not RATES[0] <= rate <= RATES[1]:
        raise TraceError(
            f"{file}: {requests} requests in {sums.shape[1]} s are {rate:.3g} requests/s, which no log has (allowed:"
            f" {RATES[0]:g} to {RATES[1]:g}); the times are probably not in"
            f" {'seconds' if scale == 1 else 'this unit'}: pass unit='s', 'ms', 'us' or 'ns'"
        )
    if disordered:
        notices.append(f"{disordered} of {requests} rows are earlier than a row before them; sorted by time")
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
    short = tuple((moments.short / requests).tolist())
    return RequestLog(counts, filled[0], filled[1], requests, float(low), tuple(notices), file, *spread, scv, short)


def _room(sums: np.ndarray, origin: int, low: int, high: int) -> tuple[np.ndarray, int]:
    """``sums`` widened (by doubling) so that it holds the seconds ``low`` to ``high``; its new origin."""
    before = max(0, origin - low)
    after = max(0, high - (origin + sums.shape[1]) + 1)
    if not before and not after:
        return sums, origin
    before, after = (max(x, sums.shape[1]) if x else 0 for x in (before, after))
    return np.pad(sums, ((0, 0), (before, after))), origin - before
