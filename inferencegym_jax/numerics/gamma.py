"""Gamma draws, and counts more uneven than Poisson's, by counters: any shape, a fixed number of tries."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.poisson import poisson_count

TRIES = 3  # of the rejection; a draw that all of them refuse (2 in 10,000 at shape 1) takes the last one's value
LEAST_EXCESS = 1e-3  # of the variance over the mean, from which counts are drawn as more uneven than Poisson's


def gamma(seed: jax.Array, step: jax.Array, purpose: int, shape: jax.Array) -> jax.Array:
    """Gamma draw of scale 1 (float32).

    Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", ACM TOMS 26(3), 2000: ``d v`` with d = shape
    - 1/3, v = (1 + z / sqrt(9 d))^3, accepted where log u < z^2 / 2 + d - d v + d log v. A shape below 1 is that of
    shape + 1 times u^(1 / shape).

    Args:
        seed: uint32[...].
        step: int32[...].
        purpose: of ``draws.hash4``; takes ``TRIES`` of them.
        shape: float32[...], above 0.
    """
    small = shape < 1.0
    d = jnp.where(small, shape + 1.0, shape) - 1.0 / 3.0
    c = 1.0 / jnp.sqrt(9.0 * d)
    value, taken = jnp.zeros_like(d), jnp.zeros_like(d, jnp.bool_)
    power = jnp.ones_like(d)
    for i in range(TRIES):
        words = random.hash4(seed, step, purpose + i)
        z = random.normal(words[0])
        root = 1.0 + c * z
        v = jnp.maximum(root * root * root, 1e-12)
        accepted = jnp.log(random.uniform(words[1])) < 0.5 * z * z + d - d * v + d * jnp.log(v)
        value = jnp.where(taken, value, d * v)
        taken = taken | ((root > 0) & accepted)
        if i == 0:
            power = jnp.exp(jnp.log(random.uniform(words[2])) / jnp.maximum(shape, 1e-6))
    return value * jnp.where(small, power, 1.0)


def uneven_count(
    seed: jax.Array, step: jax.Array, purpose: int, word: jax.Array, rate: jax.Array, dispersion: jax.Array
) -> jax.Array:
    """How many come in a second (int32): mean ``rate``, variance ``dispersion`` times that.

    Poisson with a Gamma rate (a negative binomial): what renewals whose gaps have the squared coefficient of variation
    ``dispersion`` give over many gaps. A dispersion up to 1 is Poisson.

    Args:
        seed: see ``gamma``.
        step: see ``gamma``.
        purpose: see ``gamma``.
        word: uint32, of the Poisson draw.
        rate: float32[...], at least 0.
        dispersion: float32[...].
    """
    excess = jnp.maximum(dispersion - 1.0, LEAST_EXCESS)
    level = gamma(seed, step, purpose, jnp.maximum(rate / excess, 1e-4)) * excess
    return poisson_count(word, jnp.where(dispersion > 1.0 + LEAST_EXCESS, level, rate))


def rounded_count(word: jax.Array, other: jax.Array, rate: jax.Array, dispersion: jax.Array) -> jax.Array:
    """``uneven_count`` for about a request a second and more, at a tenth of its cost; whole numbers in float32.

    A Gamma variable of the count's mean and variance by Wilson and Hilferty's cube ("The Distribution of Chi-Square",
    PNAS 17, 1931), rounded up or down at random so that the mean stays; the variance that the rounding adds, 1/6 on
    average, is taken off first. The mean is right to 1 % from a rate over dispersion of 0.5.

    Args:
        word: uint32, of the draws.
        other: uint32, of the draws.
        rate: float32[...], mean.
        dispersion: float32[...], variance over the mean; below 1 it counts as 1.
    """
    variance = jnp.maximum(rate * jnp.maximum(dispersion, 1.0) - 1.0 / 6.0, 0.25 * rate)
    inverse = variance / jnp.maximum(rate * rate, 1e-9)  # of the shape
    ninth = inverse * jnp.float32(1.0 / 9.0)
    root = jnp.maximum(1.0 - ninth + jnp.sqrt(ninth) * random.normal(word), 0.0)
    return jnp.floor(rate * root * root * root + random.uniform(other))
