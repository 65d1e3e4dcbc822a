"""The time to first token of a request that finds no line: its mean, and its distribution.

An arrival waits for the iteration under way, shares the next one with the prompts that came with it, and its first
token is seen one iteration later. Iterations are lengthened by the prompts of others: the mean follows from the
moments of ``T' = t + sum of p over the arrivals of T``, and what others add is spread exponentially. Symbols:
docs/physics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams
from inferencegym_jax.numerics.compile_units import compile_unit, once
from inferencegym_jax.physics.chance import Chance, normal_share, prefills_ahead
from inferencegym_jax.physics.fluid import Flow
from inferencegym_jax.physics.iteration import NODE_WEIGHTS, TINY, Apart, Prompts, over_nodes
from inferencegym_jax.physics.switching import SECOND_MS, Configuration


class FirstToken(NamedTuple):
    """Time to first token beside the line; ms.

    ``own + U(0, width)``, and with a chance the time of others' prompts: exponential of mean ``stage_ms``, or with the
    share ``long`` three such stages.
    """

    own: tuple[jax.Array, ...]  # at the three nodes of the prompt lengths
    width: jax.Array  # of the uniform part
    chance: jax.Array  # that others' prompts lengthen it
    stage_ms: jax.Array
    long: jax.Array  # share with three stages
    placed_width: jax.Array  # the same for who waits for a place: of the uniform part
    placed_ms: jax.Array  # and the mean of others' time

    @property
    def mean(self) -> jax.Array:
        """Mean over requests, ms."""
        return over_nodes(self.own) + 0.5 * self.width + self.chance * self.stage_ms * (1.0 + 2.0 * self.long)

    def after_place(self, likely: jax.Array, place_ms: jax.Array) -> FirstToken:
        """The same of a request that is ``likely`` to wait for a place, exponentially, ``place_ms`` on average."""
        chance = 1.0 - (1.0 - self.chance) * (1.0 - likely)
        long = self.long * (1.0 - likely)
        others = self.chance * self.stage_ms * (1.0 + 2.0 * self.long)
        mean = others + likely * (self.placed_ms + place_ms - others)
        width = self.width + likely * (self.placed_width - self.width)
        return self._replace(width=width, chance=chance, stage_ms=mean / (chance * (1.0 + 2.0 * long)), long=long)


def first_token(
    prompts: Prompts,
    apart: Apart,
    flow: Flow,
    waited_ms: jax.Array,
    configuration: Configuration,
    params: EngineParams,
) -> FirstToken:
    """TTFT of the second's requests, the line apart.

    Args:
        prompts: what a prompt adds, at the three nodes.
        apart: what a prompt takes on a GPU of its own.
        flow: of the second; each of its requests meets the others.
        waited_ms: mean wait in line, which holds a part of the wait for others' prompts.
        configuration: GPUs that serve.
        params: the engine: ``path_ms`` (h), ``first_token_iterations``; of the traffic ``arrival_scv``, ``prompt_cv``.
    """
    gpus, split, admitted, t = configuration.gpus, configuration.prefill_gpu, flow.admitted, flow.iteration_ms
    # the shortest of several queues takes them in turn
    prompt_gpus = configuration.prompt_gpus
    scv, path_ms = params.arrival_scv / prompt_gpus, params.path_ms
    extra = jnp.where(split, 0.0, params.first_token_iterations)
    others = jnp.maximum(admitted - jnp.minimum(scv, 1.0), 0.0) / prompt_gpus
    seen = others / SECOND_MS  # requests a ms
    added, further = prompts.added_ms, prompts.further
    whole = tuple(jnp.where(split, x, p + f * t) for p, f, x in zip(added, further, apart.prompt_ms, strict=True))
    p = over_nodes(whole)
    square = over_nodes(tuple(x * x for x in whole))
    p, square = once(p, square)
    # two different requests of a second whose mean is known are less alike than that mean with itself
    unlike = 1.0 / (1.0 + params.prompt_cv**2 / jnp.maximum(admitted, 1.0))
    load = jnp.minimum(seen * p, 1.0)
    growth = prefills_ahead(others, p)  # load / (1 - load)
    # the iteration that an arrival falls into: E[T^2] / E[T]
    lengthened = scv * square / jnp.maximum(p, TINY) * growth / (1.0 + load)
    inspected = t * (1.0 + growth) + lengthened
    busy = 1.0 - jnp.exp(-flow.running / gpus - admitted / (SECOND_MS * gpus) * (p + t))
    growth, lengthened, inspected, busy = once(growth, lengthened, inspected, busy)
    per_prompt = t * prompts.iterations  # those that came with it take room: an iteration's worth is one more iteration
    with_it = scv * load * (inspected - (1.0 - unlike) * lengthened) * (1.0 + per_prompt / jnp.maximum(p, TINY))
    # prompts beyond what one iteration has room for queue as at a server of their own
    service = p + jnp.where(split, 0.0, per_prompt)
    squares = over_nodes(tuple(jnp.where(split, w, x + per_prompt) ** 2 for x, w in zip(added, whole, strict=True)))
    queue = 0.5 * scv * squares / service * prefills_ahead(others, service) - waited_ms
    ahead = jnp.where(split, jnp.maximum(queue, 0.0), busy * jnp.maximum(with_it, queue - 0.5 * (inspected - t)))
    (ahead,) = once(ahead)
    # one more iteration holds what came during the last of its own, as far as it has room
    chunk = prompts.chunk_ms
    last = over_nodes(tuple(jnp.where(f > 0, x - f * (chunk + t), x) for x, f in zip(whole, further, strict=True)))
    pieces = over_nodes(tuple(jnp.where(f > 0, chunk, x) for x, f in zip(whole, further, strict=True)))
    came = extra * seen * unlike * pieces * (t + last + ahead)
    later = came * (1.0 - jnp.exp(-chunk / jnp.maximum(came, TINY)))
    # who waits for a place enters with those who got one at the end of the same iteration
    slowed = flow.slowed_ms
    placed = load * slowed
    placed = placed + jnp.minimum(extra * seen * unlike * pieces * (t + last + placed), chunk)
    later, placed = once(later, placed)
    # a prefill GPU hands a prompt back over the link, in the midst of an iteration of the other
    back = tuple(jnp.where(split, x + 0.5 * busy * t, 0.0) for x in apart.link_ms)
    own = tuple(path_ms + (1.0 + extra) * t + x + y for x, y in zip(whole, back, strict=True))
    width = busy * jnp.where(split, t, inspected)
    met_by = seen * (width + extra * (t + p)) + jnp.where(split, load, 0.0)
    chance = jnp.clip(1.0 - jnp.exp(-met_by), 1e-4, 1.0)
    chance, met_by = once(chance, met_by)
    delay = (ahead + later) / chance
    # a Poisson number of others, at least one: relative second moment of their prompts' time
    second = chance * (square / jnp.maximum(met_by * p * p, TINY) + 1.0)
    s = jnp.clip(second, 4.0 / 3.0, 2.0)
    curve = 10.0 - 4.0 * s
    long = (curve + jnp.sqrt(curve * curve - 16.0 * s * (s - 2.0))) / (8.0 * s)
    own, (width, long) = once(*own), once(width, long)
    return FirstToken(own, width, chance, delay / (1.0 + 2.0 * long), long, slowed, placed)


@compile_unit
def share_within(first: FirstToken, chance: Chance, limit: jax.Array, age: jax.Array, spread: jax.Array) -> jax.Array:
    """Share of requests whose first token comes within ``limit`` ms.

    Args:
        first: the distribution of a request that finds no line.
        chance: the wait that chance makes near a limit: far longer than the rest where there is one, so that both are
            taken to be independent.
        limit: ms, may be infinite.
        age: mean wait in line of those that enter, ms.
        spread: ms over which that wait is spread, evenly.
    """
    by_chance = chance.scale_ms * normal_share(-chance.slack)
    width = jnp.maximum(jnp.sqrt(first.width**2 + spread**2 + 12.0 * by_chance * by_chance), 0.1)
    start = age + 0.5 * (first.width - width)
    stage = jnp.maximum(first.stage_ms, 0.1)
    width, stage, inverse_width, inverse_stage = once(width, stage, 1.0 / width, 1.0 / stage)
    total = jnp.zeros_like(width)
    for weight, own in zip(NODE_WEIGHTS, first.own, strict=True):
        # CDF of U(0, width) plus, with a chance, the stages: with H the integral of their CDF, (H(x) - H(x - w)) / w
        x = jnp.minimum(limit, 1e9) - start - own
        even = jnp.clip(x, 0.0, width) * inverse_width
        late = _integral(x * inverse_stage, first.long) - _integral((x - width) * inverse_stage, first.long)
        total = total + weight * (even + first.chance * (late * stage * inverse_width - even))
    left = jnp.maximum(jnp.minimum(limit, 1e9) - age - first.mean, 0.0)
    spared = normal_share(jnp.maximum(chance.slack, 0.0) + left / jnp.maximum(chance.scale_ms, 0.1))
    return total * jnp.where(chance.slack > 0, spared, 1.0)


def _integral(y: jax.Array, long: jax.Array) -> jax.Array:
    """Integral up to y of the CDF of one stage of mean 1, or with the share ``long`` of three."""
    y = jnp.maximum(y, 0.0)
    fall = jnp.exp(-y)
    return y - (1.0 + 2.0 * long) * (1.0 - fall) + long * fall * y * (2.0 + 0.5 * y)


@compile_unit
def quantiles(
    first: FirstToken, chance: Chance, age: jax.Array, spread: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Median, 90th and 99th percentile of the time to first token, ms, from a lognormal of its mean and variance
    above the least that it can be."""
    mean = over_nodes(first.own)
    spread_own = over_nodes(tuple((x - mean) ** 2 for x in first.own))
    even = first.width**2 + spread**2
    moment = first.stage_ms**2 * (2.0 + 10.0 * first.long)
    late = first.chance * moment - (first.chance * first.stage_ms * (1.0 + 2.0 * first.long)) ** 2
    least = jnp.minimum(jnp.minimum(first.own[0], first.own[1]), first.own[2]) + jnp.maximum(age - 0.5 * spread, 0.0)
    above = jnp.maximum(first.mean + chance.mean_ms + age - least, 0.1)
    sigma_square = jnp.log(1.0 + (spread_own + even / 12.0 + late + chance.scale_ms * chance.mean_ms) / (above * above))
    sigma = jnp.sqrt(sigma_square)
    median, sigma, least = once(above * jnp.exp(-0.5 * sigma_square), sigma, least)
    return least + median, least + median * jnp.exp(1.2816 * sigma), least + median * jnp.exp(2.3263 * sigma)
