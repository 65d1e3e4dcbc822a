"""Traffic by kind and hour: several kinds of requests, each with a rate that follows the hour of the day.

``seed -> day, window -> hour of a step -> rate of each kind -> the second's count, mean lengths, shares``. Nothing is
carried, so any second can be regenerated alone. A day is a number: its noise is drawn from it, so windows of one day
belong together. Evaluation seeds lie below 2^31 and training seeds above, and so do the days that they come to.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import HOURS, KINDS, LEVELS, TIME_SCALES, DayTraffic
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.numerics.gamma import uneven_count

DAY, NOISE, LENGTHS, COUNT = 10, 20, 11, 24  # purposes of random.hash4; NOISE takes one a time scale, COUNT three
SHORTEST, LONGEST = 32.0, 8192.0  # mean prompts, tokens: the observation's range
LONGEST_OUTPUT = 8192.0
TINY = 1e-6
SEED_STRIDE = 53  # between seeds whose windows are of days apart, at moving hours
SPACING = 0.5  # of the deviations between which levels are linear
DEVIATIONS = tuple(-3.0 + SPACING * node for node in range(LEVELS))


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

    The mean rate, times the hour's (linear between the middles of hours), times a level. The level is a smooth normal
    noise (standard normals at a lattice of each time scale, blended at unit variance, as ``traffic.fitted``'s) put
    through the quantiles of the log's own levels: linear between ``DEVIATIONS``, constant beyond.
    """
    return jnp.stack(_rates(seed, step, day), axis=-1)


def _rates(seed: jax.Array, step: jax.Array, day: DayTraffic) -> tuple[jax.Array, ...]:
    """``rates_at``, an array a kind: kinds apart are vectors over environments, and few numbers together are none."""
    place, node, noise = compile_unit(_noise)(seed, step, day)
    nodes, places = compile_unit(_level_nodes)(noise)
    # lookups are calls of their own: what a gather is fused with is computed number by number
    profiles = [_lookup(jnp.asarray(day.hours)[..., kind, :], node[0], node[1], place) for kind in range(KINDS)]
    levels = [
        _lookup(jnp.asarray(day.levels)[..., kind, :], nodes[kind], nodes[kind] + 1, places[kind])
        for kind in range(KINDS)
    ]
    return compile_unit(_product)([day.rate[..., kind] for kind in range(KINDS)], profiles, levels)


def _product(*factors: list[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(a * b * c for a, b, c in zip(*factors, strict=True))


def _noise(
    seed: jax.Array, step: jax.Array, day: DayTraffic
) -> tuple[jax.Array, tuple[jax.Array, ...], list[jax.Array]]:
    """Place between two hours, the two (int32), and the noise of each kind in deviations."""
    number, _ = day_of(seed, day)
    hour = hour_at(seed, step, day)
    noise = [jnp.zeros_like(hour) for _ in range(KINDS)]
    phases = random.hash4(number, jnp.zeros_like(number, jnp.int32), DAY)
    for scale in range(TIME_SCALES):
        at = hour / day.noise_hours[..., scale] + random.uniform(phases[scale])
        cell = jnp.floor(at)
        u = at - cell
        scaling = 1.0 / jnp.sqrt(1.0 - 2.0 * u * (1.0 - u))
        before = random.hash4(number, cell.astype(jnp.int32), NOISE + scale)
        after = random.hash4(number, cell.astype(jnp.int32) + 1, NOISE + scale)
        for kind in range(KINDS):
            left, right = random.normal(before[kind]), random.normal(after[kind])
            noise[kind] = noise[kind] + day.weights[..., kind, scale] * scaling * _blend(left, right, u)
    whole = jnp.floor(hour - 0.5)
    nodes = tuple((x - HOURS * jnp.floor(x * (1.0 / HOURS))).astype(jnp.int32) for x in (whole + HOURS, whole + 1.0))
    return hour - 0.5 - whole, nodes, noise


def _level_nodes(noise: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
    """Node (int32) of ``DEVIATIONS`` below the noise of each kind, and the place towards the next."""
    nodes, places = [], []
    for deviation in noise:
        place = (jnp.clip(deviation, DEVIATIONS[0], DEVIATIONS[-1]) - DEVIATIONS[0]) * (1.0 / SPACING)
        node = jnp.minimum(jnp.floor(place), LEVELS - 2.0)
        nodes.append(node.astype(jnp.int32))
        places.append(place - node)
    return nodes, places


@compile_unit
def _lookup(values: jax.Array, left: jax.Array, right: jax.Array, place: jax.Array) -> jax.Array:
    neighbours = [values.at[..., index].get(mode="promise_in_bounds") for index in (left, right)]
    return _blend(neighbours[0], neighbours[1], place)


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
    return _mixed(tuple(rates[..., kind] for kind in range(KINDS)), day)


def _mixed(rates: tuple[jax.Array, ...], day: DayTraffic) -> Mix:
    rate = sum(rates[1:], rates[0])
    inverse = 1.0 / jnp.maximum(rate, TINY)
    shares = [x * inverse for x in rates]

    def mean(*values: jax.Array) -> jax.Array:
        """Of a product of columns, over kinds."""
        total = jnp.zeros_like(rate)
        for kind, share in enumerate(shares):
            term = share
            for value in values:
                term = term * value[..., kind]
            total = total + term
        return total

    prompt, output = mean(day.prompt_mean), mean(day.output_mean)
    prompt_square = mean(day.prompt_mean**2 * (1.0 + day.prompt_cv**2))
    output_square = mean(day.output_mean**2 * (1.0 + day.output_cv**2))
    both = day.prompt_mean * day.output_mean * (1.0 + day.correlation * day.prompt_cv * day.output_cv)
    prompt_variance = jnp.maximum(prompt_square - prompt * prompt, 0.0)
    output_variance = jnp.maximum(output_square - output * output, 0.0)
    deviation = jnp.sqrt(prompt_variance * output_variance)
    per_verification = day.output_mean[..., None] / day.acceptance
    columns = range(per_verification.shape[-1])
    return Mix(
        rate=rate,
        prompt=prompt,
        prompt_cv=jnp.sqrt(prompt_variance) / jnp.maximum(prompt, TINY),
        output=output,
        output_cv=jnp.sqrt(output_variance) / jnp.maximum(output, TINY),
        correlation=jnp.clip((mean(both) - prompt * output) / jnp.maximum(deviation, TINY), -1.0, 1.0),
        dispersion=jnp.maximum(mean(day.gaps_scv), 1.0),
        prefix_share=mean(day.prompt_mean * day.prefix_share) / jnp.maximum(prompt, TINY),
        shares=jnp.stack([mean(day.of_class[..., i]) for i in range(3)], axis=-1),
        acceptance=jnp.stack([output / jnp.maximum(mean(per_verification[..., k]), TINY) for k in columns], axis=-1),
    )


def draw_day(seed: jax.Array, step: jax.Array, day: DayTraffic) -> tuple[Drawn, Mix]:
    """What arrives in any second of the episode ``seed``, and the mix that it was drawn from."""
    mix = compile_unit(_mixed)(_rates(seed, step, day), day)
    return compile_unit(_draw)(seed, step, mix), mix


def _draw(seed: jax.Array, step: jax.Array, mix: Mix) -> Drawn:
    """The count, and the mean lengths of so many requests."""
    words = random.hash4(seed, step, LENGTHS)
    count = uneven_count(seed, step, COUNT, words[0], mix.rate, mix.dispersion)
    return Drawn(count, *mean_lengths(mix, count, random.normal(words[1]), random.normal(words[2])))


def mean_lengths(mix: Mix, count: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean prompt and output of ``count`` requests, tokens, float32: lognormal with the mixture's moments (Fenton and
    Wilkinson), correlated as a request's own are.

    Args:
        mix: what the requests are like.
        count: of the requests, whole numbers.
        first: standard normal, float32.
        second: standard normal, float32, independent of it.
    """
    other = mix.correlation * first + jnp.sqrt(jnp.maximum(1.0 - mix.correlation**2, 0.0)) * second
    lengths = []
    for mean, cv, z in ((mix.prompt, mix.prompt_cv, first), (mix.output, mix.output_cv, other)):
        variance = jnp.log1p(cv * cv / jnp.maximum(count, 1))
        lengths.append(mean * jnp.exp(jnp.sqrt(variance) * z - 0.5 * variance))
    return jnp.clip(lengths[0], SHORTEST, LONGEST), jnp.clip(lengths[1], 1.0, LONGEST_OUTPUT)
