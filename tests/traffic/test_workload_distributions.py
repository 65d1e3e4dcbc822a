"""What the counter-based draws are distributed as: chi-square against the exact laws at each rate that a task uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import inferencegym_jax as ig
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.poisson import poisson
from inferencegym_jax.physics import metrics
from inferencegym_jax.traffic import calendar as workload

DRAWS = 200_000
# arrivals of tasks 1 to 3, quiet and in bursts, and task 3's thinned by its class shares (.2, .5, .3)
RATES = (10.0, 25.0, 80.0, 30.0, 300.0, 6.0, 15.0, 9.0, 60.0, 150.0, 90.0)
LEAST_P = 1e-4  # seeds are fixed, so a test either always passes or always fails


def words(purpose, column=0, draws=DRAWS):
    seeds = jnp.arange(draws, dtype=jnp.uint32)
    return random.hash4(seeds, seeds % 200, purpose)[column]


def chi_square(counts, expected):
    """p-value, cells of fewer than 10 expected draws joined to the tails."""
    keep = expected >= 10
    low, high = np.argmax(keep), len(keep) - np.argmax(keep[::-1])
    observed = np.concatenate([[counts[:low].sum()], counts[low:high], [counts[high:].sum()]])
    wanted = np.concatenate([[expected[:low].sum()], expected[low:high], [expected[high:].sum()]])
    good = wanted > 1
    observed, wanted = observed[good], wanted[good]
    return stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue


@pytest.mark.parametrize("rate", RATES)
def test_arrivals_are_poisson_at_every_rate_of_the_tasks(rate):
    counts = np.asarray(poisson(words(random.CLASSES), jnp.float32(rate)))
    standard_error = np.sqrt(rate / DRAWS)
    assert abs(counts.mean() - rate) < 4 * standard_error
    assert abs(counts.var() / rate - 1) < 4 * np.sqrt(2 / DRAWS + 1 / (rate * DRAWS))
    # the chi-square statistic of the index of dispersion, as for a Poisson sample
    dispersion = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    assert LEAST_P < stats.chi2.sf(dispersion, DRAWS - 1) < 1 - LEAST_P
    cells = np.arange(counts.max() + 2)
    # the expansion's own distance from the law (its docstring) is below what this many draws can see
    few = 30_000
    assert chi_square(np.bincount(counts[:few], minlength=len(cells)), few * stats.poisson.pmf(cells, rate)) > LEAST_P


def test_rate_zero_gives_no_arrivals():
    assert not np.asarray(poisson(words(random.CLASSES, draws=1000), jnp.float32(0.0))).any()


def test_normal_is_the_exact_quantile():
    u = (np.arange(2**23)[:: 2**23 // 100_003] + 0.5) / 2**23
    word = jnp.asarray(np.floor(u * 2**23).astype(np.uint32) << 9)
    exact = stats.norm.ppf(np.asarray(random.uniform(word), np.float64))
    np.testing.assert_allclose(random.normal(word), exact, rtol=4e-6, atol=1e-7)
    edge = np.asarray(random.normal(jnp.asarray([0, 2**32 - 1], jnp.uint32)))
    np.testing.assert_allclose(edge, stats.norm.ppf(np.array([0.5, 2**23 - 0.5]) / 2**23), rtol=4e-6)


@pytest.mark.parametrize("purpose", (random.WORKLOAD, random.CLASSES, random.NOISE, random.POLICY))
@pytest.mark.parametrize("column", range(4))
def test_every_word_of_the_hash_is_uniform(purpose, column):
    u = np.asarray(random.uniform(words(purpose, column)))
    assert 0 < u.min() and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > LEAST_P


def test_noise_is_normal_around_one():
    seeds = jnp.arange(DRAWS, dtype=jnp.uint32)
    noise = jax.vmap(lambda seed: metrics.latency_noise(seed, jnp.int32(17), jnp.float32(0.05)))(seeds)
    for factor in noise:
        assert stats.kstest((np.asarray(factor) - 1) / 0.05, "norm").pvalue > LEAST_P


def prompts(task):
    seeds = jnp.arange(DRAWS // 200, dtype=jnp.uint32)
    params = ig.make(task)[1]
    draw = jax.vmap(jax.vmap(lambda seed, t: workload.draw_prompt_len(seed, t, params), (None, 0)), (0, None))
    return np.asarray(draw(seeds, jnp.arange(200)), np.float64).ravel()


def test_prompts_of_task_1_are_uniform():
    assert stats.kstest(prompts(1), stats.uniform(64, 64).cdf).pvalue > LEAST_P


def test_prompts_of_task_2_are_a_clamped_lognormal():
    lengths = prompts(2)
    law = stats.lognorm(1.3, scale=np.exp(5.2))
    inside = lengths[(lengths > 32) & (lengths < 8192)]
    low, high = law.cdf(32), law.cdf(8192)
    assert stats.kstest(inside, lambda x: (law.cdf(x) - low) / (high - low)).pvalue > LEAST_P
    assert stats.binomtest(int((lengths == 32).sum()), len(lengths), low).pvalue > LEAST_P
    assert stats.binomtest(int((lengths == 8192).sum()), len(lengths), 1 - high).pvalue > LEAST_P


def test_prompts_of_task_3_are_a_mixture_of_two_uniforms():
    lengths = prompts(3)
    long = lengths > 1000
    assert stats.binomtest(int(long.sum()), len(lengths), 0.3).pvalue > LEAST_P
    assert stats.kstest(lengths[~long], stats.uniform(32, 96).cdf).pvalue > LEAST_P
    assert stats.kstest(lengths[long], stats.uniform(4096, 4096).cdf).pvalue > LEAST_P


def class_arrivals():
    params = ig.make(3)[1]
    seeds, steps = jnp.arange(1000, dtype=jnp.uint32), jnp.arange(15, 120)
    draw = jax.vmap(jax.vmap(lambda seed, t: workload.draw_class_arrivals(seed, t, params), (None, 0)), (0, None))
    return np.asarray(draw(seeds, steps))


def test_classes_take_their_shares():
    total = class_arrivals().sum(axis=(0, 1))
    assert stats.chisquare(total, total.sum() * np.array([0.2, 0.5, 0.3])).pvalue > LEAST_P


def correlation_p(a, b):
    r, p = stats.pearsonr(np.ravel(a), np.ravel(b))
    return float(np.asarray(p)) if abs(float(np.asarray(r))) < 1 else 0.0


def test_draws_are_independent_across_classes_steps_and_seeds():
    counts = class_arrivals().astype(float)
    counts -= counts.mean(axis=(0, 1))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert correlation_p(counts[..., i], counts[..., j]) > LEAST_P
    for lag in (1, 2, 7, 50):
        assert correlation_p(counts[:, lag:], counts[:, :-lag]) > LEAST_P
        assert correlation_p(counts[lag:], counts[:-lag]) > LEAST_P


def test_purposes_do_not_share_their_words():
    purposes = (random.WORKLOAD, random.CLASSES, random.NOISE, random.POLICY, random.EPISODE)
    streams = [np.asarray(random.uniform(words(p, c))) for p in purposes for c in range(4)]
    worst = min(correlation_p(a, b) for i, a in enumerate(streams) for b in streams[:i])
    assert worst > LEAST_P / 10  # 190 pairs


def test_seeds_that_differ_in_one_bit_give_other_draws():
    base = random.uniform(words(random.CLASSES))
    for bit in (0, 1, 7, 16, 31):
        seeds = jnp.arange(DRAWS, dtype=jnp.uint32) ^ jnp.uint32(1 << bit)
        flipped = random.uniform(random.hash4(seeds, jnp.arange(DRAWS) % 200, random.CLASSES)[0])
        assert correlation_p(np.asarray(base), np.asarray(flipped)) > LEAST_P
