"""What one iteration of a continuous-batching engine takes, from what is in it.

``lookups, running requests, context, prompts -> ms``. The weights are read once for all tokens of an iteration, so the
price of a prompt is what its tokens add to the matrix products of the decode tokens beside it, and its attention.
Symbols: docs/physics.md.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams
from inferencegym_jax.numerics.compile_units import compile_unit, once
from inferencegym_jax.physics.kernels import Iterations

TINY = 1e-6
STIFFEST = 0.75  # largest d ln t / d ln n that noise is allowed to build up by
# lognormal prompts at three nodes (Gauss-Hermite): their deviations, and the shares of requests that they stand for
NODE_DEVIATIONS = (-math.sqrt(3.0), 0.0, math.sqrt(3.0))
NODE_WEIGHTS = (1.0 / 6.0, 2.0 / 3.0, 1.0 / 6.0)


class Prompts(NamedTuple):
    """What prompts add to the iterations, at the three nodes of their distribution."""

    added_ms: tuple[jax.Array, ...]  # ms beside the iterations' own time, chunks together
    further: tuple[jax.Array, ...]  # iterations after the first that its chunks take
    mean_ms: jax.Array  # over the nodes
    iterations: jax.Array  # mean iterations' worth of room that a prompt takes
    chunk_ms: jax.Array  # ms that the prompt tokens add for which an iteration has room beside its decode tokens
    shared_ms: jax.Array | None = None  # mean of those that share iterations (``shared_iterations``)


class Apart(NamedTuple):
    """What prompts take on a GPU of their own, at the three nodes of their distribution."""

    prompt_ms: tuple[jax.Array, ...]  # to compute the prompt alone
    link_ms: tuple[jax.Array, ...]  # until its keys and values have crossed the link
    mean_prompt_ms: jax.Array  # over the nodes
    mean_link_ms: jax.Array


class Iteration(NamedTuple):
    """An iteration that holds no prompt."""

    ms: jax.Array  # t
    stiffness: jax.Array  # g = d ln t / d ln n


def iteration(
    grid: Iterations,
    running: jax.Array,
    most: jax.Array,
    context: jax.Array,
    drafts: jax.Array,
    tier: jax.Array,
    params: EngineParams,
) -> Iteration:
    """t: an iteration that holds no prompt.

    ``t = c + c1 n + L(n (k + 1)) + head(n (k + 1)) + attention(n) + k d (L(n) + head(n) + attention(n))``. The step
    knows n on average only: products, whose time rises in steps, are the mean of those at n less and more than
    ``sqrt(n / 2)``, the deviation that a second's own count does not explain, and that leads no further than the slots.

    Args:
        grid: the profile.
        running: n, decode requests.
        most: slots, the most that decode.
        context: mean tokens that each attends to.
        drafts: k, draft tokens of a verification, float32.
        tier: int32, the weight format in force.
        params: ``overhead_ms`` (c), ``overhead_ms_per_sequence`` (c1) and ``draft_share`` (d).
    """
    return compile_unit(functools.partial(_iteration, grid))(running, most, context, drafts, tier, params)


def _iteration(
    grid: Iterations,
    running: jax.Array,
    most: jax.Array,
    context: jax.Array,
    drafts: jax.Array,
    tier: jax.Array,
    params: EngineParams,
) -> Iteration:
    n = jnp.maximum(running, 1.0)
    below, width = jnp.sqrt(0.5 * n), drafts + 1.0
    above = jnp.clip(most - n, 0.0, below)
    fewer, more, attention, draft = once(
        grid.sampled_ms((n - below) * width, tier),
        grid.sampled_ms((n + above) * width, tier),
        grid.decode_attention_ms(n, context, tier),
        params.draft_share * drafts * grid.sampled_ms(n, tier),
    )
    each = params.overhead_ms_per_sequence * n
    slope = (more - fewer) / (below + above)
    products = fewer + slope * below  # of two numbers whose mean is n
    ms = params.overhead_ms + each + products + attention * (1.0 + params.draft_share * drafts) + draft
    rise = n * slope + attention + each  # n dt / dn
    return Iteration(ms, jnp.clip(rise / ms, 0.0, STIFFEST))


def rough_iteration_ms(
    grid: Iterations, running: jax.Array, context: jax.Array, drafts: jax.Array, tier: jax.Array, params: EngineParams
) -> jax.Array:
    """t nearly as ``iteration`` has it: at n itself, and a draft over one token. Arguments as there."""
    return compile_unit(functools.partial(_rough_iteration, grid))(running, context, drafts, tier, params)


def _rough_iteration(
    grid: Iterations, running: jax.Array, context: jax.Array, drafts: jax.Array, tier: jax.Array, params: EngineParams
) -> jax.Array:
    n = jnp.maximum(running, 1.0)
    attention = grid.decode_attention_ms(n, context, tier)
    draft = params.draft_share * drafts
    overhead = params.overhead_ms + params.overhead_ms_per_sequence * n
    target = grid.sampled_ms(n * (drafts + 1.0), tier)
    return overhead + target + draft * grid.empty_ms(tier) + (1.0 + draft) * attention


@compile_unit
def prompt_nodes(mean: jax.Array, square_cv: jax.Array) -> tuple[jax.Array, ...]:
    """Three prompt lengths (tokens) that stand for lognormal ones of this mean and squared coefficient of variation.

    Gauss-Hermite quadrature on the logarithm, scaled so that the mean is exact; weights ``NODE_WEIGHTS``.
    """
    sigma = jnp.sqrt(jnp.log(1.0 + square_cv))
    (up,) = once(jnp.exp(NODE_DEVIATIONS[2] * sigma))
    # mean / (w0 / up + w1 + w2 up), without the division by up
    (low,) = once(mean / (NODE_WEIGHTS[0] + up * (NODE_WEIGHTS[1] + NODE_WEIGHTS[2] * up)))
    return low, low * up, low * up * up


def over_nodes(values: tuple[jax.Array, ...]) -> jax.Array:
    """Mean over requests of what the three nodes have."""
    return NODE_WEIGHTS[0] * values[0] + NODE_WEIGHTS[1] * values[1] + NODE_WEIGHTS[2] * values[2]


def prompts_ms(
    grid: Iterations,
    nodes: tuple[jax.Array, ...],
    beside: jax.Array,
    budget: jax.Array,
    cached_share: jax.Array,
    tier: jax.Array,
) -> Prompts:
    """What a prompt adds to the iterations that take it in, chunk by chunk.

    ``p = f (L(m + b) - L(m)) + L(m + rest) - L(m) + A(P) - A(cached)`` with m decode tokens beside it, b the room that
    they leave, f = ceil(U / b) - 1 full chunks of the U tokens that are not cached, and A the attention of a prompt.

    Args:
        grid: the profile.
        nodes: prompt lengths, tokens.
        beside: m, decode tokens of the iteration.
        budget: tokens of one iteration.
        cached_share: share of a prompt that the prefix cache holds: attended to, not computed.
        tier: int32, the weight format in force.
    """
    return compile_unit(functools.partial(_prompts, grid))(nodes, beside, budget, cached_share, tier)


def chunked_ms(
    grid: Iterations,
    tokens: jax.Array,
    beside: jax.Array,
    room: jax.Array,
    inverse: jax.Array,
    base: jax.Array,
    whole: jax.Array,
    tier: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Iterations after the first that so many prompt tokens take, and the products that they add to all of them, ms.

    Args:
        grid: the profile.
        tokens: to compute, at least 1.
        beside: m, decode tokens of the iteration.
        room: b, tokens for which it has room beside them; ``inverse`` is 1 / b.
        inverse: see ``room``.
        base: L(m).
        whole: L(m + b) - L(m).
        tier: int32, the weight format in force.
    """
    chunks = jnp.maximum(jnp.ceil(tokens * inverse - 1e-6) - 1.0, 0.0)
    rest = grid.products_ms(beside + jnp.maximum(tokens - chunks * room, 1.0), tier) - base
    return chunks, chunks * whole + rest


def _prompts(
    grid: Iterations,
    nodes: tuple[jax.Array, ...],
    beside: jax.Array,
    budget: jax.Array,
    cached_share: jax.Array,
    tier: jax.Array,
) -> Prompts:
    room = jnp.maximum(budget - beside, 1.0)
    base, inverse = once(grid.products_ms(beside, tier), 1.0 / room)
    whole = grid.budget_ms(budget, tier) - base
    computed = 1.0 - cached_share
    added, further = [], []
    for prompt in nodes:
        tokens = jnp.maximum(prompt * computed, 1.0)
        chunks, products = chunked_ms(grid, tokens, beside, room, inverse, base, whole, tier)
        added.append(products + grid.prefill_attention_ms(prompt, tier))
        further.append(chunks)
    added, further = once(*added), once(*further)

    def without_cached() -> tuple[jax.Array, ...]:
        cached = tuple(grid.prefill_attention_ms(prompt * cached_share, tier) for prompt in nodes)
        return tuple(x - y for x, y in zip(added, cached, strict=True))

    # a batch of one task without a cache does not look up what it would save
    added = jax.lax.cond(cached_share > 0, without_cached, lambda: added)
    tokens = over_nodes(tuple(jnp.maximum(x * computed, 1.0) for x in nodes))
    return Prompts(added, further, over_nodes(added), tokens * inverse, whole)
