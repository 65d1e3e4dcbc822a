"""A log of JSON: a row a line, a row after another over several lines, an array, or an object that holds one.

``text -> values, one at a time -> rows -> cells by path``. A nested field's name is its path: ``usage.prompt_tokens``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import json as arrow_json

from inferencegym_jax.traffic.log_cells import call
from inferencegym_jax.traffic.log_rows import ROLES, Column, TraceError, named
from inferencegym_jax.traffic.log_source import LogSource

BLOCK_ROWS = 16384
SAMPLE_ROWS = 1000
CHUNK = 1 << 20  # characters
NEAR_END = 64  # an error so near the end of what was read may be one of what was not
DEEPEST = 6
MOST_AROUND = 6  # fields of an object that only holds the rows' object
SPACE = re.compile(r"[ \t\r\n]*")
BLOCK_BYTES = 4 << 20
ARROW_TYPES: dict[frozenset[type], pa.DataType] = {
    frozenset((int,)): pa.int64(),
    frozenset((float,)): pa.float64(),
    frozenset((int, float)): pa.float64(),
    frozenset((str,)): pa.string(),
}
ATTRIBUTES = ("attributes", "tags")  # of a span
SCALARS = ("stringValue", "intValue", "doubleValue", "boolValue")  # OpenTelemetry's values


class Row(NamedTuple):
    """One request."""

    value: dict[str, Any]
    place: str  # what a message calls it


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return row


class _Twice(Exception):
    """A field that stands twice in one object."""


class JsonReader:
    """The fields and rows of a JSON log.

    Attributes:
        columns: paths of the fields of the first 1,000 rows, in their order.
        sample: their cells, by path.
            decimal_comma: never.
    """

    decimal_comma: bool = False

    def __init__(self, source: LogSource):
        """Look at the first rows.

        Raises:
            TraceError: no JSON, or no objects.
        """
        self._source: LogSource = source
        self._paths: dict[str, tuple[str, ...]] = {}
        self.notices: list[str] = []
        rows: list[dict[str, Any]] = []
        a_line_each = source.encoding == "utf-8-sig"
        for row, _ in zip(self._rows(), range(SAMPLE_ROWS), strict=False):
            rows.append(row.value)
            a_line_each &= row.place.startswith("line ")
            for path in paths_of(row.value):
                self._paths.setdefault(".".join(path), path)
        if not rows:
            raise TraceError(f"{source.name}: no rows; wanted: at least one request")
        self.columns: list[str] = list(self._paths)
        self.sample: dict[str, list[str | None]] = {
            name: [cell_of(row, path) for row in rows] for name, path in self._paths.items()
        }
        self._kinds: dict[str, Any] = {}  # name -> pyarrow's type of the fields that pyarrow may read
        if a_line_each and len(rows) > 1:
            kinds = {name: {type(_value(row, path)) for row in rows} for name, path in self._paths.items()}
            self._kinds = {name: ARROW_TYPES[frozenset(k)] for name, k in kinds.items() if frozenset(k) in ARROW_TYPES}

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[Callable[[int], str], list[Column]]]:
        """(what a message calls the block's row i, cells of ``names`` as text) of every block.

        Raises:
            TraceError: something that is no JSON, or no object.
        """
        read = 0
        for columns in self._plain_blocks(names):
            yield self._counted(read), columns
            read += len(columns[0])
        paths = [self._paths[name] for name in names]
        places: list[str] = []
        cells: list[list[str | None]] = [[] for _ in names]
        for value, place in itertools.islice(() if read == self._plain_rows else self._rows(), read, None):
            places.append(place)
            for column, path in zip(cells, paths, strict=True):
                column.append(cell_of(value, path))
            if len(places) == BLOCK_ROWS:
                yield self._named(places), [pa.array(column, pa.string()) for column in cells]
                places, cells = [], [[] for _ in names]
        if places:
            yield self._named(places), [pa.array(column, pa.string()) for column in cells]

    def _plain_blocks(self, names: Sequence[str]) -> Iterator[list[Column]]:
        """The first blocks, as far as every line is an object that holds all ``names`` in the kind of the first rows;
        read by pyarrow, twenty times as fast. ``_plain_rows`` is their number where that is the whole log, else -1."""
        self._plain_rows, read = -1, 0
        if not all(name in self._kinds for name in names):
            return
        paths = [self._paths[name] for name in names]
        fields: dict[str, Any] = {}
        for name, path in zip(names, paths, strict=True):
            inner = fields
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = self._kinds[name]
        with self._source.guard(), self._source.open_bytes() as file:
            try:
                batches = arrow_json.open_json(
                    file,
                    read_options=arrow_json.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                    parse_options=arrow_json.ParseOptions(
                        explicit_schema=pa.schema(_schema(fields)), unexpected_field_behavior="ignore"
                    ),
                )
                for batch in batches:
                    columns = [_leaf(batch, path) for path in paths]
                    if any(column.null_count for column in columns):
                        return
                    for column in columns:
                        column.validate(full=True)  # text that is no UTF-8
                    if batch.num_rows:
                        yield [column.cast(pa.string()) for column in columns]
                    read += batch.num_rows
            except pa.ArrowInvalid:
                return  # what it is that is not so, the other reader says
        self._plain_rows = read

    def _counted(self, before: int) -> Callable[[int], str]:
        """Names of rows that pyarrow read; the log is read again, as only an error wants them."""
        return lambda i: f"{self._source.name} {next(itertools.islice(self._rows(), before + i, None)).place}"

    def _named(self, places: list[str]) -> Callable[[int], str]:
        return lambda i: f"{self._source.name} {places[i]}"

    def _rows(self) -> Iterator[Row]:
        """Every request: top-level objects, elements of a top-level array, of an array in the one top-level object."""
        values = self._values()
        first = next(values, None)
        second = next(values, None)
        alone = first is not None and second is None
        for value, place, in_array in itertools.chain((v for v in (first, second) if v is not None), values):
            if not isinstance(value, dict):
                kind = "an array" if isinstance(value, list) else type(value).__name__
                raise TraceError(f"{self._source.name} {place}: got {kind}; wanted: one object a request")
            inner = self._spans(value)
            if inner is None and alone and not in_array:
                inner = _table(value) or _wrapped(value)
            if inner is None:
                yield Row(_opened(value), place)
                continue
            for i, row in enumerate(inner[1], start=1):
                if not isinstance(row, dict):
                    raise TraceError(f"{self._source.name} {inner[0]} {i}: got {type(row).__name__}; wanted: an object")
                yield Row(_opened(row), f"{inner[0]} {i}")

    def _spans(self, value: dict[str, Any]) -> tuple[str, list[Any]] | None:
        """(name, spans) of OpenTelemetry's JSON, of Tempo's and Jaeger's; only those of a model's call, where there are
        such."""
        spans = _spans_of(value)
        if spans is None:
            return None
        calls = [span for span in spans if _is_call(span)]
        others = len(spans) - len(calls)
        if calls and others and not self.notices:
            self.notices.append("spans without gen_ai.usage are no model's calls and are left out")
        return "span", calls or spans

    def _values(self) -> Iterator[tuple[Any, str, bool]]:
        """(value, what a message calls it, whether it is an array's element)."""
        decoder = json.JSONDecoder(object_pairs_hook=_unique)
        with self._source.guard(), self._source.open_text() as file:
            text, at, line = "", 0, 1
            array, count, wanted = False, 0, CHUNK
            while True:
                at_value = SPACE.match(text, at).end()  # type: ignore[union-attr]
                line += text.count("\n", at, at_value)
                at = at_value
                if at == len(text):
                    more = file.read(CHUNK)
                    if not more:
                        if array:
                            raise TraceError(
                                f"{self._source.name} line {line}: the array is not closed; is the file whole?"
                            )
                        return
                    text, at = more, 0
                    continue
                if count == 0 and not array and text[at] == "[":
                    array, at = True, at + 1
                    continue
                if array and text[at] == "]":
                    return
                if text[at] == "," and count:
                    at += 1
                    continue
                place = f"element {count + 1} (line {line})" if array else f"line {line}"
                try:
                    value, end = decoder.raw_decode(text, at)
                except _Twice as error:
                    field = named([str(error)])
                    raise TraceError(
                        f"{self._source.name} {place}: the field {field} is there twice; leave one"
                    ) from None
                except json.JSONDecodeError as error:
                    unfinished = error.pos >= len(text) - NEAR_END or error.msg.startswith("Unterminated string")
                    more = file.read(wanted) if unfinished else ""
                    if not more:
                        column = error.pos - text.rfind("\n", 0, error.pos)
                        line += text.count("\n", at, error.pos) if array else 0
                        raise TraceError(
                            f"{self._source.name} line {line}: not JSON: {error.msg} (character {column} of the line)"
                        ) from None
                    text, at, wanted = text[at:] + more, 0, 2 * wanted
                    continue
                wanted = CHUNK
                yield value, place, array
                line += text.count("\n", at, end)
                at, count = end, count + 1


def _table(value: dict[str, Any]) -> tuple[str, list[Any]] | None:
    """(name, rows) of an object that holds columns, or names and rows of cells (pandas writes either)."""
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return "row", [dict(zip(map(str, names), row, strict=False)) for row in data]
    columns = [list(v.values()) if isinstance(v, dict) else v for v in value.values()]
    if len(columns) < len(ROLES) or not all(isinstance(column, list) for column in columns):
        return None
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or any(isinstance(cell, dict | list) for column in columns for cell in column[:1]):
        return None
    return "row", [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _wrapped(value: dict[str, Any]) -> tuple[str, list[Any]] | None:
    """(name, rows) of an object's one array of objects, where the object is no request itself."""
    lists = {k: v for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    scalars = [v for v in value.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    inner = [v for v in value.values() if isinstance(v, dict)]
    if not lists and len(inner) == 1 and len(scalars) <= 2 and len(value) <= MOST_AROUND:
        return _wrapped(inner[0])  # an answer of Elasticsearch
    if len(lists) != 1 or len(scalars) > 2:
        return None
    name, rows = next(iter(lists.items()))
    if any(isinstance(value.get(k), dict) and "tokens" in str(list(value[k])).lower() for k in value):
        return None  # a request with its messages
    if any("token" in k.lower() for k in value) or "role" in rows[0]:
        return None
    return name, rows


def _spans_of(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Spans in one object; None where it holds none."""
    batches = value.get("resourceSpans", value.get("batches"))  # OTLP, Tempo
    traces, logs = value.get("data"), value.get("resourceLogs")  # Jaeger, OTLP
    if isinstance(logs, list):
        return [row for log in logs for scope in log.get("scopeLogs", []) for row in scope.get("logRecords", [])]
    if isinstance(batches, list):
        resources = [batch for batch in batches if isinstance(batch, dict)]
        scopes = [s for r in resources for s in r.get("scopeSpans", r.get("instrumentationLibrarySpans", []))]
        return [span for scope in scopes for span in scope.get("spans", [])]
    if isinstance(traces, list) and traces and all(isinstance(t, dict) and "spans" in t for t in traces):
        return [span for trace in traces for span in trace["spans"]]
    return None


def _is_call(span: Any) -> bool:
    keys = [str(a.get("key", "")) for name in ATTRIBUTES for a in span.get(name, []) if isinstance(a, dict)]
    return any("gen_ai.usage" in key or "llm.token_count" in key for key in keys)


def _opened(value: dict[str, Any]) -> dict[str, Any]:
    """A row with OpenTelemetry's list of attributes, or Jaeger's of tags, as an object."""
    for name in ATTRIBUTES:
        attributes = value.get(name)
        if isinstance(attributes, list) and all(isinstance(a, dict) and "key" in a for a in attributes):
            value = value | {name: {a["key"]: _scalar(a.get("value")) for a in attributes}}
    return value


def _scalar(value: Any) -> Any:
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in SCALARS:
        return next(iter(value.values()))
    return value


def paths_of(value: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of an object's fields, those of objects in it followed to a depth of ``DEEPEST``."""
    for key, inner in value.items():
        if isinstance(inner, dict) and len(before) < DEEPEST:
            yield from paths_of(inner, (*before, key))
        else:
            yield (*before, key)


def _schema(fields: dict[str, Any]) -> list[Any]:
    kinds = {name: pa.struct(_schema(kind)) if isinstance(kind, dict) else kind for name, kind in fields.items()}
    return [pa.field(name, kind) for name, kind in kinds.items()]


def _leaf(batch: Any, path: tuple[str, ...]) -> Column:
    """A field by its path, missing where what holds it is."""
    column = batch.column(batch.schema.names.index(path[0]))
    for key in path[1:]:
        column = call("struct_field", column, [[field.name for field in column.type].index(key)])
    return column


def _value(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def cell_of(row: Any, path: tuple[str, ...]) -> str | None:
    """A field as text; None where it is missing."""
    value = _value(row, path)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else f"<{'array' if isinstance(value, list) else 'object'}>"
