"""Traffic of one second: the burst calendar, Poisson arrivals by class, prompt lengths, the waiting queue.

Pure functions of (seed, step, params). Data flows ``params -> draws -> queue``; nothing here knows about GPUs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EnvParams, Phase
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.numerics.poisson import Rate, poisson_of, rooted

EMA_STEPS = 10  # span of the arrival rate's moving average; weight of the newest step is 2 / (span + 1)
WINDOW = 50  # steps over which class shares are reported
WARMUP_STEPS = 10
COOLDOWN_STEPS = 10
BUCKET_EDGES = (64, 128, 256, 512, 1024, 2048, 4096)  # prompt_len_bucket = digitize(prompt, edges)


class Traffic(NamedTuple):
    """What arrives in one second, before the queue."""

    class_arrivals: jax.Array  # int32[..., 3]: interactive, batch, best effort
    prompt_len: jax.Array  # float32[...], tokens


def _into_period(step: jax.Array, params: EnvParams) -> jax.Array:
    """int32 steps since the burst calendar's period began, from -burst_start.

    By float division, as integer ones do not vectorise: half a step keeps the quotient off whole numbers, so that no
    rounding changes its floor (steps below 2^22).
    """
    period = jnp.asarray(params.burst_period, jnp.float32)
    turns = jnp.floor((step.astype(jnp.float32) + 0.5) / period).astype(jnp.int32)
    return step - turns * params.burst_period - params.burst_start


def is_burst_at(step: jax.Array, params: EnvParams) -> jax.Array:
    """bool: does the calendar put ``step`` (int32, from 0) inside a burst."""
    offset = _into_period(step, params)
    return (offset >= 0) & (offset < params.burst_length)


def phase_at(step: jax.Array, params: EnvParams) -> jax.Array:
    """int32 ``Phase`` of a step: burst by the calendar, cooldown for 10 steps after one, warmup in the first 10."""
    offset = _into_period(step, params)
    burst = (offset >= 0) & (offset < params.burst_length)
    after = offset - params.burst_length
    since = jnp.where(after < 0, after + params.burst_period, after)
    first_end = params.burst_start + params.burst_length
    cooling = (since < COOLDOWN_STEPS) & (step >= first_end) & (params.burst_length > 0)
    quiet = jnp.where(step < WARMUP_STEPS, Phase.WARMUP, Phase.STEADY)
    return jnp.where(burst, Phase.BURST, jnp.where(cooling, Phase.COOLDOWN, quiet)).astype(jnp.int32)


def class_arrivals(seed: jax.Array, step: jax.Array, params: EnvParams) -> tuple[jax.Array, ...]:
    """Arrivals of any step by class, three int32; ``draw_class_arrivals`` in one array."""
    shares = jnp.asarray(params.class_shares)
    # square roots and divisions are the same in every step: out here the compiler takes them out of the loop
    rates = [[rooted(total * shares[..., i]) for i in range(3)] for total in (params.rate, params.burst_rate)]
    return _draw_classes(seed, step, is_burst_at(step, params), rates[0], rates[1])


@compile_unit
def _draw_classes(
    seed: jax.Array, step: jax.Array, is_burst: jax.Array, quiet: list[Rate], burst: list[Rate]
) -> tuple[jax.Array, ...]:
    words = random.hash4(seed, step, random.CLASSES)[:3]
    of = [
        Rate(*(jnp.where(is_burst, x, y) for x, y in zip(b, q, strict=True))) for b, q in zip(burst, quiet, strict=True)
    ]
    return tuple(poisson_of(word, rate) for word, rate in zip(words, of, strict=True))


def draw_class_arrivals(seed: jax.Array, step: jax.Array, params: EnvParams) -> jax.Array:
    """int32[..., 3] arrivals by class: a Poisson stream thinned by class shares is three independent Poisson
    streams."""
    return jnp.stack(class_arrivals(seed, step, params), axis=-1)


@compile_unit
def draw_prompt_len(seed: jax.Array, step: jax.Array, params: EnvParams) -> jax.Array:
    """float32 prompt length (tokens) of the step: a two-part uniform mixture, or a clamped lognormal."""
    part, place, normal_word, _ = random.hash4(seed, step, random.WORKLOAD)
    is_long = random.uniform(part) < params.long_share
    low = jnp.where(is_long, params.long_low, params.short_low)
    high = jnp.where(is_long, params.long_high, params.short_high)
    from_uniform = low + (high - low) * random.uniform(place)
    log_len = params.log_mean + params.log_sigma * random.normal(normal_word)
    from_lognormal = jnp.clip(jnp.exp(log_len), params.short_low, params.short_high)
    return jnp.where(params.lognormal, from_lognormal, from_uniform)


def draw_traffic(seed: jax.Array, step: jax.Array, params: EnvParams) -> Traffic:
    """The traffic of any step of the episode ``seed``, without replaying the ones before it."""
    return Traffic(draw_class_arrivals(seed, step, params), draw_prompt_len(seed, step, params))


def prompt_bucket(prompt_len: jax.Array) -> jax.Array:
    """int32 prompt_len_bucket (0 to 7) of a length in tokens: how many edges it reaches."""
    return sum(((prompt_len >= edge).astype(jnp.int32) for edge in BUCKET_EDGES), jnp.zeros_like(prompt_len, jnp.int32))
