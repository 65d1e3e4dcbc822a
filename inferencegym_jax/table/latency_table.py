"""The latency table: load it, check it, hold it as one grid.

``data/*.parquet -> read -> check -> LatencyTable``. Columns and units: ENVIRONMENT.md, section 6. Anyone's own
table of the same columns drops in, as parquet or CSV; knobs that it lacks are locked at the baseline's value.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from inferencegym_jax.models import KNOBS, shown
from inferencegym_jax.table.columns import number_columns
from inferencegym_jax.table.engine_profile import EngineProfile
from inferencegym_jax.table.errors import TableError
from inferencegym_jax.table.profile_format import ENGINE_METADATA, POOL_METADATA, REPLAY_METADATA

PROMPT_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # tokens of prompt_len_bucket 0 to 7
KEYS = ("spec_length", "quant_tier", "prefill_disagg", "batch_size", "kv_budget", "prompt_len_bucket")
DISCRETE, CONTINUOUS = KEYS[:3], KEYS[3:]  # looked up exactly, interpolated
METRICS = ("ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "tps", "gpu_mem_gb", "cost_per_1k")
OPTIONAL_KEYS = ("spec_length", "quant_tier", "prefill_disagg", "kv_budget")
DEFAULT_TABLE = "traces_llama3_8b.parquet"
PROFILE_KEY = "engine_profile"  # of the metadata; the other place of a profile is the file NAME.engine.json
PROFILE_SUFFIX = ".engine.json"


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """A checked table as a dense grid. Equal and hashed by content, so that equal tables share compiled code.

    Attributes:
        axes: sorted values of every key column, in the order of ``KEYS``; prompt lengths in tokens.
        values: float32[spec, quant, disagg, batch, kv, prompt, 6], metrics in the order of ``METRICS``.
        metadata: the file's own text metadata (source, version, licence, reference acceptance, output length...).
        name: where it came from.
        engine: what the file says of an engine's iterations and memory, for the open loop; None where it says nothing.
            ``derived_profile.profile_of`` is what the open loop reads: it derives one where it can.
    """

    axes: dict[str, tuple[float, ...]]
    values: np.ndarray
    metadata: dict[str, str] = field(default_factory=dict)
    name: str = "table"
    engine: EngineProfile | None = None

    @classmethod
    def from_columns(cls, columns: Any, metadata: Mapping[str, Any] | None = None, name: str = "table") -> LatencyTable:
        """A table from a data frame (pandas, polars, pyarrow) or a mapping of names to sequences.

        Args:
            columns: of a latency table, one row a measurement: the keys ``batch_size`` and ``prompt_len_bucket`` and
                the metrics; a knob's column that is missing locks that knob; other columns are not read.
            metadata: of the table (``engine_overhead_ms``, ``reference_output_length``, ``engine_profile``, ...);
                texts, or values that become JSON.
            name: what to call the table.

        Raises:
            TypeError: neither a mapping nor a data frame.
            TableError: naming the first column or row that cannot be used; see ``table_from_columns``.
        """
        try:
            numbers = number_columns(columns, (*KEYS, *METRICS))
        except ValueError as error:
            raise TableError(f"{name}: {error}") from None
        texts = {key: x if isinstance(x, str) else json.dumps(x) for key, x in (metadata or {}).items()}
        return table_from_columns(numbers, texts, name)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the axes, values and the metadata that the physics reads; the engine profile has its own."""
        text = repr((self.axes, self.reference_acceptance, self.output_length, self.engine_overhead_ms))
        text += repr(self.prefill_ms) if self.prefill_ms else ""
        return hashlib.sha256(text.encode() + np.ascontiguousarray(self.values).tobytes()).hexdigest()

    def __hash__(self) -> int:
        """Hash of the content."""
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        """Whether the other table has the same content."""
        return isinstance(other, LatencyTable) and self._content == other._content

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        """The digest, and what an engine profile and the replay of a trial are read or derived from."""
        read = (*POOL_METADATA, *ENGINE_METADATA, *REPLAY_METADATA)
        return self.digest, self.engine, *(self.metadata.get(key) for key in read)

    @property
    def reference_acceptance(self) -> float:
        """Acceptance of drafted tokens that the table's speculation columns assume."""
        return float(self.metadata.get("reference_acceptance", "0.7"))

    @property
    def output_length(self) -> float:
        """Mean output tokens a request that the table assumes."""
        return float(self.metadata.get("reference_output_length", "128"))

    @property
    def engine_overhead_ms(self) -> float:
        """Scheduler and sampler time of one iteration, which kernels do not hold; the open loop adds it. 0 if not
        stated."""
        return float(self.metadata.get("engine_overhead_ms", "0"))

    @property
    def prefill_ms(self) -> tuple[float, ...]:
        """ms that one prompt of each length on the axis adds to the iterations, where the table's maker measured it
        apart (``inferencegym measure`` does); else empty."""
        return tuple(json.loads(self.metadata.get("prefill_ms", "[]")))

    @property
    def locked_knobs(self) -> tuple[str, ...]:
        """Knobs for which the table has one value only, so that no agent can turn them."""
        return tuple(name for name in KNOBS if len(self.axes.get(name, ())) == 1)

    @functools.cached_property
    def knob_defaults(self) -> dict[str, Any]:
        """The baseline's value of each knob, or the table's nearest where the table lacks it. Of knobs that are no
        axis of a table, the baseline's."""
        result: dict[str, Any] = {}
        for name, knob in KNOBS.items():
            value = knob.default
            if name in DISCRETE or name in self.locked_knobs:
                value = min(self.axes[name], key=lambda node, wanted=float(value): abs(node - wanted))
            result[name] = {"float": float, "bool": bool}.get(knob.kind, int)(value)
        return result

    @functools.cached_property
    def gpu_second_cost(self) -> float:
        """Cost of one GPU for a second, ``cost_per_1k x tps / 1000`` of the colocated rows: it is paid busy or not."""
        rows = self.values[:, :, 0]
        rate = rows[..., METRICS.index("cost_per_1k")].astype(np.float64) * rows[..., METRICS.index("tps")] / 1000.0
        return float(np.median(rate))

    @functools.cached_property
    def base_memory_gb(self) -> tuple[float, ...]:
        """Memory (GB) of weights and runtime for each quant tier: the tier's least gpu_mem_gb over the table."""
        memory = self.values[..., METRICS.index("gpu_mem_gb")]
        return tuple(float(x) for x in memory.min(axis=(0, 2, 3, 4, 5)))


def data_path(name: str) -> Path:
    """Path of a shipped data file: in the installed package, or in a checkout's ``data/``."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "data", here.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name}: not among the shipped data files of inferencegym_jax")


@functools.lru_cache(maxsize=8)
def _load(path: str, stamps: tuple[tuple[int, int] | None, ...]) -> LatencyTable:
    columns, metadata = _read(Path(path))
    if stamps[1] is not None:  # else part of the cache key only: a rewritten file is read again
        beside = EngineProfile.load(profile_path(path))
        if PROFILE_KEY in metadata and EngineProfile.from_json(metadata[PROFILE_KEY], path) != beside:
            raise TableError(f"{path}: its metadata {PROFILE_KEY} is not that of {profile_path(path)}; remove one")
        metadata[PROFILE_KEY] = beside.to_json()
    return table_from_columns(columns, metadata, name=path)


def _stamp(path: Path) -> tuple[int, int] | None:
    status = path.stat() if path.is_file() else None
    return (status.st_mtime_ns, status.st_size) if status else None


def profile_path(table: str | Path) -> Path:
    """The file beside a table that may hold its engine profile: NAME.engine.json for NAME.parquet or NAME.csv."""
    return Path(table).with_suffix(PROFILE_SUFFIX)


def load_table(table: str | Path | LatencyTable | None = None) -> LatencyTable:
    """Load and check a latency table.

    Args:
        table: path of a parquet or CSV file, a ``LatencyTable`` (returned as it is), or None for the shipped one.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: neither a path nor a table.
        TableError: the file is not a table, or a row of it cannot be used.
    """
    if isinstance(table, LatencyTable):
        return table
    if not isinstance(table, str | os.PathLike | None):
        raise TypeError(f"table = {shown(table)}: must be the path of a latency table, or a LatencyTable")
    path = data_path(DEFAULT_TABLE) if table is None else Path(table)
    if not path.is_file():
        raise FileNotFoundError(f"table = {str(path)!r}: no such file; give a parquet or CSV latency table")
    return _load(str(path), (_stamp(path), _stamp(profile_path(path))))


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Columns and text metadata of a parquet or CSV file."""
    try:
        if path.suffix.lower() == ".csv":
            data = csv.read_csv(path)
        else:
            data = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        kind = "CSV" if path.suffix.lower() == ".csv" else "parquet"
        raise TableError(
            f"table = {str(path)!r}: not a readable {kind} file (absent, truncated or of another kind): {error}"
        ) from error
    metadata = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in (data.schema.metadata or {}).items()
        if not key.startswith((b"ARROW:", b"pandas"))
    }
    columns = {}
    for name in data.column_names:
        column = data.column(name)
        if name in KEYS or name in METRICS:
            columns[name] = _numeric(name, column)
    return columns, metadata


def _numeric(name: str, column: Any) -> np.ndarray:  # a pyarrow column; pyarrow ships no types
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        first = column[0].as_py() if len(column) else None
        raise TableError(f"column {name}: dtype {kind} (first row {first!r}); must be a number")
    if column.null_count:
        row = int(np.argmax(np.asarray(column.is_null())))
        raise TableError(f"row {row}: {name} is missing; every cell must hold a number")
    return np.asarray(column).astype(np.float64)


def table_from_columns(
    columns: dict[str, Any], metadata: dict[str, str] | None = None, name: str = "table"
) -> LatencyTable:
    """Check columns and arrange them as a dense grid.

    Args:
        columns: name -> sequence of equal length; the keys ``batch_size`` and ``prompt_len_bucket`` and all metrics are
            required, a missing ``spec_length``, ``quant_tier``, ``prefill_disagg`` or ``kv_budget`` locks that knob.
        metadata: text metadata; an engine profile in it (``PROFILE_KEY``, JSON) becomes the table's ``engine``.
        name: what to call the table in messages.

    Raises:
        TableError: naming the first row that is not finite, not positive, outside its range or a duplicate, or the
            first cell of the grid that no row fills.
    """
    needed = [key for key in (*KEYS, *METRICS) if key not in OPTIONAL_KEYS]
    absent = [key for key in needed if key not in columns]
    if absent:
        raise TableError(f"{name}: column {absent[0]} is missing; needed are {', '.join(needed)}")
    data = {key: np.asarray(value, np.float64) for key, value in columns.items() if key in (*KEYS, *METRICS)}
    rows = len(data["batch_size"])
    if rows == 0:
        raise TableError(f"{name}: no rows")
    for key in OPTIONAL_KEYS:
        data.setdefault(key, np.full(rows, float(KNOBS[key].default)))
    for key in KEYS:
        _check_key(key, data[key])
    for metric in METRICS:
        bad = ~(np.isfinite(data[metric]) & (data[metric] > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise TableError(f"row {row}: {metric} = {data[metric][row]}; must be finite and above 0")

    axes = {key: np.unique(data[key]) for key in KEYS}
    shape = tuple(len(axes[key]) for key in KEYS)
    index = np.ravel_multi_index(tuple(np.searchsorted(axes[key], data[key]) for key in KEYS), shape)
    counts = np.bincount(index, minlength=int(np.prod(shape)))
    if (counts > 1).any():
        order = np.argsort(index, kind="stable")
        repeated = order[1:][index[order][1:] == index[order][:-1]]
        row = int(repeated.min())
        first = int(np.argmax(index == index[row]))
        raise TableError(f"row {row}: repeats the keys of row {first} ({_cell(data, row)})")
    if (counts == 0).any():
        place = np.unravel_index(int(np.argmax(counts == 0)), shape)
        cell = {key: axes[key][i : i + 1] for key, i in zip(KEYS, place, strict=True)}
        raise TableError(f"{name}: no row for {_cell(cell, 0)}; every combination of the axes needs one")

    values = np.empty((len(counts), len(METRICS)), np.float32)
    values[index] = np.stack([data[metric] for metric in METRICS], axis=-1)
    nodes = {key: tuple(float(x) for x in axis) for key, axis in axes.items()}
    nodes["prompt_len_bucket"] = tuple(float(PROMPT_LENGTHS[int(i)]) for i in axes["prompt_len_bucket"])
    _check_prefill((metadata or {}).get("prefill_ms", "[]"), len(nodes["prompt_len_bucket"]), name)
    texts = dict(metadata or {})
    profile = texts.pop(PROFILE_KEY, None)
    engine = None if profile is None else EngineProfile.from_json(profile, f"{name}: {PROFILE_KEY}")
    return LatencyTable(nodes, values.reshape(*shape, len(METRICS)), texts, name, engine)


def _check_key(key: str, values: np.ndarray) -> None:
    if key == "prompt_len_bucket":
        good, allowed = np.isin(values, range(len(PROMPT_LENGTHS))), "a whole number from 0 to 7"
    else:
        knob = KNOBS[key]
        allowed = "0 or 1" if knob.kind == "bool" else knob.allowed
        if knob.kind in ("choice", "bool"):
            good = np.isin(values, knob.choices or (0, 1))
        else:
            good = (values >= knob.low - 1e-7) & (values <= knob.high)
            if knob.kind == "int":
                good &= values == np.floor(values)
    if not good.all():
        row = int(np.argmax(~good))
        raise TableError(f"row {row}: {key} = {values[row]}; must be {allowed}")


def _check_prefill(text: str, lengths: int, name: str) -> None:
    try:
        entries = json.loads(text)
        good = isinstance(entries, list) and all(math.isfinite(x) and x >= 0 for x in entries)
    except (ValueError, TypeError):
        good, entries = False, []
    if not good or len(entries) not in (0, lengths):
        raise TableError(
            f"{name}: metadata prefill_ms = {text[:80]}; must be a JSON list of {lengths} numbers of at least 0, one a "
            "prompt length"
        )


def _cell(data: dict[str, np.ndarray], row: int) -> str:
    return ", ".join(f"{key} {data[key][row]:g}" for key in KEYS)
