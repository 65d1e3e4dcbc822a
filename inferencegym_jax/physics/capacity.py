"""What one GPU can serve at most: the work of a request, by the iterations of its engine profile.

``lookups, params, prompt, output -> ms of a saturated GPU``. A load is requests/s times that, over 1,000: 1 is one
GPU's capacity. Controllers, the traffic's shares and figures state loads in it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import EngineParams
from inferencegym_jax.physics.iteration import iteration, prompts_ms
from inferencegym_jax.physics.kernels import Iterations, by_tier
from inferencegym_jax.physics.pool import pool_tokens

SIZES = np.unique(np.round(2.0 ** np.arange(0, 9.01, 0.25))).astype(np.float32)  # running requests, 1 to 512


class Work(NamedTuple):
    """What a request takes of a saturated GPU; float32[...]."""

    prompt_ms: jax.Array  # that its prompt adds to the iterations
    decode_ms: jax.Array  # its share of the iterations that hold it
    bare_prompt_ms: jax.Array  # its first token on an idle GPU
    bare_tpot_ms: jax.Array  # an iteration that holds nobody else

    @property
    def ms(self) -> jax.Array:
        """Both together."""
        return self.prompt_ms + self.decode_ms


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
    n, took, added = _by_size(grid, params, prompt, output, tier)
    return (added + jnp.maximum(_last(output) - 1.0, 0.0) * took / n).min(axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def work_within(
    grid: Iterations,
    params: EngineParams,
    prompt: jax.Array,
    output: jax.Array,
    tpot_ms: jax.Array,
    tier: jax.Array | int = 0,
) -> Work:
    """The work of a request on a GPU that keeps the time per output token within an objective on average.

    As ``work_ms``, over the numbers n running at which an iteration with the prompts that n requests bring, ``t(n) + n
    p / (O - 1)``, takes at most ``tpot_ms``; where even one request is slower, that of one.

    Args:
        grid: see ``work_ms``.
        params: see ``work_ms``.
        prompt: see ``work_ms``.
        output: see ``work_ms``.
        tier: see ``work_ms``.
        tpot_ms: objective on the time per output token, ms, float32[...]; infinite for none.
    """
    n, took, added = _by_size(grid, params, prompt, output, tier)
    left = jnp.maximum(_last(output) - 1.0, 0.0)
    decode = left * took / n
    quick = took + n * added / jnp.maximum(left, 1.0) <= _last(tpot_ms)
    best = jnp.where(quick, added + decode, jnp.where(n <= n[..., :1], 1e9, jnp.inf)).argmin(axis=-1)

    def at(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.broadcast_to(values, quick.shape), best[..., None], axis=-1)[..., 0]

    unloaded_ms = added[..., 0] + (1.0 + params.first_token_iterations) * took[..., 0] + params.path_ms
    return Work(at(added), at(decode), unloaded_ms, took[..., 0])


def _last(values: jax.Array) -> jax.Array:
    return jnp.asarray(values, jnp.float32)[..., None]


def _by_size(
    grid: Iterations, params: EngineParams, prompt: jax.Array, output: jax.Array, tier: jax.Array | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """n of ``SIZES`` as far as the pool holds them, t(n), and what a prompt adds beside n: float32[..., sizes], ms."""
    profile = grid.profile
    prompt, output = _last(prompt), _last(output)
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
    return n, took, added
