"""The latency table: its file, its lookup, what it says of one iteration, tables from vLLM's benchmark files."""

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
    "LatencyTable",
    "TableError",
    "data_path",
    "load_table",
    "table_from_columns",
]
