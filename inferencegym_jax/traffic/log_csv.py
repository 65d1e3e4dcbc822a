"""A log of delimited text, a block at a time: comma, semicolon, tab or bar; quoted line breaks."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from pyarrow import csv as arrow_csv

from inferencegym_jax.traffic.log_rows import Column, TraceError, plain_number
from inferencegym_jax.traffic.log_source import LogSource

DELIMITERS = ",;\t|"
BLOCK_BYTES = 4 << 20
SAMPLE_ROWS = 1000
NAME = re.compile(r"[@$#_]?[^\W\d][\w .\-/()\[\]{}%@$#|]{0,80}")  # what can be the name of a column


class CsvReader:
    """The columns and rows of a delimited file.

    Attributes:
        columns: their names, as they stand in the header.
        sample: the cells of the first rows, by column.
        decimal_comma: whether numbers may be written 0,5: the delimiter is not a comma.
        notices: none.
    """

    _delimiter: str
    _skipped: int

    def __init__(self, source: LogSource):
        """Find delimiter and header.

        Raises:
            TraceError: the first row holds numbers where names should stand.
        """
        self._source: LogSource = source
        self.notices: list[str] = []
        lines = io.StringIO(source.head, newline="").readlines()
        skipped, delimiter = 0, None
        while skipped < len(lines):
            line = lines[skipped].strip("\ufeff \r\n").strip('"')
            if line.lower().startswith("sep=") and len(line) == 5:
                delimiter = line[4]
            elif line and not line.startswith("#"):
                break
            elif line.startswith("#") and sum(map(line.count, DELIMITERS)) >= 2 and not line.startswith("# "):
                lines[skipped] = lines[skipped].replace("#", "", 1)  # "#time,prompt,output" is a header
                break
            skipped += 1
        text = "".join(lines[skipped:]).lstrip("\ufeff")
        self._delimiter = delimiter or max(DELIMITERS, key=lambda d: len(_first_row(text, d)))
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter)
        with _long_fields():
            try:
                header = next(rows)
                self._skipped = skipped + rows.line_num
                first = [row for _, row in zip(range(SAMPLE_ROWS), rows, strict=False) if row]
            except (csv.Error, StopIteration):
                header, first = [], []
                self._skipped = skipped
        self.decimal_comma: bool = self._delimiter != ","
        self.columns: list[str] = [name.strip("\ufeff ") for name in header]
        if sum(map(plain_number, self.columns)) >= 2:
            raise TraceError(
                f"{source.name} line {skipped + 1}: numbers where the names of the columns should stand; add a first"
                " line such as timestamp,prompt_tokens,output_tokens"
            )
        nested = any(cell.lstrip().startswith("{") for row in first[:1] for cell in row)
        if sum(NAME.fullmatch(name) is not None for name in self.columns) < (1 if nested else 2):
            raise TraceError(
                f"{source.name} line {self._skipped}: no names of columns, or nothing between them; wanted: names such"
                " as timestamp,prompt_tokens,output_tokens, with commas, semicolons, tabs or bars between them"
            )
        width = len(self.columns)
        if first and len(first[0]) == width + 1 and not first[0][-1]:
            self.columns.append("")  # every row ends with a delimiter
            width += 1
        whole = first[:-1] if len(first) > 1 else first  # the last may be cut
        self.sample: dict[str, list[str | None]] = {
            name: [row[i] for row in whole if len(row) == width] for i, name in enumerate(self.columns)
        }

    def line_of(self, record: int) -> str:
        """What a message calls the record: the line on which it starts; read again, as only an error wants it."""
        for i, (line, _) in enumerate(self._records()):
            if i == record:
                return f"{self._source.name} line {line}"
        return f"{self._source.name} row {record + 1}"

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(line on which it starts, cells) of every record that is not empty."""
        with _long_fields(), self._source.open_text() as text:
            for _ in range(self._skipped):
                text.readline()
            rows, before = csv.reader(text, delimiter=self._delimiter), 0
            try:
                for row in rows:
                    start, before = before, rows.line_num
                    if row:
                        yield self._skipped + start + 1, row
            except csv.Error:
                return

    def _named(self, record: int) -> Callable[[int], str]:
        return lambda i: self.line_of(record + i)

    def _misfit(self) -> TraceError:
        width = len(self.columns)
        for line, row in self._records():
            if len(row) != width:
                return TraceError(f"{self._source.name} line {line}: {len(row)} cells where the header has {width}")
        return TraceError(f"{self._source.name}: a row has not the {width} cells of the header")

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[Callable[[int], str], list[Column]]]:
        """(what a message calls the block's row i, cells of ``names`` as text) of every block.

        Raises:
            TraceError: a row of another width, or a file that breaks off.
        """
        wanted = [self.columns.index(name) for name in names]
        keys = [str(i) for i in range(len(self.columns))]
        record = 0
        with self._source.guard(), self._source.open_utf8() as file:
            try:
                reader = arrow_csv.open_csv(
                    file,
                    read_options=arrow_csv.ReadOptions(
                        block_size=BLOCK_BYTES, use_threads=False, column_names=keys, skip_rows=self._skipped
                    ),
                    parse_options=arrow_csv.ParseOptions(
                        delimiter=self._delimiter,
                        ignore_empty_lines=True,
                        newlines_in_values=True,
                    ),
                    convert_options=arrow_csv.ConvertOptions(
                        include_columns=[keys[i] for i in wanted],
                        column_types=dict.fromkeys((keys[i] for i in wanted), pa.binary()),
                        strings_can_be_null=True,
                    ),
                )
                for batch in reader:
                    if batch.num_rows:
                        yield self._named(record), [_text(batch.column(i)) for i in range(len(wanted))]
                    record += batch.num_rows
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):
                    return
                raise self._unreadable(str(error)) from None

    def _unreadable(self, said: str) -> TraceError:
        if re.search(r"Expected \d+ columns, got \d+", said):
            return self._misfit()
        if "straddling" in said:
            most = f"{BLOCK_BYTES >> 20} MB"
            return TraceError(
                f"{self._source.name}: a row is longer than {most}, or a quotation mark is opened and not closed"
            )
        return TraceError(f"{self._source.name}: not a readable CSV file: {said.splitlines()[0][:80]}")


def _first_row(text: str, delimiter: str) -> list[str]:
    with _long_fields():
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        except (csv.Error, StopIteration):
            return []


class _long_fields:
    """A context in which csv reads fields of any length."""

    def __enter__(self) -> None:
        self.before = csv.field_size_limit(sys.maxsize)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self.before)


def _text(column: Column) -> Column:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([None if cell is None else cell.decode("latin-1") for cell in column.to_pylist()], pa.string())
