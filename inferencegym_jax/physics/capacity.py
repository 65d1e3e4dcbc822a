"""What one GPU can serve at most: the work of a request, by the iterations of its engine profile.

``lookups, params, prompt, output -> ms of a saturated GPU``. A load is requests/s times that, over 1,000: 1 is one
GPU's capacity. Controllers, the traffic's shares and figures state loads in it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import EngineParams
from inferencegym_jax.physics.iteration import iteration, prompts_ms
from inferencegym_jax.physics.kernels import Iterations, by_tier
from inferencegym_jax.physics.pool import pool_tokens

SIZES = np.unique(np.round(2.0 ** np.arange(0, 9.01, 0.25))).astype(np.float32)  # running requests, 1 to 512


@functools.partial(jax.jit, static_argnums=0)
def work_ms(
    grid: Iterations, params: EngineParams, prompt: jax.Array, output: jax.Array, tier: jax.Array | int = 0
) -> jax.Array:
    """Time (ms, float32[...]) that a request takes of a saturated GPU, without drafts.

    ``p + O t(n) / n``: what its prompt adds to the iterations, and its share of the O iterations of t(n) that hold it,
    with the number n running at which that is least, of those that the KV pool holds.

    Args:
        grid: the profile's lookups.
        params: the engine.
        prompt: mean tokens, float32[...].
        output: mean tokens, float32[...].
        tier: weight format.
    """
    profile = grid.profile
    prompt, output = (jnp.asarray(x, jnp.float32)[..., None] for x in (prompt, output))
    tier = jnp.asarray(tier, jnp.int32)
    weights = by_tier(profile.weights_gb, grid.weight_format(tier))
    pool = pool_tokens(params.memory_gb, weights, profile.runtime_gb, profile.kv_bytes_per_token)
    context = prompt + output / 2.0
    n = jnp.minimum(jnp.asarray(SIZES), jnp.maximum(pool / context, 1.0))
    tiers = jnp.broadcast_to(tier, n.shape)
    unbounded = jnp.full_like(n, jnp.inf)
    took = iteration(grid, n, unbounded, jnp.broadcast_to(context, n.shape), jnp.zeros_like(n), tiers, params).ms
    beside = jnp.minimum(n, params.token_budget - 1.0)
    lengths = jnp.broadcast_to(prompt, n.shape)
    added = prompts_ms(grid, (lengths,) * 3, beside, params.token_budget, params.prefix_share, tiers).mean_ms
    return (added + jnp.maximum(output - 1.0, 0.0) * took / n).min(axis=-1)
