"""The KV pool: how far it may fill before prompts wait, what it holds after a second, and who is preempted.

Symbols: docs/physics.md.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax.physics.iteration import TINY


def pool_tokens(memory_gb: jax.Array, weights_gb: jax.Array, runtime_gb: float, bytes_per_token: float) -> jax.Array:
    """Tokens whose keys and values fit beside weights and runtime."""
    return jnp.maximum(memory_gb - weights_gb - runtime_gb, 0.0) * jnp.float32(1e9 / bytes_per_token)


def watermark_room(
    pool: jax.Array, budget: jax.Array, prompt: jax.Array, cv_prompt: jax.Array, output: jax.Array
) -> jax.Array:
    """Mean tokens held by an engine whose admission waits for the watermark ``budget x pool``.

    Right after an admission the tokens used lie evenly below the watermark over one prompt, half an inspected prompt
    below it on average; until the next completion the running grow by O, as far as the pool lasts.
    """
    above = (1.0 - budget) * pool
    growth = output * (1.0 - jnp.exp(-above / jnp.maximum(output, 1.0)))
    return jnp.maximum(budget * pool - 0.5 * prompt * (1.0 + cv_prompt * cv_prompt) + growth, prompt)


def held_after(held: jax.Array, entered: jax.Array, leaving: jax.Array) -> jax.Array:
    """K after the second: tokens that came (prompts, output) and went with those that finished; exact for constant
    rates.

    Args:
        held: K at the start.
        entered: tokens that came: prompts admitted and output decoded.
        leaving: share of the tokens that leaves in a second at the second's rate.
    """
    u = jnp.maximum(leaving, 1e-4)
    decay = jnp.exp(-u)
    return held * decay + entered * (1.0 - decay) / u


def preempted_share(
    pool: jax.Array, budget: jax.Array, prompt: jax.Array, output: jax.Array, full: jax.Array
) -> jax.Array:
    """Requests preempted for each that finishes.

    Between two completions the running grow by O tokens. In a full pool that takes the room of O / (P + O) requests,
    which the youngest give. The free share above the watermark, H tokens, is passed with a probability of ``exp(-theta
    H)``, theta = P / (O (P + O)).

    Args:
        pool: tokens of the pool.
        budget: share of it up to which prompts enter.
        prompt: P.
        output: O.
        full: probability that the pool is full.
    """
    whole = prompt + output
    above = (1.0 - budget) * pool * prompt / jnp.maximum(output * whole, TINY)
    return full * output / whole * jnp.exp(-above)
