"""Cells of a log's columns as numbers: tokens, and times whatever way they are written.

``text -> float64``, a block at a time. What a column holds (numbers, dates, dates with a zone) its first block says and
every later one has to say too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inferencegym_jax.traffic.log_rows import MOST_TOKENS, Column, TraceError, named, quoted

Where = Callable[[int], str]

TIME_WANTED = "a number, or a date and time like 2023-11-16 18:15:46.68"
TOKENS_WANTED = f"a whole number of tokens from 0 to {MOST_TOKENS:,.0f}"
# as people write dates, to what pyarrow reads; applied in this order where a plain reading fails
DATE_FORMS = (
    (r"^(\d{4})/(\d{1,2})/(\d{1,2})", r"\1-\2-\3"),
    (r"^(\d{4})(\d{2})(\d{2})[tT](\d{2})(\d{2})(\d{2})", r"\1-\2-\3 \4:\5:\6"),
    (r"^(\d{4}-\d{2}-\d{2})[tT_ ]\s*", r"\1 "),
    (r"(:\d{2}),(\d+)", r"\1.\2"),
    (r"(\.\d{9})\d+", r"\1"),
    (r"\s*(?:UTC|GMT|utc|gmt|z)$", "Z"),
    (r"\s+([+-]\d{2}:?\d{2})$", r"\1"),
    (r"([+-]\d{2}:?\d{2})\s*\[[\w/]+\]$", r"\1"),
)
WRITTEN_OUT = (
    "%d/%b/%Y:%H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S %Z",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a %b %d %H:%M:%S %Y",
    "%d %b %Y %H:%M:%S",
    "%b %d, %Y %H:%M:%S",
    "%b %d, %Y, %I:%M:%S %p",
    "%b %d, %Y @ %H:%M:%S.%f",
    "%Y-%m-%d %I:%M:%S %p",
    "%Y-%m-%d %I:%M:%S.%f %p",
)
DAY_ONLY = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}")
ZONE_NAME = re.compile(r".*\d\s+(?!AM|PM)[A-Z]{2,5}", re.IGNORECASE)
DAY_FIRST = re.compile(r"\d{1,2}[/.]\d{1,2}[/.]\d{2,4}\b")


def call(name: str, *arguments: Any, **options: Any) -> Any:
    """A pyarrow kernel by its name (pyarrow ships no types)."""
    return getattr(pc, name)(*arguments, **options)


def failure(place: str, column: str, value: object, wanted: str) -> TraceError:
    """The error of one cell; ``place`` names file and row."""
    return TraceError(f"{place}: {named([column])[1:-1]} is {quoted(value)}; wanted: {wanted}")


def floats(column: Column) -> np.ndarray | None:
    """A column of text as float64, missing cells NaN; None where a cell is no number."""
    try:
        return np.asarray(call("cast", column, pa.float64()).fill_null(np.nan), np.float64)
    except pa.ArrowInvalid:
        return None


def _is_number(cell: str | None) -> bool:
    return cell is not None and floats(pa.array([cell])) is not None


def is_date(cell: str | None) -> bool:
    """Whether a cell of a column of times is a date and time; False of a number, and of what is neither."""
    return cell is not None and Times("").kind_of(cell.strip()) not in (None, "numbers")


def tokens(place: Where, name: str, column: Column, missing: float | None = None) -> np.ndarray:
    """A column of text as tokens, float64.

    Args:
        place: what a message calls the block's row i.
        name: of the column.
        column: its cells.
        missing: what an empty cell is; None: an error.

    Raises:
        TraceError: a cell is no whole number from 0 to 1e8.
    """
    stripped = call("utf8_trim_whitespace", column)
    if missing is not None:
        empty = call("equal", call("utf8_length", stripped), 0).fill_null(True)
        stripped = call("if_else", empty, str(missing), stripped)
    values = floats(stripped)
    if values is None:
        i, cell = next((i, cell) for i, cell in enumerate(stripped.to_pylist()) if not _is_number(cell))
        raise failure(place(i), name, cell, TOKENS_WANTED)
    bad = ~((values >= 0) & (values <= MOST_TOKENS)) | (values != np.floor(values))
    if bad.any():
        i = int(np.argmax(bad))
        raise failure(place(i), name, stripped[i].as_py(), TOKENS_WANTED)
    return values


class Times:
    """A column of times, block by block: numbers in one unit, dates without a zone (UTC), or dates with one."""

    def __init__(self, name: str, decimal_comma: bool = False):
        self.name = name
        self.kind: str | None = None  # "numbers", "dates", "dates with a zone"
        self.decimal_comma = decimal_comma

    @property
    def dates(self) -> bool:
        """Whether the values are seconds since 1970, from dates."""
        return self.kind not in (None, "numbers")

    def read(self, place: Where, column: Column) -> np.ndarray:
        """A block's values, float64: seconds since 1970 of dates, else as they are.

        Raises:
            TraceError: a cell is neither, or of another kind than those before it.
        """
        stripped = call("utf8_trim", call("utf8_trim_whitespace", column), characters="[]")  # nginx's brackets
        shortest = call("min", call("utf8_length", stripped)).as_py()
        if stripped.null_count or not shortest:
            i = next(i for i, cell in enumerate(stripped.to_pylist()) if not cell)
            raise failure(place(i), self.name, None, TIME_WANTED)
        if self.kind in (None, "numbers"):
            numbers = floats(stripped)
            if numbers is None and self.decimal_comma:
                numbers = floats(
                    call("replace_substring_regex", stripped, pattern=r"^(-?\d+),(\d+)$", replacement=r"\1.\2")
                )
            if numbers is not None:
                self.kind = "numbers"
                if not np.isfinite(numbers).all():
                    i = int(np.argmin(np.isfinite(numbers)))
                    raise failure(place(i), self.name, stripped[i].as_py(), TIME_WANTED)
                return numbers
            if self.kind is None and _is_number(stripped[0].as_py()):
                self.kind = "numbers"
        values = None if self.kind == "numbers" else self._dates(stripped)
        if values is None:
            raise self._first_bad(place, stripped)
        return values

    def _dates(self, cells: Column) -> np.ndarray | None:
        for form in (cells, None):
            if form is None:
                form = cells
                for pattern, replacement in DATE_FORMS:
                    form = call("replace_substring_regex", form, pattern=pattern, replacement=replacement)
            for kind, target in (("dates", pa.timestamp("ns")), ("dates with a zone", pa.timestamp("ns", "UTC"))):
                if self.kind not in (None, kind):
                    continue
                try:
                    moments = call("cast", form, target)
                except pa.ArrowInvalid:
                    continue
                if call("max", call("utf8_length", cells)).as_py() <= 10:
                    return None  # days without a time of day
                self.kind = kind
                return np.asarray(moments.cast(pa.int64()), np.float64) * 1e-9
        return self._written_out(cells.to_pylist())

    def _written_out(self, cells: Sequence[str]) -> np.ndarray | None:
        for written in WRITTEN_OUT:
            try:
                moments = [datetime.strptime(cell, written) for cell in cells]
            except ValueError:
                continue
            zoned = moments[0].tzinfo is not None or written.endswith("%Z")
            kind = "dates with a zone" if zoned else "dates"
            if self.kind not in (None, kind):
                return None
            self.kind = kind
            return np.array([(m if m.tzinfo else m.replace(tzinfo=UTC)).timestamp() for m in moments], np.float64)
        return None

    def kind_of(self, cell: str) -> str | None:
        """What one cell is: "numbers", "dates", "dates with a zone", or None."""
        if _is_number(cell):
            return "numbers"
        alone = Times(self.name)
        return alone.kind if alone._dates(pa.array([cell])) is not None else None

    def _first_bad(self, place: Where, cells: Column) -> TraceError:
        before = self.kind
        for i, cell in enumerate(cells.to_pylist()):
            if DAY_ONLY.fullmatch(cell):
                wanted = "a date with its time of day: days alone do not say when in the day a request came"
                return failure(place(i), self.name, cell, wanted)
            if DAY_FIRST.match(cell):
                return failure(
                    place(i), self.name, cell, f"{TIME_WANTED} (whether its day or month stands first is open)"
                )
            kind = self.kind_of(cell)
            if kind is None and ZONE_NAME.fullmatch(cell):
                wanted = f"{TIME_WANTED}; a zone as Z or +02:00, not by its name"
                return failure(place(i), self.name, cell, wanted)
            if kind is None:
                return failure(place(i), self.name, cell, TIME_WANTED)
            if before not in (None, kind):
                return failure(place(i), self.name, cell, f"{before}, as in the rows before")
            before = kind
        return TraceError(f"{place(0)}: {self.name} is not read as times; wanted: {TIME_WANTED}")
