"""The latency table: its file, its lookup, what it says of one iteration, tables from vLLM's benchmark files."""

from inferencegym_jax.table.derived_profile import profile_of
from inferencegym_jax.table.engine_profile import EngineProfile
from inferencegym_jax.table.latency_table import (
    CONTINUOUS,
    DISCRETE,
    KEYS,
    METRICS,
    LatencyTable,
    TableError,
    data_path,
    load_table,
    table_from_columns,
)

__all__ = [
    "CONTINUOUS",
    "DISCRETE",
    "KEYS",
    "METRICS",
    "EngineProfile",
    "LatencyTable",
    "TableError",
    "data_path",
    "profile_of",
    "load_table",
    "table_from_columns",
]
