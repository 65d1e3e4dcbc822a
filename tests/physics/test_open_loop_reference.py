"""The fluid step against an engine that runs request by request, iteration by iteration, on the same kernel times.

The tolerances here are the ones that ENVIRONMENT.md and docs/fidelity.md state. ``python -m
tests.test_open_loop_reference`` prints the errors near capacity and those of few long prompts a second, with
``--without`` those of the fluid without ``fluid.crowding``.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

import inferencegym_jax as ig
from inferencegym_jax.models import EngineParams, EngineState
from inferencegym_jax.physics import fluid as open_loop
from inferencegym_jax.physics.first_token import FirstToken
from inferencegym_jax.physics.fluid import serve_second
from inferencegym_jax.table.iterations import engine_grid
from tests.reference.engine import EngineLimits, KernelTimes, serve
from tests.reference.quick_engine import first_tokens

OVERHEAD_MS = 2.0
SLOTS = 128
SECONDS = 90
WARMUP = 25


@functools.cache
def kernels():
    """The shipped table's kernel times as plain functions of (running, tokens), by scipy."""
    table = ig.load_table()
    grid = engine_grid(table)
    shape = (len(table.axes["spec_length"]), len(table.axes["quant_tier"]), *table.values.shape[3:6], 2)
    axes = (table.axes["batch_size"], table.axes["prompt_len_bucket"])
    running, joining = (
        RegularGridInterpolator(axes, rows.reshape(shape)[0, 0, :, -1, :, 0].astype(float))
        for rows in (grid.running, grid.joining)
    )
    half = table.output_length / 2

    @functools.cache
    def decode(n, context):
        return float(running((np.clip(n, 1, 512), np.clip(context - half, 64, 8192))))

    @functools.cache
    def prefill(prompt, n):
        return float(joining((np.clip(n, 1, 512), np.clip(prompt, 64, 8192))))

    def first_token(prompt):
        alone = np.interp(prompt, axes[1], grid.first_token[0].astype(float))
        return float(alone) - prefill(prompt, 1)

    return KernelTimes(lambda n, c: decode(n, round(c, -1)), prefill, OVERHEAD_MS, first_token)


@functools.cache
def fluid(slots=SLOTS):
    grid, one = engine_grid(ig.load_table()), jnp.float32(1)
    params = jax.tree.map(jnp.float32, EngineParams(open_loop=1, overhead_ms=OVERHEAD_MS))
    action = ig.ServeAction(batch_size=slots).as_arrays()

    @jax.jit
    def play(arrivals, prompt, output):
        def body(engine, a):
            second, after = serve_second(grid, engine, action, a, prompt, output, one, one, jnp.float32(1e6), params)
            return after, (second, 0.5 * (engine.concurrency + after.concurrency))

        return jax.lax.scan(body, jax.tree.map(jnp.float32, EngineState()), arrivals)[1]

    return play


def capacity(prompt, output, slots=SLOTS):
    """Requests/s with every slot taken."""
    times = kernels()
    iteration = times.decode(slots, prompt + output / 2) + OVERHEAD_MS
    return 1000 / (output * iteration / slots + times.prefill(prompt, slots))


@functools.cache
def both(prompt, output, load, slots=SLOTS, seconds=SECONDS, seed=0):
    """(fluid's figures, reference's figures) under the same Poisson arrivals."""
    rng = np.random.default_rng(prompt + output + int(100 * load) + 1000 * seed)
    rate = load * capacity(prompt, output, slots)
    times = np.sort(rng.uniform(0, 1000 * seconds, rng.poisson(rate * seconds)))
    counts = np.bincount((times / 1000).astype(int), minlength=seconds)
    count = len(times)
    result = serve(times.tolist(), [prompt] * count, [output] * count, kernels(), EngineLimits(slots, 2048))
    second, running = fluid(slots)(jnp.asarray(counts, jnp.float32), jnp.float32(prompt), jnp.float32(output))
    second = jax.tree.map(lambda x: np.asarray(x, np.float64)[WARMUP:], second)
    weights, start, end = counts[WARMUP:], 1000 * WARMUP, 1000 * seconds
    ttft = np.array([r.first_token - r.arrival for r in result.requests if start <= r.arrival < end])
    return (
        {
            "tpot": (second.tpot_ms * second.tokens).sum() / second.tokens.sum(),
            "ttft": (second.ttft_mean_ms * weights).sum() / weights.sum(),
            "ttft_p99": float(np.average(second.ttft_p99_ms, weights=weights)),
            "tps": second.tokens.mean(),
            "running": float(np.asarray(running)[WARMUP:].mean()),
        },
        {
            "tpot": result.tpot(start),
            "ttft": ttft.mean(),
            "ttft_p99": np.quantile(ttft, 0.99),
            "tps": result.tokens_per_sec(start, end),
            "running": result.concurrency(start, end),
        },
    )


SHAPES = [(64, 32), (64, 128), (512, 32), (512, 128), (512, 256), (2048, 128)]


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("prompt", "output"), SHAPES)
def test_below_saturation(prompt, output, load):
    ours, reference = both(prompt, output, load)
    error = {name: ours[name] / reference[name] - 1 for name in ours}
    assert abs(error["tpot"]) < 0.06, error
    assert abs(error["ttft"]) < 0.12, error
    assert abs(error["tps"]) < 0.05, error
    assert abs(ours["running"] - reference["running"]) < (0.12 if prompt > 1024 else 0.05) * reference["running"] + 1
    assert -0.40 < error["ttft_p99"] < 0.65, error


@pytest.mark.parametrize(("prompt", "load"), [(4096, 0.2), (4096, 0.6), (8192, 0.2), (8192, 0.4)])
def test_few_long_prompts_a_second(prompt, load):
    error, _ = over_seeds(prompt, 64, load, SLOTS, 150, 2)
    assert abs(error[0]) < 0.12, error
    assert -0.40 < error[1] < 0.65, error


def over_seeds(prompt, output, load, slots, seconds, seeds):
    """Mean and 99th percentile of TTFT, each the mean over seeds: errors of the fluid, and the reference's own, ms."""
    pairs = [both(prompt, output, load, slots, seconds, seed) for seed in range(seeds)]
    ours, reference = (
        np.array([[figures[name] for name in ("ttft", "ttft_p99")] for figures in side]).mean(axis=0)
        for side in zip(*pairs, strict=True)
    )
    return ours / reference - 1, reference


@pytest.mark.parametrize(
    ("prompt", "output", "load", "slots"),
    [(64, 128, 0.95, 128), (512, 128, 0.9, 128), (512, 256, 0.85, 20), (512, 64, 0.95, 20), (2048, 256, 0.85, 20)],
)
def test_near_capacity_chance_fills_the_slots(prompt, output, load, slots):
    error, _ = over_seeds(prompt, output, load, slots, 90 if slots > 100 else 150, 2)
    assert abs(error[0]) < 0.20, error
    assert abs(error[1]) < 0.65, error


@pytest.mark.parametrize(("prompt", "output"), [(64, 128), (512, 128), (512, 32)])
def test_over_capacity(prompt, output):
    ours, reference = both(prompt, output, 1.2)
    assert ours["tpot"] == pytest.approx(reference["tpot"], rel=0.08)
    assert ours["tps"] == pytest.approx(reference["tps"], rel=0.05)
    assert ours["running"] == pytest.approx(reference["running"], rel=0.05)
    assert ours["ttft"] == pytest.approx(reference["ttft"], rel=0.25)


def test_the_reference_serves_one_request_as_one_would_by_hand():
    times = KernelTimes(lambda n, context: 10.0, lambda prompt, n: 20.0, 1.0, lambda prompt: 5.0)
    result = serve([100.0], [3000], [4], times, EngineLimits(8, 2048))
    request = result.requests[0]
    # two chunks: (11 + 20 x 2048 / 3000) and (11 + 20 x 952 / 3000), then three iterations of 11 ms
    assert request.first_token == pytest.approx(100 + 22 + 20 + 5)
    assert request.finished == pytest.approx(request.first_token + 33)


def test_the_reference_admits_first_come_first_served_within_slots_and_pool():
    times = KernelTimes(lambda n, context: 10.0, lambda prompt, n: 1.0)
    result = serve([0.0, 0.0, 0.0], [100, 900, 100], [10, 10, 10], times, EngineLimits(2, 2048, kv_tokens=1000))
    first, second, third = result.requests
    assert first.first_token < second.first_token < third.first_token
    assert second.first_token > first.finished  # the pool has no room for both
    assert third.first_token > second.finished  # and nobody overtakes


@pytest.mark.parametrize(
    "limits", [EngineLimits(), EngineLimits(16, 512), EngineLimits(128, 2048, kv_tokens=12_000)], ids=str
)
def test_the_quick_engine_is_the_reference_request_by_request(limits):
    rng = np.random.default_rng(5)
    arrivals = np.sort(rng.uniform(0, 20_000, 250)).tolist()
    prompts = np.clip(rng.lognormal(6.5, 1.2, 250), 1, 8000).astype(int).tolist()
    outputs = np.clip(rng.lognormal(3.0, 1.6, 250), 1, 400).astype(int).tolist()
    slow = serve(arrivals, prompts, outputs, kernels(), limits)
    np.testing.assert_allclose(
        first_tokens(arrivals, prompts, outputs, kernels(), limits), [r.first_token for r in slow.requests], rtol=1e-9
    )
    assert min(outputs) == 1 and slow.ttft().max() > 2 * slow.ttft().min()


if __name__ == "__main__":
    if "--without" in sys.argv:
        open_loop.crowding = lambda flow, inflow, outlook: FirstToken(*[jnp.zeros_like(flow.busy)] * 4)
    near = (0.8, 0.9, 0.95, 1.0)
    for many, length, seeds, loads, shapes in (
        (128, 90, 4, near, [(64, 128), (512, 32), (512, 128), (2048, 128)]),
        (20, 240, 4, near, [(512, 64), (512, 256), (2048, 256)]),
        (128, 150, 2, (0.2, 0.4, 0.6), [(4096, 64), (8192, 64)]),
    ):
        for tokens_in, tokens_out in shapes:
            for share in loads:
                wrong, true = over_seeds(tokens_in, tokens_out, share, many, length, seeds)
                print(
                    f"{many} slots, {tokens_in} in, {tokens_out} out, load {share}: mean TTFT {true[0]:.0f} ms,"
                    f" error {wrong[0]:+.0%}; p99 {true[1]:.0f} ms, error {wrong[1]:+.0%}",
                    flush=True,
                )
