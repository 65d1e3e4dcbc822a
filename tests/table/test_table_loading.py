"""A table of one's own drops in; one that cannot be used is refused with the first offending row named."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import inferencegym_jax as ig
from inferencegym_jax.table.latency_table import METRICS, load_table, table_from_columns


def small_columns(knobs=True):
    keys = {
        "batch_size": [1, 64, 512],
        "prompt_len_bucket": [0, 4, 7],
    }
    if knobs:
        keys |= {"kv_budget": [0.1, 1.0], "spec_length": [0, 4], "quant_tier": [0, 1, 2], "prefill_disagg": [0, 1]}
    rows = list(itertools.product(*keys.values()))
    columns = {name: np.array([row[i] for row in rows], float) for i, name in enumerate(keys)}
    batch, prompt = columns["batch_size"], 64 * 2 ** columns["prompt_len_bucket"]
    tpot = 10 + 0.05 * batch
    return columns | {
        "ttft_p50_ms": 20 + 0.1 * prompt,
        "ttft_p99_ms": 40 + 0.2 * prompt,
        "tpot_ms": tpot,
        "tps": 1000 * batch / tpot,
        "gpu_mem_gb": 18 + batch * 0.01,
        "cost_per_1k": tpot / batch,
    }


def write(columns, path):
    table = pa.table(columns)
    csv.write_csv(table, path) if path.suffix == ".csv" else parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_parquet_and_csv_give_the_same_table(tmp_path, suffix):
    columns = small_columns()
    loaded = load_table(write(columns, tmp_path / f"mine{suffix}"))
    assert loaded == table_from_columns(columns)
    assert loaded.axes["prompt_len_bucket"] == (64.0, 1024.0, 8192.0)


def test_rows_may_come_in_any_order():
    columns = small_columns()
    order = np.random.default_rng(0).permutation(len(columns["tps"]))
    assert table_from_columns({k: v[order] for k, v in columns.items()}) == table_from_columns(columns)


def test_a_table_without_knobs_locks_them_and_plays(tmp_path):
    path = write(small_columns(knobs=False), tmp_path / "mine.csv")
    env, params = ig.make(3, table=path)
    assert set(env.table.locked_knobs) == {"kv_budget", "spec_length", "quant_tier", "prefill_disagg"}
    assert set(env.action_space(params).locked) == set(env.table.locked_knobs)
    _, state = env.reset_seed(0, params)
    turned = env.step(
        None, state, ig.ServeAction(prefill_disagg=True, quant_tier=2, spec_length=8, kv_budget=0.2), params
    )
    left = env.step(None, state, ig.ServeAction(), params)
    assert float(turned[2]) == float(left[2])
    assert float(params.optimal_tps) > 0 and np.isfinite(params.cost_normaliser)


def test_a_discrete_value_that_the_table_lacks_is_an_error_outside_jit(tmp_path):
    env, params = ig.make(2, table=write(small_columns(), tmp_path / "mine.parquet"))
    _, state = env.reset_seed(0, params)
    with pytest.raises(ValueError, match=r"spec_length = 2.*table has 0, 4"):
        env.step(None, state, ig.ServeAction(spec_length=2), params)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_a_value_that_is_not_finite_and_positive_names_its_row(metric, value):
    columns = small_columns()
    columns[metric][5] = value
    columns[metric][9] = value
    with pytest.raises(ig.TableError, match=rf"row 5: {metric} = {value}; must be finite and above 0"):
        table_from_columns(columns)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("batch_size", 513, "from 1 to 512"),
        ("batch_size", 2.5, "whole number"),
        ("kv_budget", 0.0, "from 0.1 to 1"),
        ("kv_budget", np.nan, "from 0.1 to 1"),
        ("spec_length", 3, "one of 0, 1, 2, 4, 8"),
        ("quant_tier", 3, "one of 0, 1, 2"),
        ("prefill_disagg", 2, "0 or 1"),
        ("prompt_len_bucket", 8, "from 0 to 7"),
    ],
)
def test_a_key_outside_its_range_names_row_value_and_range(key, value, allowed):
    columns = small_columns()
    columns[key][3] = value
    with pytest.raises(ig.TableError, match=rf"row 3: {key} = {value}.*{allowed}"):
        table_from_columns(columns)


def test_a_duplicate_names_both_rows():
    columns = {k: np.append(v, v[7]) for k, v in small_columns().items()}
    with pytest.raises(ig.TableError, match=rf"row {len(columns['tps']) - 1}: repeats the keys of row 7"):
        table_from_columns(columns)


def test_a_missing_cell_is_named():
    columns = {k: np.delete(v, 4) for k, v in small_columns().items()}
    gone = {k: v[4] for k, v in small_columns().items()}
    with pytest.raises(ig.TableError, match=rf"no row for .*batch_size {gone['batch_size']:g}.*every combination"):
        table_from_columns(columns)


def test_a_missing_column_is_named():
    columns = small_columns()
    del columns["tpot_ms"]
    with pytest.raises(ig.TableError, match="column tpot_ms is missing"):
        table_from_columns(columns)


def test_text_in_a_numeric_column_is_named(tmp_path):
    columns = {k: list(v) for k, v in small_columns().items()}
    columns["tps"] = [str(x) for x in columns["tps"]]
    with pytest.raises(ig.TableError, match="column tps: dtype string"):
        load_table(write(columns, tmp_path / "mine.parquet"))


def test_a_null_names_its_row(tmp_path):
    columns = {k: list(v) for k, v in small_columns().items()}
    columns["tps"][6] = None
    with pytest.raises(ig.TableError, match="row 6: tps is missing"):
        load_table(write(columns, tmp_path / "mine.parquet"))


def test_an_absent_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        ig.make(1, table=tmp_path / "nowhere.parquet")


def test_a_truncated_file_and_one_of_another_kind_say_so(tmp_path):
    whole = write(small_columns(), tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.parquet").write_text("hello\n")
    (tmp_path / "empty.parquet").write_bytes(b"")
    for name in ("cut", "text", "empty"):
        with pytest.raises(ig.TableError, match="not a readable parquet file"):
            load_table(tmp_path / f"{name}.parquet")


def test_a_rewritten_file_is_read_again(tmp_path):
    path = tmp_path / "mine.parquet"
    first = load_table(write(small_columns(), path))
    columns = small_columns()
    columns["tps"] *= 2
    columns["extra"] = columns["tps"]
    second = load_table(write(columns, path))
    assert first != second
