"""Traffic by kind and hour: the pool's figures come out of the draws, a day is one, training has days of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import inferencegym_jax as ig
from inferencegym_jax.models import KINDS, DayTraffic
from inferencegym_jax.numerics.gamma import gamma, uneven_count
from inferencegym_jax.tasks import engine_params
from inferencegym_jax.tasks.pools import pools
from inferencegym_jax.traffic.days import DEVIATIONS, day_of, draw_day, rates_at

TRAINING = np.uint32(1 << 31)


@pytest.fixture(scope="module")
def day() -> DayTraffic:
    return engine_params(ig.get_task("second-gpu"), ig.load_table()).day


def rates(day: DayTraffic, seeds: Any, steps: Any) -> np.ndarray:
    one = jax.jit(jax.vmap(jax.vmap(rates_at, (None, 0, None)), (0, None, None)))
    return np.asarray(one(jnp.asarray(seeds, jnp.uint32), jnp.asarray(steps, jnp.int32), day))


def test_a_day_has_the_pools_rates_hour_by_hour(day: DayTraffic) -> None:
    hourly = day.replace(clock=np.float32(3600.0), windows=np.int32(1))
    found = rates(hourly, np.arange(6000), np.arange(24))  # a step is an hour
    for kind, entry in enumerate(pools()["m-large"]["kinds"]):
        mean, level = found[..., kind].mean(axis=0), np.asarray(entry["hours"])
        # levels are shared by the hours of a day: the standard error over days of each hour's mean
        error = found[..., kind].std(axis=0) / np.sqrt(len(found))
        wanted = 1.6 * entry["rate"] * level / level.mean()
        assert (np.abs(mean - wanted) < 5.0 * error + 0.02 * wanted).all(), entry["name"]
    assert found.shape[-1] == KINDS


@pytest.mark.slow
def test_levels_are_distributed_as_the_logs(day: DayTraffic) -> None:
    flat = day.replace(hours=np.ones_like(day.hours), clock=np.float32(3600.0), windows=np.int32(1))
    found = rates(flat, np.arange(8000), [12])[:, 0]
    for kind, entry in enumerate(pools()["m-large"]["kinds"]):
        for node in (4, 6, 8, 9):
            share = stats.norm.cdf(DEVIATIONS[node])
            level = float(np.quantile(found[:, kind], share)) / (1.6 * entry["rate"])
            assert level == pytest.approx(entry["levels"][node], abs=0.15 * max(entry["levels"][node], 0.4))


@pytest.mark.slow
def test_windows_of_a_day_belong_together_and_days_do_not(day: DayTraffic) -> None:
    steps = np.asarray([0, 900, 1799])
    number, hour = jax.vmap(day_of, (0, None))(jnp.asarray([0, 1, 47, 48], jnp.uint32), day)
    assert number.tolist() == [0, 0, 0, 1] and hour.tolist() == [0.0, 0.5, 23.5, 0.0]
    whole = rates(day.replace(clock=np.float32(1.0), windows=np.int32(1)), [0], 1800 * 3 + steps)
    assert rates(day, [3], steps) == pytest.approx(whole, rel=2e-3)
    assert not np.allclose(rates(day, [3], steps), rates(day, [3 + 48], steps), rtol=0.05)


def test_training_and_evaluation_share_no_day(day: DayTraffic) -> None:
    for spec in ig.task_specs().values():
        if spec.has_kinds:
            windows = int(engine_params(spec, ig.load_table()).day.windows)
            assert int(TRAINING - 1) // windows <= int(TRAINING) // windows
            last_validation = (1 << 30) + 4096
            assert last_validation // windows < int(TRAINING) // windows


def test_the_clock_says_how_fast_the_day_passes(day: DayTraffic) -> None:
    whole_day = day.replace(windows=np.int32(1))
    slow, fast = (whole_day.replace(clock=np.float32(clock)) for clock in (1.0, 60.0))
    at = np.arange(3)
    # the middle of step s of the fast clock is second 60 s + 30 of the day
    assert rates(fast, [5], at) == pytest.approx(rates(slow, [5], 60 * at + 29), rel=6e-3)


def test_any_second_is_drawn_without_the_ones_before(day: DayTraffic) -> None:
    draw = jax.jit(jax.vmap(draw_day, (0, 0, None)))
    together = jax.tree.map(np.asarray, draw(jnp.arange(40, dtype=jnp.uint32), jnp.arange(40), day))
    alone = jax.tree.map(np.asarray, draw(jnp.asarray([17, 31], jnp.uint32), jnp.asarray([17, 31]), day))
    for one, all_of_them in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert one == pytest.approx(all_of_them[[17, 31]], rel=1e-5)


@pytest.mark.slow
def test_counts_and_lengths_are_those_of_the_mix(day: DayTraffic) -> None:
    draw = jax.jit(jax.vmap(draw_day, (0, 0, None)))
    seeds = jnp.asarray(np.random.default_rng(0).integers(0, 2**30, 200_000), jnp.uint32)
    drawn, mix = jax.tree.map(np.asarray, draw(seeds, jnp.arange(200_000) % 1800, day))
    count = drawn.arrivals.astype(np.float64)
    assert count.sum() == pytest.approx(mix.rate.sum(), rel=0.01)
    assert ((count - mix.rate) ** 2).sum() == pytest.approx((mix.dispersion * mix.rate).sum(), rel=0.05)
    assert (count * drawn.output).sum() == pytest.approx((mix.rate * mix.output).sum(), rel=0.03)
    assert (count * drawn.prompt).sum() == pytest.approx((mix.rate * mix.prompt).sum(), rel=0.03)
    assert mix.shares == pytest.approx(np.broadcast_to([1.0, 0.0, 0.0], mix.shares.shape), abs=1e-5)


def test_drafts_take_turns_from_a_tenth_of_the_capacity_to_more_than_all() -> None:
    params = engine_params(ig.get_task("drafts-by-load"), ig.load_table())
    found = rates(params.day, [0], np.arange(600))[0]
    work = 1.05 * np.asarray(params.day.rate) * 0 + np.asarray(
        [1.05 / found[:, kind].max() if found[:, kind].max() > 0 else 0.0 for kind in range(KINDS)]
    )
    load = (found * work).sum(axis=1)
    assert load.min() == pytest.approx(0.1, abs=0.02) and load.max() == pytest.approx(1.1, abs=0.02)
    drawn, mix = jax.vmap(draw_day, (None, 0, None))(jnp.uint32(0), jnp.arange(600), params.day)
    shares, drafted = np.asarray(mix.shares), np.asarray(mix.acceptance)
    assert shares[:, 0].max() > 0.9 and shares[:, 1].max() > 0.8  # coding is interactive, chat batch
    table = ig.load_table().engine
    assert table is not None
    low, high = (np.asarray(table.acceptance_lengths[name]) for name in ("chat", "coding"))
    assert (drafted >= low - 1e-4).all() and (drafted <= high + 1e-4).all()
    assert drawn.arrivals.shape == (600,)


@pytest.mark.parametrize("shape", [0.2, 1.0, 3.5, 40.0])
def test_gamma_draws_have_the_distribution(shape: float) -> None:
    seeds = jnp.arange(60_000, dtype=jnp.uint32)
    found = np.asarray(jax.jit(jax.vmap(lambda seed: gamma(seed, jnp.int32(7), 24, jnp.float32(shape))))(seeds))
    assert stats.kstest(found, stats.gamma(shape).cdf).statistic < 0.01


def test_uneven_counts_have_mean_and_variance() -> None:
    seeds = jnp.arange(60_000, dtype=jnp.uint32)
    words = jnp.asarray(np.random.default_rng(1).integers(0, 2**32, 60_000, dtype=np.uint32))
    for rate, dispersion in ((0.7, 4.0), (9.0, 2.5), (9.0, 1.0)):
        draw = jax.jit(
            jax.vmap(
                lambda s, w, r=rate, d=dispersion: uneven_count(s, jnp.int32(3), 24, w, jnp.float32(r), jnp.float32(d))
            )
        )
        found = np.asarray(draw(seeds, words), np.float64)
        assert found.mean() == pytest.approx(rate, rel=0.03)
        assert found.var() / found.mean() == pytest.approx(dispersion, rel=0.06)
