"""The kernels of an engine profile as lookups: matrix products, output head, attention; ms.

Linear between the nodes of the profile, resampled to octaves cut into equal parts, where a node's number stands in the
bits of the float: no search.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import KNOBS
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.table import EngineProfile

PARTS_LOG2 = 3  # an octave is cut into 8 parts; the kernels are measured at nodes that are among them
MANTISSA_BITS = 23
# A lookup is flat past its axis, so an axis reaches what the step may ask for, whatever its profile's nodes span: a
# table measured up to 32 requests and prompts of 256 tokens serves 64 of them, and iterations of many prompts.
MOST_TOKENS = 8192.0  # of an iteration, at least: its budget where that is more
MOST_RUNNING = int(KNOBS["batch_size"].high)
LONGEST = 32768.0  # context or prompt; the axis reaches twice as far


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


def most_tokens(profile: EngineProfile) -> float:
    """Tokens of one iteration up to which a profile's matrix products are looked up: to its last node and its own
    budget, and to ``MOST_TOKENS`` at least."""
    return float(max(profile.products_tokens[-1], profile.head_tokens[-1], profile.tokens_per_iteration, MOST_TOKENS))


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
        return octaves(self.most_tokens)

    @property
    def most_tokens(self) -> float:
        """Tokens that the nodes of the matrix products reach at least."""
        return most_tokens(self.profile)

    @functools.cached_property
    def products(self) -> np.ndarray:
        """float32[tiers * nodes], ms."""
        rows = [resample(self.profile.products_tokens, row, self.tokens) for row in self.profile.products_ms]
        return np.concatenate(rows).astype(np.float32)

    @functools.cached_property
    def sampled(self) -> np.ndarray:
        """float32[tiers * nodes], ms: products over so many tokens and the output head over them."""
        head = resample(self.profile.head_tokens, self.profile.head_ms, self.tokens)
        return (self.products.reshape(-1, len(head)) + head).astype(np.float32).ravel()

    @functools.cached_property
    def attention_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes of decode attention: sequences, and tokens of each."""
        profile = self.profile
        sequences = max(profile.decode_sequences[-1], MOST_RUNNING)
        return octaves(sequences), octaves(2.0 * max(profile.decode_context[-1], LONGEST))

    @functools.cached_property
    def attention(self) -> np.ndarray:
        """float32[sequences * contexts], ms of decode attention."""
        profile = self.profile
        sequences, contexts = self.attention_axes
        by_context = np.stack([resample(profile.decode_context, row, contexts) for row in profile.decode_attention_ms])
        columns = [resample(profile.decode_sequences, column, sequences) for column in by_context.T]
        return np.stack(columns, axis=1).astype(np.float32).ravel()

    @functools.cached_property
    def prompt_axis(self) -> np.ndarray:
        """Nodes of a prompt's attention, tokens."""
        return octaves(2.0 * max(self.profile.prefill_tokens[-1], LONGEST))

    @functools.cached_property
    def prefill(self) -> np.ndarray:
        """float32[nodes], ms of the attention of one whole prompt."""
        profile = self.profile
        return resample(profile.prefill_tokens, profile.prefill_attention_ms, self.prompt_axis).astype(np.float32)

    def products_ms(self, tokens: jax.Array, tier: jax.Array) -> jax.Array:
        """L: matrix products of all layers over ``tokens`` tokens, ms."""
        node, place = octave_place(tokens, len(self.tokens))
        return between(self.products, tier * len(self.tokens) + node, place)

    def sampled_ms(self, tokens: jax.Array, tier: jax.Array) -> jax.Array:
        """Matrix products over ``tokens`` tokens and the output head over all of them, ms."""
        node, place = octave_place(tokens, len(self.tokens))
        return between(self.sampled, tier * len(self.tokens) + node, place)

    def budget_ms(self, budget: jax.Array, tier: jax.Array) -> jax.Array:
        """``products_ms`` of an iteration's budget: it is a task's, so that each weight format is looked up once."""
        tiers = range(len(self.products) // len(self.tokens))
        full = [self.products_ms(budget, jnp.int32(i)) for i in tiers]
        whole = full[0]
        for i in tiers[1:]:
            whole = jnp.where(tier >= i, full[i], whole)
        return whole

    def weight_format(self, tier: jax.Array) -> jax.Array:
        """Weight format (``QuantTier``) of a tier: of one table they are the same."""
        return tier

    def decode_attention_ms(self, running: jax.Array, context: jax.Array, tier: jax.Array) -> jax.Array:
        """Attention of ``running`` decode requests over ``context`` tokens each, ms; of one table alike in all
        formats."""
        del tier
        sequences, contexts = self.attention_axes
        row, down = octave_place(running, len(sequences))
        column, along = octave_place(context, len(contexts))
        base = row * len(contexts) + column
        low = between(self.attention, base, along)
        high = between(self.attention, base + len(contexts), along)
        return low + down * (high - low)

    def prefill_attention_ms(self, tokens: jax.Array, tier: jax.Array) -> jax.Array:
        """A: attention of one whole prompt, ms; 0 for none."""
        del tier
        attention_ms = between(self.prefill, *octave_place(tokens, len(self.prompt_axis)))
        return attention_ms * jnp.minimum(tokens, 1.0)

    def empty_ms(self, tier: jax.Array) -> jax.Array:
        """An iteration over a single token, kernels only, ms."""
        singles = self.sampled[:: len(self.tokens)]
        return by_tier(singles, tier)


def by_tier(values: np.ndarray, tier: jax.Array) -> jax.Array:
    """A constant of the weight format in force, float32."""
    constant = jnp.full_like(tier, float(values[0]), jnp.float32)
    for i in range(1, len(values)):
        constant = jnp.where(tier >= i, jnp.float32(values[i]), constant)
    return constant


def between(values: np.ndarray, node: jax.Array, place: jax.Array) -> jax.Array:
    """``values`` (flat) between a node and the next, at a place in [0, 1) on the way, float32[...]."""
    # a kernel of its own: what a gather is fused with is computed number by number
    return compile_unit(functools.partial(_blend, values))(node, place)


def _blend(values: np.ndarray, node: jax.Array, place: jax.Array) -> jax.Array:
    flat, index = jnp.asarray(values), node.astype(jnp.uint32)
    low = flat.at[index].get(mode="promise_in_bounds")
    high = flat.at[index + 1].get(mode="promise_in_bounds")
    return low + place * (high - low)
