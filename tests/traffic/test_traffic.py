"""Fitted traffic and replay: the figures of the fit come out of the draws, and any second can be drawn alone."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import inferencegym_jax as ig
from inferencegym_jax.episodes.static_search import follow
from inferencegym_jax.models import EngineParams
from inferencegym_jax.numerics.poisson import poisson_count
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.tasks import NOT_NORMALISED, engine_params, make_params
from inferencegym_jax.traffic import fitted as traffic

TASKS = ("azure-conversation", "mooncake-conversation")


def draws(name, seeds=400, steps=200):
    params = engine_params(ig.get_task(name), ig.load_table())
    one = jax.vmap(jax.vmap(traffic.draw_fitted, (None, 0, None)), (0, None, None))
    return jax.tree.map(np.asarray, jax.jit(one)(jnp.arange(seeds, dtype=jnp.uint32), jnp.arange(steps), params))


@pytest.mark.parametrize("name", TASKS)
def test_draws_have_the_fitted_rate_lengths_and_swings(name):
    fitted = json.loads(data_path("workload_configs.json").read_text())[name]["traffic"]
    found = draws(name)
    counts = found.arrivals.astype(np.float64)
    assert counts.mean() == pytest.approx(fitted["rate"], rel=0.03)
    weights = found.arrivals
    assert (found.output * weights).sum() / weights.sum() == pytest.approx(fitted["output"]["mean"], rel=0.02)
    # the clamp at 8,192 tokens takes a little off the long prompts' mean
    assert (found.prompt * weights).sum() / weights.sum() == pytest.approx(fitted["prompt"]["mean"], rel=0.08)
    # the swings are between seconds of any episode: windows over all episodes have the fitted relative deviation
    wanted = dict(zip(fitted["fit"]["windows_s"], fitted["fit"]["relative_sd_of_rate_model"], strict=True))
    for window in (10, 30, 60):
        sums = counts.reshape(len(counts), -1)[:, : 200 // window * window].reshape(-1, window).sum(axis=1)
        excess = (sums.var() - sums.mean()) / sums.mean() ** 2
        assert np.sqrt(max(excess, 0)) == pytest.approx(wanted[window], abs=0.03)


def test_any_second_is_drawn_without_the_ones_before():
    params = engine_params(ig.get_task(4), ig.load_table())
    together = draws("azure-conversation", 3, 50)
    for seed, step in ((0, 0), (1, 17), (2, 49)):
        alone = traffic.draw_fitted(jnp.uint32(seed), jnp.int32(step), params)
        for a, b in zip(alone, together, strict=True):
            assert float(a) == pytest.approx(float(b[seed, step]), rel=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.7, 2.0, 3.9, 6.0])
def test_small_rates_are_poisson(rate):
    words = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 400_000, dtype=np.uint32))
    found = np.bincount(np.asarray(poisson_count(words, jnp.float32(rate))), minlength=40)[:40] / len(words)
    assert 0.5 * np.abs(found - stats.poisson.pmf(np.arange(40), rate)).sum() < 4e-3


@pytest.mark.parametrize("count", [1, 5, 40])
def test_mean_lengths_have_the_moments_of_a_mean(count):
    words = jnp.asarray(np.random.default_rng(1).integers(0, 2**32, 400_000, dtype=np.uint32))
    found = np.asarray(traffic.mean_length(words, jnp.float32(200), jnp.float32(0.8), jnp.int32(count)), np.float64)
    assert found.mean() == pytest.approx(200, rel=0.01)
    assert found.std() == pytest.approx(160 / np.sqrt(count), rel=0.03)


def test_no_modulation_is_a_plain_poisson_stream():
    params = jax.tree.map(jnp.asarray, EngineParams(rate=5.0, modulation=np.zeros(3), periods=np.ones(3, np.int32)))
    steps = jnp.arange(1000)
    assert np.abs(np.asarray(jax.vmap(lambda t: traffic.log_modulation(jnp.uint32(3), t, params))(steps))).max() == 0


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rng = np.random.default_rng(0)
    rows = [f"{t:.3f},{rng.integers(50, 900)},{rng.integers(10, 300)}" for t in np.sort(rng.uniform(0, 530, 3000))]
    path.write_text("time,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ig.load_trace(path)


@pytest.mark.slow
def test_a_log_is_replayed_second_by_second(logged):
    table = ig.load_table()
    params = make_params(
        ig.get_task(4), table, NOT_NORMALISED | {"optimal_tps": 1000.0, "cost_normaliser": 0.02}, trace=logged
    )
    env = ig.Environment(table, params, logged)
    action = ig.ServeAction(batch_size=128).as_arrays()
    found = ig.rollout(env, params, follow, np.array([0, 1, 2]), carry=action)
    arrivals = np.asarray(found.workload.arrivals)
    for seed in range(3):  # seed s starts at second 200 s, and past the end the log begins again
        at = (200 * seed + np.arange(200)) % logged.seconds
        np.testing.assert_array_equal(arrivals[:, seed], logged.counts[at])
        np.testing.assert_allclose(
            np.asarray(found.workload.mean_prompt_len)[:, seed], np.clip(logged.prompts[at], 32, 8192), rtol=1e-6
        )
    # the same environment plays the other tasks beside it
    closed = make_params(ig.get_task(1), table, {"optimal_tps": 8000.0, "cost_normaliser": 0.02})
    mixed = ig.rollout(env, ig.stack_params([params, closed]), follow, np.array([0, 5]), carry=action)
    np.testing.assert_array_equal(np.asarray(mixed.workload.arrivals)[:, 0], arrivals[:, 0])
    assert not np.array_equal(np.asarray(mixed.workload.arrivals)[:, 1], arrivals[:, 0])
