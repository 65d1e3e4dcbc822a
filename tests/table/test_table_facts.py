"""Facts that the shipped latency table must satisfy (ENVIRONMENT.md, sections 6 and 12)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TABLE = Path(__file__).resolve().parents[2] / "data" / "traces_llama3_8b.parquet"
AXES = {
    "batch_size": [1, 4, 8, 16, 32, 64, 128, 256, 512],
    "kv_budget": [0.1, 0.25, 0.5, 0.75, 1.0],
    "spec_length": [0, 1, 2, 4, 8],
    "quant_tier": [0, 1, 2],
    "prefill_disagg": [0, 1],
    "prompt_len_bucket": list(range(8)),
}
METRICS = ["ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "tps", "gpu_mem_gb", "cost_per_1k"]
BATCH, BUDGET, SPEC, TIER, DISAGG, PROMPT = range(6)
INT8, INT4 = 1, 2


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pq.read_table(TABLE)


@pytest.fixture(scope="module")
def grid(table: pa.Table) -> dict[str, np.ndarray]:
    """Each metric as an array over the six axes, in the order of AXES."""
    shape = [len(v) for v in AXES.values()]
    return {name: table[name].to_numpy().astype(np.float64).reshape(shape) for name in METRICS}


def test_columns_rows_and_order(table: pa.Table) -> None:
    assert table.column_names == [*AXES, *METRICS]
    expected = np.stack(np.meshgrid(*AXES.values(), indexing="ij"), axis=-1).reshape(-1, 6)
    assert table.num_rows == len(expected) == 10_800
    np.testing.assert_array_equal(np.column_stack([table[name].to_numpy() for name in AXES]), expected)


def test_values_are_positive_and_finite(grid: dict[str, np.ndarray]) -> None:
    for name, values in grid.items():
        assert np.isfinite(values).all() and (values > 0).all(), name


def test_file_is_small_snappy_parquet() -> None:
    assert TABLE.stat().st_size < 1_000_000
    row_group = pq.ParquetFile(TABLE).metadata.row_group(0)
    assert {row_group.column(i).compression for i in range(row_group.num_columns)} == {"SNAPPY"}


def test_metadata_names_provenance(table: pa.Table) -> None:
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    assert metadata["licence"] == "Apache-2.0"
    assert "aiconfigurator-core 0.12.0" in metadata["source"]
    assert metadata["version"] == "0.12.0"
    assert float(metadata["reference_acceptance"]) == 0.7
    assert 96 <= float(metadata["reference_output_length"]) <= 160
    assert float(metadata["cost_scale"]) > 0
    assert metadata["kv_bytes_per_token"] == "131072"
    for name in ("model", "system", "engine", "weights", "created_by"):
        assert metadata[name]


def test_tpot_never_falls_as_batch_grows(grid: dict[str, np.ndarray]) -> None:
    assert (np.diff(grid["tpot_ms"], axis=BATCH) >= 0).all()


def _fall_before_knee(tps: np.ndarray) -> float:
    """Largest relative fall of tps from one batch to the next, before the batch of the highest tps."""
    falls = np.diff(tps, axis=0) / tps[:-1]
    before = np.arange(len(tps) - 1).reshape(-1, *[1] * (tps.ndim - 1)) < tps.argmax(axis=0)
    return float(np.where(before, -falls, 0).max(initial=0))


def test_tps_never_falls_to_the_knee(grid: dict[str, np.ndarray]) -> None:
    """Exactly for 16 bits, the whole cache and no speculation; to 0.1 % for the other tiers and budgets down to 0.25.

    Measured products take a step at 128 to 160 tokens, INT4's the highest. With speculation (B x (k + 1) tokens) it
    leaves a fall of up to 12 % between two batches of the grid, and of up to 2 % with a cache of a tenth.
    """
    tps = grid["tps"]
    assert _fall_before_knee(tps[:, -1, 0, 0]) == 0
    assert _fall_before_knee(tps[:, 1:, 0]) < 0.001
    assert _fall_before_knee(tps[:, :, 0]) < 0.02
    assert _fall_before_knee(tps) < 0.12


def test_knee_is_at_a_large_batch_for_short_prompts(grid: dict[str, np.ndarray]) -> None:
    tps = grid["tps"][:, -1, 0, 0, 0, 0]
    assert tps.argmax() >= AXES["batch_size"].index(256)
    assert tps.max() > 2.5 * tps[AXES["batch_size"].index(32)]


@pytest.mark.parametrize("name", ["ttft_p50_ms", "ttft_p99_ms"])
def test_ttft_grows_with_the_prompt(grid: dict[str, np.ndarray], name: str) -> None:
    assert (np.diff(grid[name], axis=PROMPT) > 0).all()


@pytest.mark.parametrize("name", ["ttft_p50_ms", "ttft_p99_ms"])
def test_ttft_never_falls_as_the_budget_shrinks(grid: dict[str, np.ndarray], name: str) -> None:
    """A saturated prefill queue must not reward eviction."""
    assert (np.diff(grid[name], axis=BUDGET) <= 0).all()


@pytest.mark.parametrize("name", ["ttft_p50_ms", "ttft_p99_ms"])
def test_speculation_leaves_ttft_alone(grid: dict[str, np.ndarray], name: str) -> None:
    assert (grid[name] == np.take(grid[name], [0], axis=SPEC)).all()


def test_p99_is_at_least_p50(grid: dict[str, np.ndarray]) -> None:
    assert (grid["ttft_p99_ms"] >= grid["ttft_p50_ms"]).all()
    busy = np.take(grid["ttft_p99_ms"] / grid["ttft_p50_ms"], range(3, 9), axis=BATCH)
    assert (busy[..., 3:] > 1.2).all(), "a queue of prompts of 512 tokens and more has a tail"


@pytest.mark.parametrize("axis", [BATCH, BUDGET, PROMPT])
def test_memory_grows(grid: dict[str, np.ndarray], axis: int) -> None:
    assert (np.diff(grid["gpu_mem_gb"], axis=axis) > 0).all()


def test_quantised_weights_use_less_memory(grid: dict[str, np.ndarray]) -> None:
    assert (np.diff(grid["gpu_mem_gb"], axis=TIER) < 0).all()


def test_draft_model_uses_memory(grid: dict[str, np.ndarray]) -> None:
    assert (np.diff(grid["gpu_mem_gb"], axis=SPEC) > 0).all()


def test_batch_512_with_the_whole_cache_is_out_of_memory(grid: dict[str, np.ndarray]) -> None:
    assert (grid["gpu_mem_gb"][-1, -1] > 40).all()


def test_baseline_fits_for_short_prompts_and_not_for_8192(grid: dict[str, np.ndarray]) -> None:
    memory = grid["gpu_mem_gb"][AXES["batch_size"].index(32), -1, 0]
    assert (memory[:, :, :5] < 36).all()
    assert (memory[..., -1] > 40).all()


def test_speculation_pays_at_small_batches_only(grid: dict[str, np.ndarray]) -> None:
    gain = grid["tps"][:, :, 1:] / grid["tps"][:, :, :1]
    assert (gain[:3] > 1).all(), "batch 1 to 8"
    assert (gain[7:, :, 2:] < 1).all(), "spec_length 4 and 8 at batch 256 and up"
    assert (gain[0, -1, :, 0, 0, 0] > 1.3).all(), "by a third or more for one short request"


def test_int4_beats_int8_on_one_request(grid: dict[str, np.ndarray]) -> None:
    """For prompts up to 2,048 tokens; beyond, its slower prefill outweighs its faster decode."""
    tps, tpot = (np.take(grid[n][0], 0, axis=SPEC - 1) for n in ("tps", "tpot_ms"))
    assert (tps[:, INT4, :, :6] > tps[:, INT8, :, :6]).all()
    assert (tpot[:, INT4, 1] < tpot[:, INT8, 1]).all(), "disaggregated: no prefill in the decode loop"


def test_int4_loses_to_int8_at_batch_256(grid: dict[str, np.ndarray]) -> None:
    assert (grid["tps"][7, :, :, INT4] < grid["tps"][7, :, :, INT8]).all()


def test_eviction_costs_little_at_a_half_and_much_at_a_tenth(grid: dict[str, np.ndarray]) -> None:
    """Against the whole cache, at batch 32 to 256, colocated, no speculation."""
    tpot = grid["tpot_ms"][4:8, :, 0, :, 0]
    whole = tpot[:, -1]
    assert (tpot[:, 2] < 1.10 * whole).all()
    assert (tpot[:, 0, :, 0] > 1.4 * whole[..., 0]).all()


def test_a_smaller_budget_reads_less_on_long_prompts(grid: dict[str, np.ndarray]) -> None:
    tpot = grid["tpot_ms"][4, :, 0, 0, 1, -1]
    assert tpot[2] < 0.85 * tpot[4]


def test_disaggregation_has_a_faster_decode_and_two_gpus_on_the_bill(grid: dict[str, np.ndarray]) -> None:
    assert (np.diff(grid["tpot_ms"], axis=DISAGG) < 0).all()
    gpu_seconds = grid["cost_per_1k"] * grid["tps"]
    np.testing.assert_allclose(gpu_seconds[..., 1, :], 2 * gpu_seconds[..., 0, :], rtol=1e-5)


def test_cost_is_scale_times_gpu_seconds(table: pa.Table, grid: dict[str, np.ndarray]) -> None:
    scale = float((table.schema.metadata or {})[b"cost_scale"])
    one_gpu = np.take(grid["cost_per_1k"] * grid["tps"], 0, axis=DISAGG)
    np.testing.assert_allclose(one_gpu, scale * 1000, rtol=1e-5)


def test_throughput_is_that_of_the_prototype(table: pa.Table, grid: dict[str, np.ndarray]) -> None:
    """README: 2,623 tokens/s at batch 32 and 8,322 at 256 at prompt 96, between buckets 64 and 128."""
    tps = grid["tps"][:, -1, 0, 0, 0]
    if (table.schema.metadata or {})[b"reference_output_length"] == b"128":
        assert tps[4, 1] < 2623 < tps[4, 0]
        assert tps[7, 1] < 8322 < tps[7, 0]
