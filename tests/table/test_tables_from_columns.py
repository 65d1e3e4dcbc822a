"""A table from a data frame or a mapping of arrays: the same as from the file, and errors that name column and row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import inferencegym_jax as ig
from inferencegym_jax.table.latency_table import KEYS, METRICS, PROFILE_KEY, data_path

PATH = data_path("traces_llama3_8b.parquet")


class Frame:
    """What the library asks of a data frame, and no more."""

    def __init__(self, data: dict[str, Any]):
        self.data, self.columns = data, list(data)

    def __getitem__(self, name: str) -> Any:
        return self.data[name]


@pytest.fixture(scope="module")
def shipped() -> dict[str, np.ndarray]:
    table = parquet.read_table(PATH)
    return {name: np.asarray(table[name]) for name in table.column_names}


def small(**changes: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {"batch_size": [1, 8], "prompt_len_bucket": [0, 0]}
    return columns | {metric: [1.0, 2.0] for metric in METRICS} | changes


def test_a_mapping_and_data_frames_give_the_table_of_the_file(shipped: dict[str, np.ndarray]) -> None:
    arrow, loaded = parquet.read_table(PATH), ig.load_table()
    assert loaded.engine is not None
    metadata = {**loaded.metadata, PROFILE_KEY: json.loads(loaded.engine.to_json())}
    frames = [shipped, Frame(shipped), arrow]
    pandas = pytest.importorskip("pandas") if _has_pandas() else None
    frames += [] if pandas is None else [pandas.DataFrame(shipped)]
    for frame in frames:
        table = ig.LatencyTable.from_columns(frame, metadata, name="mine")
        assert table == loaded and hash(table) == hash(loaded) and table.name == "mine"


def _has_pandas() -> bool:
    import importlib.util

    return importlib.util.find_spec("pandas") is not None


def test_metadata_may_be_numbers_and_missing_knobs_are_locked() -> None:
    table = ig.LatencyTable.from_columns(
        small(note=["a", "b"]), {"reference_output_length": 64, "engine_overhead_ms": 1.5, "model": "mine"}
    )
    assert (table.output_length, table.engine_overhead_ms, table.metadata["model"]) == (64.0, 1.5, "mine")
    assert set(table.locked_knobs) == {"kv_budget", "spec_length", "prefill_disagg", "quant_tier"}
    assert json.loads(table.metadata["reference_output_length"]) == 64
    assert {*KEYS} == {*table.axes}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "table: column batch_size is missing; needed are"),
        (small(tps=[1.0]), "columns of different lengths: .*tps has 1"),
        (small(tps=[1.0, None]), "table: row 1: tps is missing; every cell must hold a number"),
        (small(tps=[1.0, "fast"]), "table: row .*tps = .*; must be a number"),
        (small(tps=[1.0, float("nan")]), "row 1: tps = nan; must be finite and above 0"),
        (small(tps=[[1.0, 2.0]]), r"column tps: shape \(1, 2\); must be a vector"),
        (small(batch_size=[1, 1]), "row 1: repeats the keys of row 0"),
        (small(batch_size=[1, 513]), "row 1: batch_size = 513"),
        (small(batch_size=[1, True]), "repeats"),
    ],
)
def test_columns_that_are_no_table_are_named(columns: Any, said: str) -> None:
    with pytest.raises(ig.TableError, match=said):
        ig.LatencyTable.from_columns(columns)


@pytest.mark.parametrize("columns", [3, [1, 2], "batch_size", None])
def test_what_is_neither_mapping_nor_frame_is_refused(columns: Any) -> None:
    with pytest.raises(TypeError, match="must be a mapping of names to sequences, or a data frame"):
        ig.LatencyTable.from_columns(columns)


def test_polars_and_pandas_are_not_imported() -> None:
    import subprocess
    import sys

    program = (
        "import sys, inferencegym_jax as ig;"
        "ig.LatencyTable.from_columns(dict(batch_size=[1], prompt_len_bucket=[0], ttft_p50_ms=[1], ttft_p99_ms=[1],"
        " tpot_ms=[1], tps=[1], gpu_mem_gb=[1], cost_per_1k=[1]));"
        "sys.exit(any(name in sys.modules for name in ('pandas', 'polars')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_arrow_table_with_a_missing_cell_is_refused() -> None:
    frame = pa.table(small(tps=pa.array([1.0, None])))
    with pytest.raises(ig.TableError, match="tps"):
        ig.LatencyTable.from_columns(frame)
