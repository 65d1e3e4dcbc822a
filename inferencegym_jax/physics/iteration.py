"""What one iteration of a continuous-batching engine takes, from what is in it.

``EngineProfile, running requests, context, prompts -> ms``. The weights are read once for all tokens of an iteration,
so the price of a prompt is what its tokens add to the matrix products of the decode tokens beside it, and its
attention. Lookups are linear between the nodes of the profile, resampled to octaves cut into equal parts, where a
node's number stands in the bits of the float: no search. Symbols: docs/physics.md.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import EngineParams
from inferencegym_jax.table import EngineProfile

PARTS_LOG2 = 3  # an octave is cut into 8 parts; the kernels are measured at nodes that are among them
MANTISSA_BITS = 23
TINY = 1e-6
STIFFEST = 0.75  # largest d ln t / d ln n that noise is allowed to build up by
# lognormal prompts at three nodes (Gauss-Hermite): their deviations, and the shares of requests that they stand for
NODE_DEVIATIONS = (-math.sqrt(3.0), 0.0, math.sqrt(3.0))
NODE_WEIGHTS = (1.0 / 6.0, 2.0 / 3.0, 1.0 / 6.0)


def octaves(highest: float) -> np.ndarray:
    """Nodes ``2^e (1 + j / 8)`` from 1 to the first power of two that is not below ``highest``, and one beyond."""
    parts = 2**PARTS_LOG2
    count = max(1, math.ceil(math.log2(highest))) * parts + 2
    exponent, part = np.divmod(np.arange(count), parts)
    return 2.0**exponent * (1.0 + part / parts)


def resample(nodes: Any, values: Any, at: np.ndarray) -> np.ndarray:
    """``values`` at other nodes: linear, the first value below the first node, the last slope beyond the last."""
    nodes, values = np.asarray(nodes, np.float64), np.asarray(values, np.float64)
    result = np.interp(at, nodes, values)
    if len(nodes) > 1:
        slope = (values[-1] - values[-2]) / (nodes[-1] - nodes[-2])
        result = np.where(at > nodes[-1], values[-1] + slope * (at - nodes[-1]), result)
    return result


def octave_place(x: jax.Array, last: int) -> tuple[jax.Array, jax.Array]:
    """Number of the octave node below x (int32) and the place of x towards the next one, in [0, 1).

    Args:
        x: float32; below 1 it counts as 1.
        last: number of nodes; beyond the last x counts as the last.
    """
    shift = MANTISSA_BITS - PARTS_LOG2
    bits = jax.lax.bitcast_convert_type(jnp.maximum(x, 1.0), jnp.int32)
    node = jnp.minimum((bits >> shift) - (127 << PARTS_LOG2), last - 2)
    place = (bits & ((1 << shift) - 1)).astype(jnp.float32) * jnp.float32(2.0**-shift)
    return node, place


class Prompts(NamedTuple):
    """What prompts add to the iterations, at the three nodes of their distribution."""

    added_ms: tuple[jax.Array, ...]  # ms beside the iterations' own time, chunks together
    further: tuple[jax.Array, ...]  # iterations after the first that its chunks take
    mean_ms: jax.Array  # over the nodes
    tokens: jax.Array  # mean tokens of an iteration's budget that a prompt takes
    chunk: jax.Array  # tokens that an iteration has room for beside its decode tokens
    chunk_ms: jax.Array  # ms that so many prompt tokens add


@dataclass(frozen=True)
class Iterations:
    """The lookups of an engine profile; static, hashed by the profile."""

    profile: EngineProfile

    def __hash__(self) -> int:
        """Hash of the profile."""
        return hash(self.profile)

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """Nodes of the matrix products."""
        return octaves(max(self.profile.products_tokens[-1], self.profile.head_tokens[-1]))

    @functools.cached_property
    def products(self) -> np.ndarray:
        """float32[tiers * nodes], ms."""
        rows = [resample(self.profile.products_tokens, row, self.tokens) for row in self.profile.products_ms]
        return np.concatenate(rows).astype(np.float32)

    @functools.cached_property
    def head(self) -> np.ndarray:
        """float32[nodes], ms."""
        return resample(self.profile.head_tokens, self.profile.head_ms, self.tokens).astype(np.float32)

    @functools.cached_property
    def _attention_axes(self) -> tuple[np.ndarray, np.ndarray]:
        profile = self.profile
        return octaves(profile.decode_sequences[-1]), octaves(2.0 * profile.decode_context[-1])

    @functools.cached_property
    def attention(self) -> np.ndarray:
        """float32[sequences * contexts], ms of decode attention."""
        profile = self.profile
        sequences, contexts = self._attention_axes
        by_context = np.stack([resample(profile.decode_context, row, contexts) for row in profile.decode_attention_ms])
        columns = [resample(profile.decode_sequences, column, sequences) for column in by_context.T]
        return np.stack(columns, axis=1).astype(np.float32).ravel()

    @functools.cached_property
    def _prompt_axis(self) -> np.ndarray:
        return octaves(2.0 * self.profile.prefill_tokens[-1])

    @functools.cached_property
    def prefill(self) -> np.ndarray:
        """float32[nodes], ms of the attention of one whole prompt."""
        profile = self.profile
        return resample(profile.prefill_tokens, profile.prefill_attention_ms, self._prompt_axis).astype(np.float32)

    def products_ms(self, tokens: jax.Array, tier: jax.Array) -> jax.Array:
        """Matrix products of all layers over ``tokens`` tokens, ms."""
        count = len(self.tokens)
        node, place = octave_place(tokens, count)
        return _between(self.products, tier * count + node, place)

    def head_ms(self, positions: jax.Array) -> jax.Array:
        """The output head over the positions that are sampled, ms."""
        return _between(self.head, *octave_place(positions, len(self.tokens)))

    def decode_attention_ms(self, running: jax.Array, context: jax.Array) -> jax.Array:
        """Attention of ``running`` decode requests over ``context`` tokens each, ms."""
        sequences, contexts = self._attention_axes
        row, down = octave_place(running, len(sequences))
        column, along = octave_place(context, len(contexts))
        base = row * len(contexts) + column
        low = _between(self.attention, base, along)
        high = _between(self.attention, base + len(contexts), along)
        return low + down * (high - low)

    def prefill_attention_ms(self, tokens: jax.Array) -> jax.Array:
        """Attention of one whole prompt, ms; 0 for none."""
        found = _between(self.prefill, *octave_place(tokens, len(self._prompt_axis)))
        return found * jnp.minimum(tokens, 1.0)


def _between(values: np.ndarray, node: jax.Array, place: jax.Array) -> jax.Array:
    flat, index = jnp.asarray(values), node.astype(jnp.uint32)
    low = flat.at[index].get(mode="promise_in_bounds")
    high = flat.at[index + 1].get(mode="promise_in_bounds")
    return low + place * (high - low)


class Iteration(NamedTuple):
    """An iteration that holds no prompt."""

    ms: jax.Array  # t
    stiffness: jax.Array  # g = d ln t / d ln n


def iteration(
    grid: Iterations, running: jax.Array, context: jax.Array, drafts: jax.Array, tier: jax.Array, params: EngineParams
) -> Iteration:
    """t: an iteration that holds no prompt.

    ``t = c + c1 n + L(n (k + 1)) + head(n (k + 1)) + attention(n) + k d (L(n) + head(n) + attention(n))``. The step
    knows n on average only: products, whose time rises in steps, are the mean of those at n less and more than
    ``sqrt(n / 2)``, the deviation that a second's own count does not explain.

    Args:
        grid: the profile.
        running: n, decode requests.
        context: mean tokens that each attends to.
        drafts: k, draft tokens of a verification, float32.
        tier: int32, the weight format in force.
        params: ``overhead_ms`` (c), ``overhead_ms_per_sequence`` (c1) and ``draft_share`` (d).
    """
    n = jnp.maximum(running, 1.0)
    deviation = jnp.sqrt(0.5 * n)
    width = drafts + 1.0
    attention = grid.decode_attention_ms(n, context)
    fewer, more = (grid.products_ms((n + sign * deviation) * width, tier) for sign in (-1.0, 1.0))
    draft = params.draft_share * drafts * (grid.products_ms(n, tier) + grid.head_ms(n) + attention)
    overhead = params.overhead_ms + params.overhead_ms_per_sequence * n
    ms = overhead + 0.5 * (fewer + more) + grid.head_ms(n * width) + attention + draft
    rise = 0.5 * n / deviation * (more - fewer) + attention + params.overhead_ms_per_sequence * n
    return Iteration(ms, jnp.clip(rise / ms, 0.0, STIFFEST))


def prompt_nodes(mean: jax.Array, cv: jax.Array) -> tuple[jax.Array, ...]:
    """Three prompt lengths (tokens) that stand for lognormal ones of this mean and coefficient of variation.

    Gauss-Hermite quadrature on the logarithm, scaled so that the mean is exact; weights ``NODE_WEIGHTS``.
    """
    sigma = jnp.sqrt(jnp.log1p(cv * cv))
    up = jnp.exp(NODE_DEVIATIONS[2] * sigma)
    scale = 1.0 / (NODE_WEIGHTS[0] / up + NODE_WEIGHTS[1] + NODE_WEIGHTS[2] * up)
    return mean * scale / up, mean * scale, mean * scale * up


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
    room = jnp.maximum(budget - beside, 1.0)
    base = grid.products_ms(beside, tier)
    whole = grid.products_ms(beside + room, tier) - base
    added, further = [], []
    for prompt in nodes:
        tokens = jnp.maximum(prompt * (1.0 - cached_share), 1.0)
        full = jnp.maximum(jnp.ceil(tokens / room) - 1.0, 0.0)
        rest = grid.products_ms(beside + tokens - full * room, tier) - base
        attention = grid.prefill_attention_ms(prompt) - grid.prefill_attention_ms(prompt * cached_share)
        added.append(full * whole + rest + attention)
        further.append(full)
    tokens = over_nodes(tuple(jnp.maximum(x * (1.0 - cached_share), 1.0) for x in nodes))
    return Prompts(tuple(added), tuple(further), over_nodes(tuple(added)), tokens, room, whole)
