"""Speculative decoding: acceptance of drafted tokens and what a verification yields."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EnvParams

DRAFT_LENGTHS = (1, 2, 4, 8)  # of acceptance_lengths after the first, which is 1


def tokens_per_verification(acceptance: jax.Array | float, spec_length: jax.Array) -> jax.Array:
    """Expected tokens that one verification of ``spec_length`` drafts yields, ``(1 - a^(k+1)) / (1 - a)``.

    Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", ICML 2023, eq. 1.
    Written as the sum 1 + a + ... + a^k over the allowed lengths, which needs no division and holds at a = 1.
    """
    a = jnp.asarray(acceptance, jnp.float32)
    square = a * a
    fourth = square * square
    two = 1.0 + a
    three = two + square
    five = 1.0 + a * (two * (1.0 + square))
    nine = five + fourth * a * (two * (1.0 + square))
    options = ((1, two), (2, three), (4, five), (8, nine))
    result = jnp.ones_like(a * spec_length)
    for length, tokens in options:
        result = jnp.where(spec_length >= length, tokens, result)
    return result


def accept_rate(params: EnvParams, bucket: jax.Array, spec_length: jax.Array) -> jax.Array:
    """Accepted share of drafted tokens: ``base (1 - 0.1 bucket) / (1 + 0.15 k)``, at least 0; any k."""
    rate = params.acceptance * (1.0 - 0.1 * bucket) / (1.0 + 0.15 * spec_length)
    return jnp.maximum(rate, 0.0)


def drafting(
    reference: float, params: EnvParams, bucket: jax.Array, spec_length: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Acceptance, tokens a verification yields, and that over what the table's reference acceptance gives; float32."""
    rate = accept_rate(params, bucket, spec_length)
    tokens = tokens_per_verification(rate, spec_length)
    return rate, tokens, tokens / tokens_per_verification(reference, spec_length)


def accepted_tokens(lengths: jax.Array, drafts: jax.Array) -> jax.Array:
    """AL: tokens that a verification of ``drafts`` (int32) yields, from the measured lengths of the traffic's kind.

    Args:
        lengths: float32[..., 5] for 0, 1, 2, 4 and 8 drafts.
        drafts: a length between two of these yields what the lower one does.
    """
    tokens = jnp.broadcast_to(lengths[..., 0], jnp.shape(drafts))
    for i, length in enumerate(DRAFT_LENGTHS):
        tokens = jnp.where(drafts >= length, lengths[..., i + 1], tokens)
    return tokens
