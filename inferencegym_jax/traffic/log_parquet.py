"""A log in Parquet, a row group's batch at a time; nested fields by their path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from inferencegym_jax.traffic.log_rows import Column, TraceError
from inferencegym_jax.traffic.log_source import LogSource

BATCH_ROWS = 65536
SAMPLE_ROWS = 1000


class ParquetReader:
    """The columns and rows of a Parquet file; the same as ``log_csv.CsvReader``.

    Attributes:
        columns: paths of the columns.
        sample: the cells of the first rows, by column.
        notices: none.
        decimal_comma: never.
    """

    decimal_comma: bool = False

    def __init__(self, source: LogSource):
        """Read the schema and the first rows.

        Raises:
            TraceError: not a readable Parquet file.
        """
        self._source: LogSource = source
        self.notices: list[str] = []
        try:
            self._file = parquet.ParquetFile(source.open_bytes())
            schema = self._file.schema_arrow
            self.columns: list[str] = [path for field in schema for path in _paths(field.name, field.type)]
            first = next(self._file.iter_batches(batch_size=SAMPLE_ROWS), None)
        except (pa.ArrowInvalid, OSError) as error:
            raise TraceError(f"{source.name}: not a readable Parquet file: {str(error)[:80]}") from None
        self.sample: dict[str, list[str | None]] = {
            path: [] if first is None else _text(_leaf(first, path)).to_pylist() for path in self.columns
        }

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[Callable[[int], str], list[Column]]]:
        """(what a message calls the block's row i, cells of ``names`` as text) of every block."""
        first = 1
        for batch in self._file.iter_batches(batch_size=BATCH_ROWS, columns=list(names)):
            yield self._named(first), [_text(_leaf(batch, name)) for name in names]
            first += batch.num_rows

    def _named(self, first: int) -> Callable[[int], str]:
        return lambda i: f"{self._source.name} row {first + i}"


def _paths(name: str, kind: Any) -> list[str]:
    if not pa.types.is_struct(kind):
        return [name]
    return [path for field in kind for path in _paths(f"{name}.{field.name}", field.type)]


def _leaf(batch: Any, path: str) -> Column:
    if path in batch.schema.names:
        return batch.column(batch.schema.names.index(path))
    head, _, rest = path.partition(".")
    column = batch.column(batch.schema.names.index(head))
    while rest:
        name, _, after = rest.partition(".")
        fields = [field.name for field in column.type]
        if rest in fields:
            name, after = rest, ""
        column, rest = column.field(name), after
    return column


def _text(column: Column) -> Column:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array(
            [None if cell is None else f"<{type(cell).__name__}>" for cell in column.to_pylist()], pa.string()
        )
