"""Rows of a request log: CSV or JSON lines, read a block at a time and checked cell by cell.

``file -> columns found by their usual names -> Block``. ``traces.py`` counts the blocks into seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

TIME_NAMES = (
    "timestamp time arrival arrivaltime arrivaltimestamp arrivedat arrival_at requesttime requesttimestamp starttime "
    "ts createdat datetime date"
).split()
PROMPT_NAMES = (
    "prompttokens prompt promptlength promptlen contexttokens context contextlength inputtokens input inputlength "
    "inputlen requesttokens numprefilltokens prefilltokens numprompttokens numinputtokens isl"
).split()
OUTPUT_NAMES = (
    "outputtokens output outputlength outputlen generatedtokens generated generationtokens completiontokens completion "
    "responsetokens decodetokens numdecodetokens numoutputtokens osl"
).split()
UNIT_SUFFIX = re.compile(r"(?<=[a-z])_?(s|sec|secs|seconds|ms|millis|milliseconds|us|micros|ns|nanos)$")

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 16384
MOST_TOKENS = 1e8


Column: TypeAlias = Any  # a pyarrow array; pyarrow ships no types


class TraceError(ValueError):
    """A request log that cannot be used; the message names file, row and what is wanted."""


class Block(NamedTuple):
    """Some consecutive rows; times in the file's own unit unless they were dates."""

    first_line: int  # of the file, from 1
    times: np.ndarray  # float64
    prompts: np.ndarray  # float64
    outputs: np.ndarray  # float64
    dates: bool  # times are seconds since 1970


def find_columns(name: str, columns: list[str]) -> list[str]:
    """Names of the time, prompt and output column among ``columns``.

    Raises:
        TraceError: one of them is not there; says which names would do.
    """
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in columns}
    bare = {re.sub(r"[^a-z0-9]", "", UNIT_SUFFIX.sub("", column.lower().strip())): column for column in columns}
    matches = []
    for what, known in (("time", TIME_NAMES), ("prompt tokens", PROMPT_NAMES), ("output tokens", OUTPUT_NAMES)):
        match = next((plain[k] for k in known if k in plain), None) or next((bare[k] for k in known if k in bare), None)
        if match is None:
            raise TraceError(
                f"{name}: no column of {what} among {', '.join(map(repr, columns)) or 'none'};"
                f" known names (case and separators do not matter): {', '.join(known)}"
            )
        matches.append(match)
    return matches


def open_log(file: Path) -> tuple[list[str], Iterator[Block]]:
    """The names of a log's time, prompt and output column, and its rows.

    Raises:
        TraceError: the file is empty or lacks a column; while the blocks are read, a row cannot be used.
    """
    with file.open("rb") as lines:
        head = lines.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise TraceError(
            f"{file.name}: the file is empty; wanted: a request log with time, prompt tokens, output tokens"
        )
    return _json_blocks(file) if head.startswith(b"{") else _csv_blocks(file)


def _csv_blocks(file: Path) -> tuple[list[str], Iterator[Block]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            header = next(line for line in lines if line.strip())
    except UnicodeDecodeError as error:
        raise TraceError(f"{file.name}: not a text file: {error}") from error
    delimiter = max(",;\t", key=header.count)
    columns = [c.strip().strip('"') for c in header.strip().split(delimiter)]
    names = find_columns(file.name, columns)

    def blocks() -> Iterator[Block]:
        bad: list[tuple[int | None, str]] = []

        def refuse(row: Any) -> str:
            bad.append((row.number, f"{row.actual_columns} cells where the header has {row.expected_columns}"))
            return "skip"

        try:
            reader = csv.open_csv(
                file,
                read_options=csv.ReadOptions(
                    block_size=BLOCK_BYTES, use_threads=False, column_names=columns, skip_rows=1
                ),
                parse_options=csv.ParseOptions(
                    delimiter=delimiter, invalid_row_handler=refuse, ignore_empty_lines=True
                ),
                convert_options=csv.ConvertOptions(
                    include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
                ),
            )
            line = 2
            for batch in reader:
                if bad:
                    number, what = bad[0]
                    raise TraceError(f"{file.name} line {number or f'{line} or later'}: {what}")
                columns_of = [batch.column(i) for i in range(3)]
                prompts, outputs = (
                    _numbers(file.name, line, n, c) for n, c in zip(names[1:], columns_of[1:], strict=True)
                )
                times, dates = _times(file.name, line, names[0], columns_of[0])
                yield Block(line, times, prompts, outputs, dates)
                line += batch.num_rows
            if bad:
                raise TraceError(f"{file.name} line {bad[0][0] or f'{line} or later'}: {bad[0][1]}")
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return
            raise TraceError(f"{file.name}: not a readable CSV file: {error}") from error

    return names, blocks()


def _fail(file: str, line: int, index: int, column: str, value: object, wanted: str) -> TraceError:
    shown = "nothing" if value is None or value == "" else repr(value)
    return TraceError(f"{file} line {line + index}: {column} is {shown}; wanted: {wanted}")


def _numbers(file: str, line: int, name: str, column: Column) -> np.ndarray:
    wanted = "a whole number of tokens, 0 or more"
    stripped = pc.call_function("utf8_trim_whitespace", [column])
    try:
        values = np.asarray(pc.cast(stripped, pa.float64()).fill_null(np.nan), np.float64)
    except pa.ArrowInvalid:
        for i, cell in enumerate(stripped.to_pylist()):
            if not _is_number(cell):
                raise _fail(file, line, i, name, cell, wanted) from None
        raise
    return _check_tokens(file, line, name, values, stripped)


def _is_number(cell: str | None) -> bool:
    try:
        pc.cast(pa.array([cell]), pa.float64())
    except pa.ArrowInvalid:
        return False
    return cell is not None


def _check_tokens(file: str, line: int, name: str, values: np.ndarray, shown: Column) -> np.ndarray:
    bad = ~((values >= 0) & (values <= MOST_TOKENS))
    if bad.any():
        i = int(np.argmax(bad))
        raise _fail(file, line, i, name, shown[i].as_py(), "a whole number of tokens, 0 or more")
    return values


def _times(file: str, line: int, name: str, column: Column) -> tuple[np.ndarray, bool]:
    """(values, whether they are seconds since 1970, from dates)."""
    wanted = "a number, or a date and time like 2023-11-16 18:15:46.68"
    stripped = pc.call_function("utf8_trim_whitespace", [column])
    if stripped.null_count or pc.call_function("min", [pc.call_function("utf8_length", [stripped])]).as_py() == 0:
        i = next(i for i, cell in enumerate(stripped.to_pylist()) if not cell)
        raise _fail(file, line, i, name, None, wanted)
    kind = (pa.float64(), False) if _is_number(stripped[0].as_py()) else (pa.timestamp("ns"), True)
    for target in (kind[0], pa.timestamp("ns", "UTC")) if kind[1] else (kind[0],):
        try:
            values = pc.cast(stripped, target)
        except pa.ArrowInvalid:
            continue
        numbers = np.asarray(values.cast(pa.int64()) if kind[1] else values, np.float64)
        numbers = numbers * 1e-9 if kind[1] else numbers
        if not np.isfinite(numbers).all():
            i = int(np.argmin(np.isfinite(numbers)))
            raise _fail(file, line, i, name, stripped[i].as_py(), wanted)
        return numbers, kind[1]
    for i, cell in enumerate(stripped.to_pylist()):
        try:
            pc.cast(pa.array([cell]), kind[0])
        except pa.ArrowInvalid:
            raise _fail(file, line, i, name, cell, wanted) from None
    raise TraceError(f"{file} line {line}: {name} mixes kinds of dates; wanted: {wanted}")


def _json_blocks(file: Path) -> tuple[list[str], Iterator[Block]]:
    def rows() -> Iterator[tuple[int, dict[str, object]]]:
        with file.open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except ValueError as error:
                    raise TraceError(f"{file.name} line {number}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise TraceError(f"{file.name} line {number}: got {type(row).__name__}; wanted: one object a line")
                yield number, row

    _, first = next(rows())
    names = find_columns(file.name, list(first))

    def blocks() -> Iterator[Block]:
        taken: list[tuple[int, dict[str, object]]] = []
        for numbered in rows():
            taken.append(numbered)
            if len(taken) == BLOCK_ROWS:
                yield _json_block(file.name, names, taken)
                taken = []
        if taken:
            yield _json_block(file.name, names, taken)

    return names, blocks()


def _json_block(file: str, names: list[str], taken: list[tuple[int, dict[str, object]]]) -> Block:
    line = taken[0][0]
    columns = []
    for name in names[1:]:
        cells = [row.get(name) for _, row in taken]
        for (number, _), cell in zip(taken, cells, strict=True):
            if isinstance(cell, bool) or not isinstance(cell, int | float):
                raise _fail(file, number, 0, name, cell, "a whole number of tokens, 0 or more")
        values = np.array(cells, np.float64)
        bad = ~((values >= 0) & (values <= MOST_TOKENS))
        if bad.any():
            i = int(np.argmax(bad))
            raise _fail(file, taken[i][0], 0, name, cells[i], "a whole number of tokens, 0 or more")
        columns.append(values)
    texts = [row.get(names[0]) for _, row in taken]
    for (number, _), cell in zip(taken, texts, strict=True):
        if isinstance(cell, bool) or not isinstance(cell, int | float | str):
            raise _fail(file, number, 0, names[0], cell, "a number, or a date and time")
    times, dates = _times(file, line, names[0], pa.array([str(cell) for cell in texts]))
    return Block(line, times, columns[0], columns[1], dates)
