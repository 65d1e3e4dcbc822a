"""Traffic by kind and hour: several kinds of requests, each with a rate that follows the hour of the day.

``seed -> day, window -> hour of a step -> rate of each kind -> the second's count, mean lengths, shares``. Nothing is
carried, so any second can be regenerated alone. A day is a number: its noise is drawn from it, so windows of one day
belong together. Evaluation seeds lie below 2^31 and training seeds above, and so do the days that they come to.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import HOURS, KINDS, TIME_SCALES, DayTraffic
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.numerics.gamma import uneven_count

DAY, NOISE, LENGTHS, COUNT = 10, 20, 11, 24  # purposes of random.hash4; NOISE takes one a time scale, COUNT three
SHORTEST, LONGEST = 32.0, 8192.0  # mean prompts, tokens: the observation's range
LONGEST_OUTPUT = 8192.0
TINY = 1e-6


class Mix(NamedTuple):
    """The requests of all kinds together, in one second; float32."""

    rate: jax.Array  # requests/s expected
    prompt: jax.Array  # mean tokens expected
    prompt_cv: jax.Array
    output: jax.Array
    output_cv: jax.Array
    correlation: jax.Array
    dispersion: jax.Array  # variance of the second's count over its mean
    prefix_share: jax.Array
    shares: jax.Array  # [..., 3], by class
    acceptance: jax.Array  # [..., 5], tokens that a verification yields with 0, 1, 2, 4, 8 drafts


class Drawn(NamedTuple):
    """What arrives in one second."""

    arrivals: jax.Array  # int32
    prompt: jax.Array  # float32, mean tokens
    output: jax.Array  # float32, mean tokens


def day_of(seed: jax.Array, day: DayTraffic) -> tuple[jax.Array, jax.Array]:
    """(day uint32, hour float32 at which the window begins) of an episode's seed."""
    windows = jnp.asarray(day.windows, jnp.uint32)
    slot = (seed % windows).astype(jnp.float32)
    return seed // windows, slot * (HOURS / jnp.asarray(day.windows, jnp.float32))


def hour_at(seed: jax.Array, step: jax.Array, day: DayTraffic) -> jax.Array:
    """float32 hours since the day's midnight at a step's middle; above 24 in a window that runs into the next day."""
    return day_of(seed, day)[1] + (step.astype(jnp.float32) + 0.5) * day.clock / 3600.0


def rates_at(seed: jax.Array, step: jax.Array, day: DayTraffic) -> jax.Array:
    """float32[..., KINDS] requests/s of each kind in a second.

    The mean rate, times the hour's (linear between the middles of hours), times the exponential of smooth noises as
    those of ``traffic.fitted``: standard normals at a lattice, blended at unit variance. A kind's noise has mean 1.
    """
    number, _ = day_of(seed, day)
    hour = hour_at(seed, step, day)
    place = hour - 0.5
    whole = jnp.floor(place)
    left = jnp.mod(whole, float(HOURS)).astype(jnp.int32)
    right = jnp.mod(whole + 1.0, float(HOURS)).astype(jnp.int32)
    hours = jnp.asarray(day.hours)
    profile = _blend(hours[..., left], hours[..., right], place - whole)
    log_level = jnp.zeros_like(profile)
    phases = random.hash4(number, jnp.zeros_like(number, jnp.int32), DAY)
    for scale in range(TIME_SCALES):
        sigma, length = day.sigma[..., scale], day.noise_hours[..., scale]
        at = hour / length + random.uniform(phases[scale])
        cell = jnp.floor(at)
        u = at - cell
        scaling = 1.0 / jnp.sqrt(1.0 - 2.0 * u * (1.0 - u))
        before = random.hash4(number, cell.astype(jnp.int32), NOISE + scale)
        after = random.hash4(number, cell.astype(jnp.int32) + 1, NOISE + scale)
        noise = [_blend(random.normal(x), random.normal(y), u) * scaling for x, y in zip(before, after, strict=True)]
        log_level = log_level + sigma * jnp.stack(noise[:KINDS], axis=-1) - 0.5 * sigma * sigma
    return jnp.asarray(day.rate) * profile * jnp.exp(log_level)


def _blend(left: jax.Array, right: jax.Array, place: jax.Array) -> jax.Array:
    return left + place * (right - left)


def mix_of(rates: jax.Array, day: DayTraffic) -> Mix:
    """All kinds together: moments of the mixture, weighted by the rates.

    Tokens a verification yields: outputs over verifications, ``sum rate O / sum (rate O / AL)``. The prefix share is
    that of all prompt tokens.

    Args:
        rates: float32[..., KINDS], requests/s.
        day: the kinds.
    """
    rate = rates.sum(axis=-1)
    share = rates / jnp.maximum(rate, TINY)[..., None]
    prompt, output = (share * day.prompt_mean).sum(-1), (share * day.output_mean).sum(-1)
    prompt_square = (share * day.prompt_mean**2 * (1.0 + day.prompt_cv**2)).sum(-1)
    output_square = (share * day.output_mean**2 * (1.0 + day.output_cv**2)).sum(-1)
    both = day.prompt_mean * day.output_mean * (1.0 + day.correlation * day.prompt_cv * day.output_cv)
    prompt_variance = jnp.maximum(prompt_square - prompt * prompt, 0.0)
    output_variance = jnp.maximum(output_square - output * output, 0.0)
    deviation = jnp.sqrt(prompt_variance * output_variance)
    covariance = (share * both).sum(-1) - prompt * output
    tokens = share * day.output_mean
    verifications = (tokens[..., None] / day.acceptance).sum(-2)
    return Mix(
        rate=rate,
        prompt=prompt,
        prompt_cv=jnp.sqrt(prompt_variance) / jnp.maximum(prompt, TINY),
        output=output,
        output_cv=jnp.sqrt(output_variance) / jnp.maximum(output, TINY),
        correlation=jnp.clip(covariance / jnp.maximum(deviation, TINY), -1.0, 1.0),
        dispersion=jnp.maximum((share * day.gaps_scv).sum(-1), 1.0),
        prefix_share=(share * day.prompt_mean * day.prefix_share).sum(-1) / jnp.maximum(prompt, TINY),
        shares=(share[..., None] * day.of_class).sum(-2),
        acceptance=output[..., None] / jnp.maximum(verifications, TINY),
    )


def draw_day(seed: jax.Array, step: jax.Array, day: DayTraffic) -> tuple[Drawn, Mix]:
    """What arrives in any second of the episode ``seed``, and the mix that it was drawn from."""
    mix = compile_unit(_mix)(seed, step, day)
    return compile_unit(_draw)(seed, step, mix), mix


def _mix(seed: jax.Array, step: jax.Array, day: DayTraffic) -> Mix:
    return mix_of(rates_at(seed, step, day), day)


def _draw(seed: jax.Array, step: jax.Array, mix: Mix) -> Drawn:
    """The count, and the mean lengths of so many requests: lognormal with the mixture's moments (Fenton and Wilkinson),
    correlated as a request's own are."""
    words = random.hash4(seed, step, LENGTHS)
    count = uneven_count(seed, step, COUNT, words[0], mix.rate, mix.dispersion)
    first, second = random.normal(words[1]), random.normal(words[2])
    other = mix.correlation * first + jnp.sqrt(jnp.maximum(1.0 - mix.correlation**2, 0.0)) * second
    lengths = []
    for mean, cv, z in ((mix.prompt, mix.prompt_cv, first), (mix.output, mix.output_cv, other)):
        variance = jnp.log1p(cv * cv / jnp.maximum(count, 1))
        lengths.append(mean * jnp.exp(jnp.sqrt(variance) * z - 0.5 * variance))
    return Drawn(count, jnp.clip(lengths[0], SHORTEST, LONGEST), jnp.clip(lengths[1], 1.0, LONGEST_OUTPUT))
