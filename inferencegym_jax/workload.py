"""Traffic of one second: the burst calendar, Poisson arrivals by class, prompt lengths, the waiting queue.

Pure functions of (seed, step, params). Data flows ``params -> draws -> queue``; nothing here knows about GPUs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax import random
from inferencegym_jax.models import QUEUE_CAPACITY, EnvParams, EnvState, Phase, WorkloadState
from inferencegym_jax.staging import stage

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


def poisson(word: jax.Array, rate: jax.Array) -> jax.Array:
    """Poisson draw (int32) by inversion: no rejection loop, one uint32 word, any traced rate.

    The quantile function's Cornish-Fisher expansion with z the normal quantile of the word's uniform,
    ``floor(rate + sqrt(rate) z + (2 + z^2)/6 - (z^3 + 2z)/(72 sqrt(rate)) + (3z^4 + 7z^2 - 16)/(810 rate))``
    (Giles, "Algorithm 955: Approximation of the Inverse Poisson Cumulative Distribution Function", ACM TOMS 42(1),
    2016, eq. for Q_N2). Total variation from the exact distribution: 1.4e-4 at rate 10, 2e-5 at 25, 2e-6 at 80, 7e-4
    at 4; rates below 4 are not accurate. Rate 0 gives 0.
    """
    return _poisson(word, _rooted(rate))


class Rate(NamedTuple):
    """A Poisson rate with what its draws take of it, float32[...]."""

    rate: jax.Array
    root: jax.Array
    inverse: jax.Array  # 1 / root


def _rooted(rate: jax.Array) -> Rate:
    rate = jnp.asarray(rate, jnp.float32)
    root = jnp.sqrt(jnp.maximum(rate, 1e-3))
    return Rate(rate, root, 1.0 / root)


def _poisson(word: jax.Array, of: Rate) -> jax.Array:
    rate, root, inverse = of
    z = random.normal(word)
    square = z * z
    value = z * root + ((2.0 / 6.0) + square * (1.0 / 6.0)) + rate
    value = value - z * (2.0 + square) * (inverse * (1.0 / 72.0))
    value = value + (square * (3.0 * square + 7.0) - 16.0) * (inverse * inverse * (1.0 / 810.0))
    return jnp.where(rate > 0, jnp.maximum(jnp.floor(value), 0.0), 0.0).astype(jnp.int32)


def _class_arrivals(seed: jax.Array, step: jax.Array, params: EnvParams) -> tuple[jax.Array, ...]:
    shares = jnp.asarray(params.class_shares)
    # square roots and divisions are the same in every step: out here the compiler takes them out of the loop
    rates = [[_rooted(total * shares[..., i]) for i in range(3)] for total in (params.rate, params.burst_rate)]
    return _draw_classes(seed, step, is_burst_at(step, params), rates[0], rates[1])


@stage
def _draw_classes(
    seed: jax.Array, step: jax.Array, is_burst: jax.Array, quiet: list[Rate], burst: list[Rate]
) -> tuple[jax.Array, ...]:
    words = random.hash4(seed, step, random.CLASSES)[:3]
    of = [
        Rate(*(jnp.where(is_burst, x, y) for x, y in zip(b, q, strict=True))) for b, q in zip(burst, quiet, strict=True)
    ]
    return tuple(_poisson(word, rate) for word, rate in zip(words, of, strict=True))


def draw_class_arrivals(seed: jax.Array, step: jax.Array, params: EnvParams) -> jax.Array:
    """int32[..., 3] arrivals by class: a Poisson stream thinned by class shares is three independent Poisson
    streams."""
    return jnp.stack(_class_arrivals(seed, step, params), axis=-1)


@stage
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


def advance(state: EnvState, batch_size: jax.Array, params: EnvParams) -> tuple[WorkloadState, jax.Array]:
    """One second of traffic and queueing.

    Arrivals join the queue, ``served = min(batch_size, queue)`` leave it for the engine, and of what is left 512 may
    wait; the rest is rejected. Requests are conserved: ``queue + arrivals = queue' + served + rejected``.

    Args:
        state: the episode before the step.
        batch_size: int32, most requests served in this second.
        params: the task.

    Returns:
        The workload of the step and the new class counts (int32[..., 3]) over the last 50 steps.
    """
    step = state.time
    entering = _class_arrivals(state.seed, step, params)
    prompt_len = draw_prompt_len(state.seed, step, params)
    arrivals, served, queue, rejected = _serve(state.queue, entering, batch_size)

    # what falls out of the window is drawn again instead of being stored: 3 draws cost less than a 50-step buffer
    leaving = _class_arrivals(state.seed, step - WINDOW, params)
    class_counts, shares = _window(state.class_counts, entering, leaving, step, params)

    ema = state.arrival_ema + (2.0 / (EMA_STEPS + 1)) * (arrivals - state.arrival_ema)
    workload = WorkloadState(
        arrival_rate=ema,
        mean_prompt_len=prompt_len,
        prompt_len_bucket=prompt_bucket(prompt_len),
        queue_depth=queue,
        priority_distribution=shares,
        is_burst=is_burst_at(step, params),
        phase=phase_at(step, params),
        arrivals=arrivals,
        served=served,
        rejected=rejected,
    )
    return workload, class_counts


@stage
def _serve(waiting: jax.Array, entering: tuple[jax.Array, ...], batch_size: jax.Array) -> tuple[jax.Array, ...]:
    """int32 (arrivals, served, queue after service, rejected)."""
    arrivals = entering[0] + entering[1] + entering[2]
    present = waiting + arrivals
    served = jnp.minimum(batch_size, present)
    left = present - served
    queue = jnp.minimum(left, QUEUE_CAPACITY)
    return arrivals, served, queue, left - queue


def prompt_bucket(prompt_len: jax.Array) -> jax.Array:
    """int32 prompt_len_bucket (0 to 7) of a length in tokens: how many edges it reaches."""
    return sum(((prompt_len >= edge).astype(jnp.int32) for edge in BUCKET_EDGES), jnp.zeros_like(prompt_len, jnp.int32))


@stage
def _window(
    counts: jax.Array,
    entering: tuple[jax.Array, ...],
    leaving: tuple[jax.Array, ...],
    step: jax.Array,
    params: EnvParams,
) -> tuple[jax.Array, jax.Array]:
    """Class counts (int32[..., 3]) over the last 50 steps, and class shares (float32[..., 3]), which are the task's
    own before anything arrived."""
    is_full = step >= WINDOW
    columns = [counts[..., i] + entering[i] - jnp.where(is_full, leaving[i], 0) for i in range(3)]
    seen = columns[0] + columns[1] + columns[2]
    scale = 1.0 / jnp.maximum(seen, 1).astype(jnp.float32)
    expected = jnp.asarray(params.class_shares)
    shares = [
        jnp.where(seen > 0, column.astype(jnp.float32) * scale, expected[..., i]) for i, column in enumerate(columns)
    ]
    return jnp.stack(columns, axis=-1), jnp.stack(shares, axis=-1)
