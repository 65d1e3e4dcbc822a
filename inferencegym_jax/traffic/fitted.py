"""Traffic of an open-loop task in one second: fitted to a public log, or a log itself.

``(seed, step, params) -> requests, mean prompt, mean output``; nothing is carried, so any second can be regenerated
alone.

The fitted arrivals are a doubly stochastic Poisson process. The log of the rate is a sum of smooth noises, one a time
scale: standard normals drawn at a lattice of ``period`` steps (with the episode's own phase) and blended linearly
between its points at unit variance. Lengths are lognormal with the log's mean and coefficient of variation; a second
with k requests draws their mean, which has 1/k of the variance (lognormal again, by moments: Fenton and Wilkinson).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import TIME_SCALES, EngineParams
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.numerics.poisson import poisson_count

LENGTHS, PHASES, MODULATION = 8, 9, 16  # purposes of random.hash4; MODULATION takes one a time scale
BURST = 1.5  # times the mean rate from which a second is reported as a burst
SHORTEST, LONGEST = 32.0, 8192.0  # prompts of the fitted traffic, tokens: the observation's range
LONGEST_OUTPUT = 8192.0


class Requests(NamedTuple):
    """What arrives in one second."""

    arrivals: jax.Array  # int32
    prompt: jax.Array  # float32, mean tokens
    output: jax.Array  # float32, mean tokens
    multiplier: jax.Array  # float32, rate over its long-run mean


def log_modulation(seed: jax.Array, step: jax.Array, params: EngineParams) -> jax.Array:
    """float32: log of the rate over its long-run mean, at any step."""
    phases = random.hash4(seed, jnp.zeros_like(step), PHASES)
    total = jnp.zeros_like(seed, jnp.float32)
    for scale in range(TIME_SCALES):
        period, sigma = params.periods[..., scale], params.modulation[..., scale]
        # in floats, since integer divisions do not vectorise; half a step keeps quotients off whole numbers
        length = jnp.asarray(period, jnp.float32)
        at = step.astype(jnp.float32) + jnp.floor(random.uniform(phases[scale]) * length)
        turns = jnp.floor((at + 0.5) / length)
        cell = turns.astype(jnp.int32)
        u = (at - turns * length) / length
        left = random.normal(random.hash4(seed, cell, MODULATION + scale)[0])
        right = random.normal(random.hash4(seed, cell + 1, MODULATION + scale)[0])
        blend = (left + u * (right - left)) / jnp.sqrt(1.0 - 2.0 * u * (1.0 - u))
        total = total + sigma * blend - 0.5 * sigma * sigma
    return total


def mean_length(word: jax.Array, mean: jax.Array, cv: jax.Array, count: jax.Array) -> jax.Array:
    """float32 mean of ``count`` lognormal lengths (tokens), as one lognormal of the same mean and variance."""
    variance = jnp.log1p(cv * cv / jnp.maximum(count, 1))
    return mean * jnp.exp(jnp.sqrt(variance) * random.normal(word) - 0.5 * variance)


def draw_fitted(seed: jax.Array, step: jax.Array, params: EngineParams) -> Requests:
    """The fitted traffic of any second of the episode ``seed``."""
    multiplier = _multiplier(seed, step, params)
    words = _words(seed, step)
    arrivals = compile_unit(poisson_count)(words[0], params.rate * multiplier)
    prompt, output = _lengths(words, arrivals, params)
    return Requests(arrivals, prompt, output, multiplier)


@compile_unit
def _multiplier(seed: jax.Array, step: jax.Array, params: EngineParams) -> jax.Array:
    return jnp.exp(log_modulation(seed, step, params))


@compile_unit
def _words(seed: jax.Array, step: jax.Array) -> tuple[jax.Array, ...]:
    return random.hash4(seed, step, LENGTHS)[:3]


@compile_unit
def _lengths(words: tuple[jax.Array, ...], arrivals: jax.Array, params: EngineParams) -> tuple[jax.Array, jax.Array]:
    prompt = mean_length(words[1], params.prompt_mean, params.prompt_cv, arrivals)
    output = mean_length(words[2], params.output_mean, params.output_cv, arrivals)
    return jnp.clip(prompt, SHORTEST, LONGEST), jnp.clip(output, 1.0, LONGEST_OUTPUT)


def mean_output(seed: jax.Array, step: jax.Array, params: EngineParams, arrivals: jax.Array) -> jax.Array:
    """float32 mean output (tokens) of a second whose arrivals come from elsewhere."""
    word = random.hash4(seed, step, LENGTHS)[2]
    return jnp.clip(mean_length(word, params.output_mean, params.output_cv, arrivals), 1.0, LONGEST_OUTPUT)
