"""The bootstrap: draws are with replacement, intervals cover the truth and are those of scipy."""

import numpy as np
import pytest
from scipy import stats

from inferencegym_jax.numerics import bootstrap


def test_each_resample_draws_as_many_units_as_there_are():
    counts = bootstrap.draw_counts(30, 500, seed=1)
    assert counts.shape == (500, 30) and (counts.sum(axis=1) == 30).all()
    assert counts.std() == pytest.approx(np.sqrt(29 / 30), rel=0.05)  # binomial(30, 1 / 30)
    np.testing.assert_array_equal(counts, bootstrap.draw_counts(30, 500, seed=1))
    assert (counts != bootstrap.draw_counts(30, 500, seed=2)).any()


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).exponential(3.0, 200)
    mine = bootstrap.mean_interval(values, 20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert mine["mean"] == pytest.approx(values.mean())
    assert mine["low"] == pytest.approx(theirs.low, rel=0.01)
    assert mine["high"] == pytest.approx(theirs.high, rel=0.01)


def test_95_percent_of_intervals_hold_the_true_mean():
    rng = np.random.default_rng(5)
    found = [bootstrap.mean_interval(rng.normal(2.0, 1.0, 60), 400, seed=i) for i in range(400)]
    share = np.mean([one["low"] <= 2.0 <= one["high"] for one in found])
    assert 0.90 <= share <= 0.98  # four standard errors about 0.94, what 60 values give


def test_any_statistic_gets_the_same_units_with_repetitions():
    values = np.random.default_rng(3).normal(size=80)
    low, high = bootstrap.interval(lambda index: float(np.median(values[index])), 80)
    theirs = stats.bootstrap((values,), np.median, n_resamples=5000, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.05)
    mean = bootstrap.mean_interval(values)
    same = bootstrap.interval(lambda index: float(values[index].mean()), 80)
    assert same == pytest.approx((mean["low"], mean["high"]))


def test_what_could_not_be_measured_is_left_out():
    low, high = bootstrap.percentiles([np.nan, *range(101), np.inf])
    assert (low, high) == (2.5, 97.5)
    assert np.isnan(bootstrap.percentiles([np.nan, np.nan])).all()
