"""Engine profiles of several GPUs and weight formats in one stack of lookups, so that one program serves them all.

``profiles, formats -> StackedIterations``; engine i of the stack is tier i of every lookup. What one environment's
param picks costs a lookup an addition to its index, and the same gather.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.physics.kernels import Iterations, between, octave_place, resample
from inferencegym_jax.table import EngineProfile, TableError

SHARED = ("products_tokens", "head_tokens", "decode_sequences", "decode_context", "prefill_tokens")
OF_MODEL = ("runtime_gb", "kv_bytes_per_token")


@dataclass(frozen=True, eq=False)
class StackedIterations(Iterations):
    """The lookups of a stack; static, hashed by its profiles.

    Attributes:
        profile: the first; what is a model's own (weights, KV bytes a token, quality) is read of it.
        engines: (profile, weight format) of each engine.
    """

    engines: tuple[tuple[EngineProfile, int], ...]

    def __hash__(self) -> int:
        """Hash of the engines."""
        return hash(self.engines)

    def __eq__(self, other: object) -> bool:
        """Whether the other stack has the same engines."""
        return isinstance(other, StackedIterations) and self.engines == other.engines

    @functools.cached_property
    def _singles(self) -> list[Iterations]:
        return [Iterations(profile) for profile, _ in self.engines]

    def _rows(self, name: str) -> np.ndarray:
        """float32[engines * nodes]: each engine's row of ``products`` or ``sampled``."""
        rows = []
        for single, (_, tier) in zip(self._singles, self.engines, strict=True):
            row = getattr(single, name).reshape(-1, len(single.tokens))[tier]
            rows.append(resample(single.tokens, row, self.tokens))
        return np.concatenate(rows).astype(np.float32)

    @property
    def most_tokens(self) -> float:
        """Tokens that the nodes of the matrix products reach at least: of the engine that has most."""
        return max(single.most_tokens for single in self._singles)

    @functools.cached_property
    def products(self) -> np.ndarray:
        """float32[engines * nodes], ms."""
        return self._rows("products")

    @functools.cached_property
    def sampled(self) -> np.ndarray:
        """float32[engines * nodes], ms: products over so many tokens and the output head over them."""
        return self._rows("sampled")

    @functools.cached_property
    def attention(self) -> np.ndarray:
        """float32[engines * sequences * contexts], ms of decode attention."""
        return np.concatenate([single.attention for single in self._singles])

    @functools.cached_property
    def prefill(self) -> np.ndarray:
        """float32[engines * nodes], ms of the attention of one whole prompt."""
        return np.concatenate([single.prefill for single in self._singles])

    def budget_ms(self, budget: jax.Array, tier: jax.Array) -> jax.Array:
        """``products_ms`` of an iteration's budget."""
        return self.products_ms(jnp.broadcast_to(budget, jnp.shape(tier)), tier)

    def weight_format(self, tier: jax.Array) -> jax.Array:
        """Weight format (``QuantTier``) of an engine."""
        weights = jnp.zeros_like(tier)
        for i, (_, own) in enumerate(self.engines):
            weights = jnp.where(tier == i, own, weights)
        return weights

    def decode_attention_ms(self, running: jax.Array, context: jax.Array, tier: jax.Array) -> jax.Array:
        """Attention of ``running`` decode requests over ``context`` tokens each, ms."""
        sequences, contexts = self.attention_axes
        row, down = octave_place(running, len(sequences))
        column, along = octave_place(context, len(contexts))
        base = (tier * len(sequences) + row) * len(contexts) + column
        low = between(self.attention, base, along)
        high = between(self.attention, base + len(contexts), along)
        return low + down * (high - low)

    def prefill_attention_ms(self, tokens: jax.Array, tier: jax.Array) -> jax.Array:
        """A: attention of one whole prompt, ms; 0 for none."""
        nodes = len(self.prompt_axis)
        node, place = octave_place(tokens, nodes)
        return between(self.prefill, tier * nodes + node, place) * jnp.minimum(tokens, 1.0)

    def empty_ms(self, tier: jax.Array) -> jax.Array:
        """An iteration over a single token, kernels only, ms."""
        empty = jnp.zeros_like(tier, jnp.float32)
        for i, single in enumerate(self.sampled[:: len(self.tokens)]):
            empty = jnp.where(tier == i, jnp.float32(single), empty)
        return empty


def stacked(engines: Sequence[tuple[EngineProfile, int]]) -> StackedIterations:
    """The stack of some engines.

    Args:
        engines: (profile, weight format) of each.

    Raises:
        TableError: no engines, or profiles of different models or with kernels at different nodes; names both.
    """
    if not engines:
        raise TableError("engines = (): a stack needs at least one")
    first = engines[0][0]
    for profile, _ in engines:
        for name in (*SHARED, *OF_MODEL, "weights_gb"):
            if not np.array_equal(getattr(profile, name), getattr(first, name)):
                raise TableError(
                    f"engines: {name} of {profile.model} on {profile.gpu} is not that of {first.model} on {first.gpu}; "
                    "a stack needs profiles of one model at the same nodes"
                )
    return StackedIterations(first, tuple(engines))
