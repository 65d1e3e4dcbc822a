"""What the table is made of: kernels exact where measured, step times, and each modelled function on its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import serving_model, step_time
from data.kernels import AttentionGrid, GemmGrid, KernelDataError, Roofline, choose_heads
from data.serving_model import Knobs, Load, serve
from data.step_time import StepTimes, padding_envelope

needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="aiconfigurator-core is not installed"
)


@pytest.fixture(scope="module")
def a100() -> StepTimes:
    return StepTimes.load("a100_sxm", "llama3-8b")


# ----------------------------------------------------------------------------------------- interpolation


def small_gemm() -> GemmGrid:
    m, n, k = (x.ravel() for x in np.meshgrid([1, 8, 64], [64, 256], [64, 512], indexing="ij"))
    return GemmGrid(m, n, k, 0.01 + 1e-6 * m * n * k, Roofline(1e9, 1e11), "bfloat16")


def test_gemm_is_exact_at_points_and_multilinear_between() -> None:
    grid = small_gemm()
    assert grid(8, 256, 512) == pytest.approx(0.01 + 1e-6 * 8 * 256 * 512, rel=1e-12)
    assert grid(20, 100, 300) == pytest.approx(0.01 + 1e-6 * 20 * 100 * 300, rel=1e-12)


def test_gemm_beyond_the_range_scales_with_what_binds() -> None:
    bytes_bound = small_gemm()
    bytes_bound.roofline = Roofline(bandwidth=1.0, peak=1e30)
    moved = [2 * n * 512 + 2 * 1 * (n + 512) for n in (256, 1024)]
    assert bytes_bound(1, 1024, 512) == pytest.approx(bytes_bound(1, 256, 512) * moved[1] / moved[0])
    operations_bound = small_gemm()
    operations_bound.roofline = Roofline(bandwidth=1e30, peak=1.0)
    assert operations_bound(640, 256, 512) == pytest.approx(10 * operations_bound(64, 256, 512))


def test_gemm_fills_an_unmeasured_corner() -> None:
    m, n, k = (x.ravel()[:-1] for x in np.meshgrid([1, 8], [64, 256], [64, 512], indexing="ij"))
    grid = GemmGrid(m, n, k, np.ones(len(m)), Roofline(1e9, 1e11), "bfloat16")
    assert np.isfinite(grid.latency).all()


def test_attention_is_exact_at_points_linear_between_and_scaled_beyond() -> None:
    points = {(b, c): 0.01 + b * c * 1e-4 for b in (1, 4) for c in (16, 64)}
    decode, prefill = AttentionGrid(points, decode=True), AttentionGrid(points, decode=False)
    for (b, c), ms in points.items():
        assert decode(b, c) == pytest.approx(ms, rel=1e-12)
    assert decode(2, 40) == pytest.approx(0.01 + 2 * 40 * 1e-4)
    assert decode(4, 128) == pytest.approx(2 * points[4, 64])
    assert decode(8, 64) == pytest.approx(2 * points[4, 64])
    assert prefill(1, 128) == pytest.approx(4 * points[1, 64])


def test_head_layouts_that_were_not_measured() -> None:
    measured = {(8, 8), (24, 4), (32, 4), (32, 8)}
    assert choose_heads(measured, 32, 8) == (32, 8, 1)
    assert choose_heads(measured, 28, 4) == (32, 4, 1)
    assert choose_heads(measured, 32, 32) == (8, 8, 4)
    with pytest.raises(KernelDataError, match="not measured"):
        choose_heads({(8, 8)}, 7, 7)


def test_padding_envelope_is_the_cheapest_pass_that_holds_the_tokens() -> None:
    np.testing.assert_array_equal(padding_envelope(np.array([3.0, 5.0, 4.0, 9.0, 8.0])), [3, 4, 4, 8, 8])


@needs_kernels
def test_measured_points_are_returned_exactly(a100: StepTimes) -> None:
    grid = a100.kernels.gemm("bfloat16")
    rows = pq.read_table(a100.kernels.file("gemm", "gemm")).slice(0, 9000).to_pylist()[::611]
    assert len(rows) > 10
    for row in rows:
        assert grid(row["m"], row["n"], row["k"]) == pytest.approx(row["latency"], rel=1e-12)
    attention = a100.kernels.attention("generation", 32, 8, 128)
    path = a100.kernels.file("attention", "generation_attention")
    rows = pq.read_table(path, filters=[("num_heads", "=", 32), ("num_key_value_heads", "=", 8)]).to_pylist()
    for row in rows:
        assert attention(row["batch_size"], row["isl"] + row["step"]) == pytest.approx(row["latency"], rel=1e-12)


# -------------------------------------------------------------------------------------------- step times


@needs_kernels
def test_layers_take_what_the_readme_sums_to(a100: StepTimes) -> None:
    """Within 5 %: the padding envelope takes up to 4 % off the measured bumps at one token."""
    sums = {
        1: (9.7, 5.1, 4.3),
        32: (9.9, 5.7, 6.0),
        128: (11.6, 7.7, 10.8),
        512: (29.7, 18.8, 32.5),
        2048: (106, 60, 116),
    }
    for tokens, expected in sums.items():
        found = [a100.layers_ms(tokens, tier) for tier in step_time.TIERS]
        np.testing.assert_allclose(found, expected, rtol=0.05)


@needs_kernels
def test_throughput_of_the_readme(a100: StepTimes) -> None:
    expected = {32: 2623, 128: 6082, 256: 8322, 384: 7828, 512: 8380}
    for batch, tps in expected.items():
        assert serve(a100, Knobs(batch, 96), Load(128)).tps == pytest.approx(tps, rel=0.04)


@needs_kernels
def test_step_times_are_monotone(a100: StepTimes) -> None:
    batches = range(1, 600, 7)
    for tier in step_time.TIERS:
        decode = [a100.decode_ms(b, 1000, tier) for b in batches]
        prefill = [a100.prefill_ms(p, 32, tier) for p in range(16, 9000, 97)]
        assert (np.diff(decode) >= 0).all() and (np.diff(prefill) > 0).all()


@needs_kernels
def test_prefill_rides_along_when_short_and_stands_alone_when_long(a100: StepTimes) -> None:
    assert a100.prefill_ms(64, 32) < 0.3 * a100.prefill_ms(64, 0)
    assert a100.prefill_ms(4096, 32) == pytest.approx(a100.prefill_ms(4096, 0), rel=0.01)


@needs_kernels
@pytest.mark.parametrize("system", ["a100_sxm", "h100_sxm", "h200_sxm", "l40s"])
@pytest.mark.parametrize("model", ["llama3-8b", "llama2-7b", "qwen2.5-7b", "mistral-nemo-12b"])
def test_every_system_serves_every_model(system: str, model: str) -> None:
    """No faster than reading the weights once at the card's bandwidth, and not ten times slower."""
    times = StepTimes.load(system, model)
    for tier in step_time.TIERS:
        served = serve(times, Knobs(8, 512, tier=tier), Load())
        floor = times.arch.weight_bytes(tier) / (step_time.systems()[system]["bandwidth_gb_s"] * 1e6)
        assert 0.8 * floor < served.tpot_ms < 10 * floor


def test_architecture_of_llama_3() -> None:
    arch = step_time.Architecture.named("llama3-8b")
    assert arch.layer_products == ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    assert arch.kv_bytes_per_token == 131_072
    assert arch.weight_bytes("FP16") / 1e9 == pytest.approx(16.06, abs=0.01)
    assert step_time.Architecture.named("llama2-7b").kv_bytes_per_token == 524_288


# ---------------------------------------------------------------------------------- modelled, not measured


def test_lost_attention_mass_is_nothing_whole_little_at_half_and_steep_at_a_tenth() -> None:
    lost = [serving_model.lost_attention_mass(b) for b in (1.0, 0.5, 0.25, 0.1)]
    assert lost[0] == 0 and lost[1] < 0.01 and lost[2] < 0.1 and 0.3 < lost[3] < 0.5


def test_tokens_per_verification_is_the_mean_of_a_simulated_draft() -> None:
    rng = np.random.default_rng(0)
    accepted = np.cumprod(rng.random((200_000, 4)) < 0.7, axis=1).sum(axis=1)
    assert serving_model.tokens_per_verification(4, 0.7) == pytest.approx(1 + accepted.mean(), rel=0.01)
    assert serving_model.tokens_per_verification(4, 1.0) == 5


def test_queue_wait_has_the_median_and_tail_of_a_simulated_queue() -> None:
    """Lindley's recursion for M/D/1 at 90 % utilisation."""
    rng = np.random.default_rng(0)
    gaps, waits, wait = rng.exponential(1 / 0.9, 400_000), [], 0.0
    for gap in gaps:
        wait = max(0.0, wait + 1.0 - gap)
        waits.append(wait)
    for quantile in (0.5, 0.99):
        expected = np.quantile(waits, quantile)
        assert serving_model.queue_wait_ms(quantile, 0.9, 1.0, 512) == pytest.approx(expected, rel=0.12)
    assert serving_model.queue_wait_ms(0.99, 0.9, 1.0, 1) == 0


def test_closed_loop_utilisation_solves_littles_law() -> None:
    for batch, service, elsewhere in [(1, 5.0, 900.0), (32, 49.0, 1700.0), (512, 480.0, 30_000.0)]:
        rho = serving_model.closed_loop_utilisation(batch, service, elsewhere)
        assert 0 < rho < 1
        assert batch * service / rho == pytest.approx(elsewhere + rho * service / (2 * (1 - rho)))
