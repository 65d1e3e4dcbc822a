"""What stands in a table's cells otherwise than a cell a field: objects in a cell, a date and its time in two cells.

``reader of CSV or Parquet -> reader whose columns also are the fields of such objects, by path: usage.prompt_tokens``.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

from inferencegym_jax.traffic.log_cells import DAY_ONLY
from inferencegym_jax.traffic.log_json import cell_of, paths_of
from inferencegym_jax.traffic.log_names import Sample
from inferencegym_jax.traffic.log_rows import Column

SAMPLE_CELLS = 100
DAY_AND_TIME = "date time"  # name of the column that a day and a time of day make
TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?")


class TableReader(Protocol):
    """What reads one kind of table."""

    columns: list[str]
    decimal_comma: bool
    notices: list[str]

    @property
    def sample(self) -> Sample:
        """The first rows' cells, by column."""
        ...

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[Callable[[int], str], list[Column]]]:
        """(what a message calls the block's row i, cells of ``names`` as text) of every block."""
        ...


class NestedReader:
    """The columns and rows of a table, and the fields of objects in its cells.

    Attributes:
        columns: the table's, then the fields' paths.
        sample: the cells of the first rows, by column.
        decimal_comma: the table's.
        notices: the table's.
    """

    def __init__(self, reader: TableReader):
        self._reader: TableReader = reader
        self.decimal_comma: bool = reader.decimal_comma
        self.notices: list[str] = reader.notices
        self.sample: dict[str, Sequence[str | None]] = dict(reader.sample)
        self._paths: dict[str, tuple[str, tuple[str, ...]]] = {}  # name -> the table's column, path in its cells
        for column in reader.columns:
            cells = self.sample.get(column, ())
            first = next((cell for cell in cells if cell and cell.strip()), "")
            if not first.lstrip().startswith("{"):
                continue
            objects = [opened(cell) for cell in cells]
            for row in objects[:SAMPLE_CELLS]:
                for path in paths_of(row):
                    name = ".".join((column, *path))
                    if name not in reader.columns:
                        self._paths.setdefault(name, (column, path))
            for name, (base, path) in self._paths.items():
                if base == column:
                    self.sample[name] = [cell_of(row, path) for row in objects]
        self.columns: list[str] = [*reader.columns, *self._paths]
        days, times = (
            [column for column in reader.columns if _all(self.sample.get(column, ()), form)]
            for form in (DAY_ONLY, TIME_OF_DAY)
        )
        self._moment: tuple[str, str] | None = None
        if len(days) == len(times) == 1 and DAY_AND_TIME not in self.columns:
            self._moment = (days[0], times[0])
            self.columns.append(DAY_AND_TIME)
            self.sample[DAY_AND_TIME] = [
                _joined(*pair) for pair in zip(*(self.sample[c] for c in self._moment), strict=True)
            ]

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[Callable[[int], str], list[Column]]]:
        """(what a message calls the block's row i, cells of ``names`` as text) of every block.

        Raises:
            TraceError: see the table's reader.
        """
        bases = list(dict.fromkeys(base for name in names for base in self._bases(name)))
        for place, columns in self._reader.blocks(bases):
            of_base = dict(zip(bases, columns, strict=True))
            objects = {
                base: [opened(cell) for cell in of_base[base].to_pylist()]
                for base in {self._paths[name][0] for name in names if name in self._paths}
            }
            yield place, [self._column(name, of_base, objects) for name in names]

    def _bases(self, name: str) -> tuple[str, ...]:
        """The table's columns that a column is made of."""
        if self._moment is not None and name == DAY_AND_TIME:
            return self._moment
        return (self._paths[name][0] if name in self._paths else name,)

    def _column(self, name: str, of_base: dict[str, Column], objects: dict[str, list[dict[str, Any]]]) -> Column:
        if self._moment is not None and name == DAY_AND_TIME:
            days, times = (of_base[column].to_pylist() for column in self._moment)
            return pa.array([_joined(*pair) for pair in zip(days, times, strict=True)], pa.string())
        if name not in self._paths:
            return of_base[name]
        base, path = self._paths[name]
        return pa.array([cell_of(row, path) for row in objects[base]], pa.string())


def _all(cells: Sequence[str | None], form: re.Pattern[str]) -> bool:
    return any(cells) and all(cell is not None and form.fullmatch(cell.strip()) for cell in cells)


def _joined(day: str | None, time: str | None) -> str | None:
    return None if day is None or time is None else f"{day.strip()} {time.strip()}"


def opened(cell: str | None) -> dict[str, Any]:
    """The object in a cell, written as JSON or as Python (pandas writes a dict so); empty where there is none."""
    text = (cell or "").strip()
    if not text.startswith("{"):
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}
