"""A request log in a file of any usual kind, as blocks of rows with times in seconds.

``path -> LogSource -> reader (CSV, JSON, Parquet) -> columns found by their names -> unit and window -> Block``.
``request_log.py`` counts the blocks into seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from inferencegym_jax.traffic.log_cells import Times, call, is_date, tokens
from inferencegym_jax.traffic.log_csv import CsvReader
from inferencegym_jax.traffic.log_json import JsonReader
from inferencegym_jax.traffic.log_names import NO_CALLS, LogColumns, Sample, find_columns
from inferencegym_jax.traffic.log_nested import NestedReader, TableReader
from inferencegym_jax.traffic.log_parquet import ParquetReader
from inferencegym_jax.traffic.log_rows import (
    STATED_UNITS,
    Block,
    Column,
    ReadOptions,
    TraceError,
    moment,
    named,
    plain_number,
    quoted,
)
from inferencegym_jax.traffic.log_source import LogSource
from inferencegym_jax.traffic.log_sums import counts_of, rows_are_sums
from inferencegym_jax.traffic.log_units import (
    EPOCH_S,
    NAMES,
    Survey,
    check_dates_as_numbers,
    check_one_unit,
    check_order,
    unit_of,
)

__all__ = ["Block", "LogFile", "ReadOptions", "TraceError", "open_log"]


FAILURES = frozenset("error failed failure fail timeout cancelled canceled aborted rejected false".split())
TOKENS = frozenset(("token", "tokens"))
NOTHING = ("", "0", "0.0")  # cells without tokens
NO_ERRORS = frozenset(("", "none", "null", "false", "0", "nan"))


@dataclass
class LogFile:
    """A log that is understood and can be read, several times.

    Attributes:
        name: the file's, for messages.
        columns: what is read of it.
        decided: what was decided in understanding it, one sentence each.
        unit_s: seconds in one unit of its times; 1 of dates.
        window: seconds of its clock, from and to (the latter left out), that are read.
    """

    name: str
    columns: LogColumns
    decided: tuple[str, ...]
    unit_s: float
    window: tuple[float, float]
    _reader: TableReader
    _failed: int = 0
    _no_calls: int = 0

    @property
    def notices(self) -> tuple[str, ...]:
        """``decided``, and after ``blocks`` what was left out."""
        said: list[str] = []
        if self._failed:
            said.append(f"{self._failed} requests that failed ({self.columns.status}) and have no output are left out")
        if self._no_calls:
            said.append(f"{self._no_calls} rows that are no calls of a model and have no tokens are left out")
        return (*self.decided, *said)

    def blocks(self) -> Iterator[Block]:
        """Its rows, times in seconds of its own clock, a block at a time.

        Raises:
            TraceError: a row that cannot be used; it is named.
        """
        times = Times(self.columns.time, self._reader.decimal_comma)
        names = self.columns.all
        self._failed = self._no_calls = 0
        for place, cells in self._reader.blocks(names):
            column = dict(zip(names, cells, strict=True))
            there = self._usable(column)
            if there is not None:
                place = _of_rows(place, there)
                column = {name: call("take", cell, there) for name, cell in column.items()}
                if not len(there):
                    continue
            if self.columns.measure is not None:
                self._check_measure(place, column[self.columns.measure].to_pylist())
            seconds = times.read(place, column[self.columns.time]) * self.unit_s  # 1 of dates
            sums: list[np.ndarray] = []
            for parts in (self.columns.prompt, self.columns.output):
                values = tokens(place, parts[0], column[parts[0]])
                for part in parts[1:]:
                    values = values + tokens(place, part, column[part], missing=0)
                sums.append(values)
            for name in self.columns.counts:
                counts = tokens(place, name, column[name], missing=0)
                if (counts > 1).any():
                    i = int(np.argmax(counts > 1))
                    raise rows_are_sums(place(i), name, counts[i])
            if self.columns.cached is not None:
                self._check_cached(place, column[self.columns.cached], sums[0])
            keep = (seconds >= self.window[0]) & (seconds < self.window[1])
            if keep.all():
                yield Block(seconds, sums[0], sums[1], place)
            elif keep.any():
                rows = np.flatnonzero(keep)
                yield Block(seconds[keep], sums[0][keep], sums[1][keep], _of_rows(place, rows))

    def _usable(self, column: dict[str, Column]) -> np.ndarray | None:
        """Rows but those that failed without an output, and those of a trace that are no calls of a model; None: all.
        The others are counted."""
        status, kind = self.columns.status, self.columns.kind
        if status is None and kind is None and not self.columns.spans:
            return None
        no_output = _nothing(column[self.columns.output[0]])
        no_tokens = no_output & _nothing(column[self.columns.prompt[0]])
        out = np.zeros(len(no_output), bool)
        if kind is not None and no_tokens.any():
            kinds = column[kind].to_pylist()
            out[[i for i in np.flatnonzero(no_tokens) if (kinds[i] or "").strip().lower() in NO_CALLS]] = True
        if self.columns.spans:
            out |= no_tokens
        self._no_calls += int(out.sum())
        if status is not None and (no_output & ~out).any():
            states, errors = column[status].to_pylist(), "rr" in status.lower()
            failed = [i for i in np.flatnonzero(no_output & ~out) if _failed(states[i], errors)]
            self._failed += len(failed)
            out[failed] = True
        return np.flatnonzero(~out) if out.any() else None

    def _check_measure(self, place: Callable[[int], str], cells: Sequence[str | None]) -> None:
        i = next((i for i, cell in enumerate(cells) if cell and cell.strip().lower() not in TOKENS), None)
        if i is not None:
            raise TraceError(f"{place(i)}: {self.columns.measure} is {quoted(cells[i])}; wanted: tokens")

    def _check_cached(self, place: Callable[[int], str], column: Column, prompts: np.ndarray) -> None:
        cached = tokens(place, str(self.columns.cached), column, missing=0)
        if (cached > prompts).any():
            i, name = int(np.argmax(cached > prompts)), self.columns.prompt[0]
            raise TraceError(
                f"{place(i)}: {self.columns.cached} is {cached[i]:g} where {name} is {prompts[i]:g}, so it is no part"
                f" of it; say so: columns prompt={name}+{self.columns.cached}"
            )


def _nothing(column: Column) -> np.ndarray:
    """Whether each cell is empty or 0."""
    nothing = pa.array(NOTHING, pa.string())  # made here: Arrow loads pandas for it
    return np.asarray(call("is_in", column, value_set=nothing).fill_null(True), bool) | column.is_null().to_numpy(False)


def _failed(state: str | None, is_error: bool) -> bool:
    """Whether a status (or the text of an error) is that of a request that failed."""
    text = (state or "").strip().lower()
    if is_error:
        return text not in NO_ERRORS
    return float(text) >= 400 if plain_number(text) else text in FAILURES


def _of_rows(place: Callable[[int], str], rows: np.ndarray) -> Callable[[int], str]:
    return lambda i: place(int(rows[i]))


def open_log(path: str | Path, options: ReadOptions | None = None, name: str | None = None) -> LogFile:
    """Understand a log: its kind, columns, unit and the part of it that is wanted.

    Args:
        path: a regular file (``log_source.regular_file`` makes one of a pipe).
        options: what the log does not say itself.
        name: what messages call it; default: the file's name.

    Raises:
        TraceError: empty, of another kind, lacks a column, or nothing in the window; while its blocks are read, a row
            that cannot be used.
    """
    options = options or ReadOptions()
    source = LogSource(Path(path), name)
    reader = _reader(source)
    columns = find_columns(source.name, reader.columns, reader.sample, options.columns)
    if not options.columns:
        columns = dataclasses.replace(columns, counts=counts_of(source.name, reader.columns, reader.sample))
    time_is_named = any(role == "time" for role, _ in options.columns)
    dates = is_date(next((cell for cell in reader.sample.get(columns.time, ()) if cell), None))
    unit = options.unit or columns.unit
    survey, scale = Survey(), 1.0
    notices = [*columns.notices]
    if options.windowed or not dates and (unit is None or not columns.sure):
        times = Times(columns.time, reader.decimal_comma)
        for place, cells in reader.blocks([columns.time]):
            survey.add(times.read(place, cells[0]))
        if not survey.rows:
            raise TraceError(f"{source.name}: no rows; wanted: at least one request")
        if not dates:
            check_one_unit(f"{source.name}: column {named([columns.time])}", survey)
        if not dates and not time_is_named:
            check_order(f"{source.name}: column {named([columns.time])}", survey, columns.sure)
            if survey.shuffled:
                notices.append(f"the rows stand in no order of {named([columns.time])}: is it the time of arrival?")
    if dates and options.unit is not None:
        notices.append(f"unit {options.unit} is not used: {named([columns.time])} holds dates")
    elif unit is not None:
        scale = STATED_UNITS[unit]
        if options.unit is not None and columns.unit not in (None, options.unit):
            notices.append(f"unit {unit} is taken, though {named([columns.time])} says {NAMES[columns.unit]}")
        elif options.unit is None:
            _check_name(source.name, columns.time, unit, reader.sample)
    elif not dates:
        check_dates_as_numbers(f"{source.name}: column {named([columns.time])}", survey)
        guess = unit_of(survey)
        scale = guess.seconds
        notices += [guess.notice] if guess.notice else []
    window = _window(source.name, options, survey, scale, dates)
    return LogFile(source.name, columns, (*notices, *reader.notices), scale, window, reader)


def _check_name(file: str, column: str, unit: str, sample: Sample) -> None:
    """Refuse times whose size says another unit than their column's name.

    Raises:
        TraceError: they do; says what to do.
    """
    first = Survey()
    first.add(np.asarray([float(cell) for cell in sample.get(column, ()) if plain_number(cell) and cell], np.float64))
    if first.rows and first.epoch not in (None, unit):
        raise TraceError(
            f"{file}: column {named([column])} says {NAMES[unit]}, its numbers, like {first.low:.10g}, are"
            f" {NAMES[first.epoch]} since 1970; say which: unit {first.epoch} (--unit {first.epoch})"
        )


def _reader(source: LogSource) -> TableReader:
    if source.is_parquet:
        return NestedReader(ParquetReader(source))
    return JsonReader(source) if source.head.lstrip("\ufeff \t\r\n")[0] in "{[" else NestedReader(CsvReader(source))


def _window(name: str, options: ReadOptions, survey: Survey, scale: float, dates: bool) -> tuple[float, float]:
    """From and to, in seconds of the log's clock."""
    if not options.windowed:
        return -np.inf, np.inf
    low, high = survey.low * scale, survey.high * scale
    start, end = -np.inf, np.inf
    if options.last is not None:
        start = np.nextafter(high - moment("last", options.last, dates=False)[0], np.inf)
    bounds = {"start": start, "end": end}
    for bound in ("start", "end"):
        value = getattr(options, bound)
        if value is not None:
            seconds, date = moment(bound, value)
            if date and not dates and low < EPOCH_S[0]:
                raise TraceError(
                    f"{name}: {bound} = {value!r} is a date, and the log's times are none; give seconds or a duration"
                    " since its first request, like 2h"
                )
            bounds[bound] = seconds if date else low + seconds
    if bounds["start"] > high or bounds["end"] <= low:
        raise TraceError(
            f"{name}: no request in the part that is wanted; the log is {(high - low) / 3600:.3g} hours long"
            + (f", from {_date(low)} to {_date(high)}" if low >= EPOCH_S[0] else "")
        )
    return bounds["start"], bounds["end"]


def _date(seconds: float) -> str:
    return str(np.datetime64(int(seconds), "s"))
