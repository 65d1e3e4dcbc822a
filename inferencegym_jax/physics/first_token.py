"""The time to first token of a request that finds no line: its mean, and its distribution.

An arrival waits for the iteration under way, shares the next one with the prompts that came with it, and its first
token is seen one iteration later. Iterations are lengthened by the prompts of others: the mean follows from the
moments of ``T' = t + sum of p over the arrivals of T``, and what others add is spread exponentially. Symbols:
docs/physics.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams
from inferencegym_jax.physics.iteration import NODE_WEIGHTS, TINY, Prompts, over_nodes
from inferencegym_jax.physics.line import SECOND_MS


class FirstToken(NamedTuple):
    """Time to first token beside the line: ``own + U(0, width)``, and an exponential with a chance; ms."""

    own: tuple[jax.Array, ...]  # at the three nodes of the prompt lengths
    width: jax.Array  # of the uniform part
    chance: jax.Array  # that others' prompts lengthen it
    delay: jax.Array  # mean ms by which they do then

    @property
    def mean(self) -> jax.Array:
        """Mean over requests, ms."""
        return over_nodes(self.own) + 0.5 * self.width + self.chance * self.delay


def first_token(
    prompts: Prompts,
    iteration: jax.Array,
    admitted: jax.Array,
    running: jax.Array,
    gpus: jax.Array,
    clear: jax.Array,
    params: EngineParams,
) -> FirstToken:
    """TTFT of the second's requests, the line apart.

    Args:
        prompts: what a prompt adds, at the three nodes.
        iteration: t, ms.
        admitted: requests that enter in this second; each of them meets the others.
        running: mean number in decode, on one GPU.
        gpus: engines that share the requests.
        clear: share of the second in which no line from before is left.
        params: the engine: ``path_ms`` (h), ``first_token_iterations``; ``arrival_scv`` of the traffic.
    """
    scv, path_ms, extra = params.arrival_scv, params.path_ms, params.first_token_iterations
    t = iteration
    others = jnp.maximum(admitted - jnp.minimum(scv, 1.0), 0.0) / gpus
    seen = others / SECOND_MS  # requests a ms
    whole = [p + f * t for p, f in zip(prompts.added_ms, prompts.further, strict=True)]
    p = over_nodes(tuple(whole))
    square = over_nodes(tuple(x * x for x in whole))
    growth = met(others, p)  # load / (1 - load)
    mean_t = t * (1.0 + growth)
    # the iteration that an arrival falls into: E[T^2] / E[T]
    inspected = mean_t + scv * square / jnp.maximum(p, TINY) * met(others, p) / (1.0 + jnp.minimum(seen * p, 1.0))
    busy = 1.0 - jnp.exp(-running - admitted / (SECOND_MS * gpus) * (p + t))
    load = jnp.minimum(seen * p, 1.0)
    with_it = scv * load * inspected
    # prompts beyond what one iteration has room for queue as at a server of their own
    per_prompt = t * prompts.tokens / prompts.chunk
    service = p + per_prompt
    squares = over_nodes(tuple((x + per_prompt) ** 2 for x in prompts.added_ms))
    queued = 0.5 * scv * squares / service * met(others, service) - (0.5 * inspected - 0.5 * t)
    ahead = busy * jnp.maximum(with_it, queued) * clear
    later = extra * load * (t + p + ahead)
    own = tuple(path_ms + (1.0 + extra) * t + x for x in whole)
    width = busy * inspected
    chance = jnp.clip(1.0 - jnp.exp(-seen * (width + extra * (t + p))), TINY, 1.0)
    return FirstToken(own, width, chance, (ahead + later) / chance)


def met(others: jax.Array, service: jax.Array) -> jax.Array:
    """``rho / (1 - rho)`` of Pollaczek-Khinchine where a second's arrivals are counted, not a rate.

    ``others`` requests (m) come at independent moments of the second, each needs ``service`` ms, a share r of it: the
    k-th term ``rho^k`` of the series is then ``m (m - 1) ... (m - k + 1) r^k``, since a request meets k different ones.
    Averaged over Poisson counts these are the powers of the true rate. Two terms are taken as they are; the rest is
    ``int exp(-x) (1 + r x)^m dx``, a Mills ratio to second order in log(1 + r x), by its bound in Abramowitz and Stegun
    7.1.13. To 4 % up to r m = 1; what is beyond is the line's, which the step carries.
    """
    r = jnp.minimum(service / SECOND_MS, 1.0 / jnp.maximum(others, 1.0))
    fewer, fewest = jnp.maximum(others - 1.0, 0.0), jnp.maximum(others - 2.0, 0.0)
    idle = 1.0 - fewest * r
    rest = 2.0 / (idle + jnp.sqrt(idle * idle + (8.0 / math.pi) * fewest * r * r))
    return others * r * (1.0 + fewer * r * rest)


def share_within(first: FirstToken, limit: jax.Array, age: jax.Array, spread: jax.Array) -> jax.Array:
    """Share of requests whose first token comes within ``limit`` ms.

    Args:
        first: the distribution of a request that finds no line.
        limit: ms, may be infinite.
        age: mean wait in line of those that enter, ms.
        spread: ms over which that wait is spread, evenly.
    """
    width = jnp.maximum(jnp.sqrt(first.width**2 + spread**2), 0.1)
    start = age + 0.5 * (first.width - width)
    delay = jnp.maximum(first.delay, 0.1)
    total = jnp.zeros_like(width)
    for weight, own in zip(NODE_WEIGHTS, first.own, strict=True):
        x = jnp.minimum(limit, 1e9) - start - own
        total = total + weight * _cumulative(x, width, first.chance, delay)
    return total


def _cumulative(x: jax.Array, width: jax.Array, chance: jax.Array, delay: jax.Array) -> jax.Array:
    """CDF at x of ``U(0, width)`` plus, with a chance, an exponential of mean ``delay``."""
    inside = jnp.clip(x, 0.0, width)
    even = inside / width
    beyond = jnp.maximum(x - width, 0.0) / delay
    ratio = delay / width
    late = jnp.exp(-beyond) - jnp.exp(-jnp.maximum(x, 0.0) / delay)
    # below the width: x/w - m/w (1 - e^{-x/m}); above: 1 - m/w (e^{-(x-w)/m} - e^{-x/m})
    both = jnp.where(x > 0, even - ratio * late, 0.0)
    return (1.0 - chance) * even + chance * both


def quantiles(first: FirstToken, age: jax.Array, spread: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Median, 90th and 99th percentile of the time to first token, ms, from a lognormal of its mean and variance
    above the least that it can be."""
    mean = over_nodes(first.own)
    spread_own = over_nodes(tuple((x - mean) ** 2 for x in first.own))
    even = first.width**2 + spread**2
    late = first.chance * (2.0 - first.chance) * first.delay**2
    least = jnp.minimum(jnp.minimum(first.own[0], first.own[1]), first.own[2]) + jnp.maximum(age - 0.5 * spread, 0.0)
    above = jnp.maximum(first.mean + age - least, 0.1)
    sigma_square = jnp.log1p((spread_own + even / 12.0 + late) / (above * above))
    sigma = jnp.sqrt(sigma_square)
    median = above * jnp.exp(-0.5 * sigma_square)
    return least + median, least + median * jnp.exp(1.2816 * sigma), least + median * jnp.exp(2.3263 * sigma)
