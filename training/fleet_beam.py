"""A clairvoyant size for every block of a day: a beam search over sizes that knows all that comes.

``days, price of a late request -> GPU-seconds and late requests of the best sequence found``. What it finds is a lower
bound of what foreknowledge is worth: "at least". A block holds one size; of each size the best few states are kept.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.fleet.action import GPUS
from inferencegym_jax.fleet.transition import over_classes

BLOCK = 6  # decisions
MOVES = (-2, -1, 0, 1, 2)
KEPT = 2  # states of each size
NOWHERE = 1e12


def search(env: ig.FleetEnvironment, params: ig.FleetParams, seeds: Any, price: float) -> dict[str, np.ndarray]:
    """The best sequences found.

    Args:
        env: the fleet.
        params: one task.
        seeds: days.
        price: GPU-seconds that a late request costs.

    Returns:
        "gpu_seconds", "late", "judged": float64[days]; "sizes": int32[days, blocks].
    """
    blocks = int(params.episode_length) // BLOCK
    found = _search(env, blocks, params, jnp.asarray(np.asarray(seeds), jnp.uint32), jnp.float32(price))
    *totals, sizes, parents = jax.tree.map(np.asarray, found)
    best = totals[0].argmin(axis=1)
    days = np.arange(len(best))
    path = np.zeros((len(best), blocks), np.int32)
    at = best
    for block in range(blocks - 1, -1, -1):
        path[:, block] = sizes[block][days, at]
        at = parents[block][days, at]
    picked = [np.asarray(total[days, best], np.float64) for total in totals[1:]]
    return dict(zip(("gpu_seconds", "late", "judged"), picked, strict=True)) | {"sizes": path}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(env: ig.FleetEnvironment, blocks: int, params: ig.FleetParams, seeds: jax.Array, price: jax.Array) -> Any:
    beams = GPUS * KEPT
    state = jax.vmap(lambda seed: env.reset_seed(seed, params)[1])(seeds)
    state = jax.tree.map(lambda x: jnp.repeat(x[:, None], beams, axis=1), state)
    zero = jnp.zeros((len(seeds), beams), jnp.float32)

    def hold(state: Any, size: jax.Array) -> Any:
        def body(both: Any, _: None) -> Any:
            state, sums = both
            _seen, state, _reward, _over, info = env.step_env(None, state, ig.FleetAction(gpus=size), params)
            outcome = info["outcome"]
            late = over_classes(outcome.late + outcome.rejected + outcome.failed)
            judged = late + over_classes(outcome.on_time)
            return (state, (sums[0] + outcome.gpu_seconds, sums[1] + late, sums[2] + judged)), None

        nothing = jnp.float32(0.0)
        return jax.lax.scan(body, (state, (nothing, nothing, nothing)), None, length=BLOCK)[0]

    def block(carry: Any, first: jax.Array) -> Any:
        state, cost, *sums = carry
        moves = jnp.asarray(MOVES, jnp.int32)
        size = jnp.clip(state.asked[..., None] + moves, 1, GPUS)
        slot = jnp.arange(beams)
        size = jnp.where(first, jnp.broadcast_to((slot[:, None] % GPUS) + 1, size.shape), size)
        wide = jax.tree.map(lambda x: jnp.repeat(x[:, :, None], len(MOVES), axis=2), state)
        after, (gpu, late, judged) = jax.vmap(jax.vmap(jax.vmap(hold)))(wide, size)
        total = cost[..., None] + gpu + price * late
        flat = [x.reshape(len(seeds), -1) for x in (total, size)]
        # the same size from the same parent comes up twice at the edges
        spread = 1e-3 * jnp.arange(flat[0].shape[1], dtype=jnp.float32)
        chosen = []
        for gpus in range(1, GPUS + 1):
            rank = jnp.where(flat[1] == gpus, flat[0] + spread, NOWHERE)
            chosen.append(jax.lax.top_k(-rank, KEPT)[1])
        index = jnp.concatenate(chosen, axis=1)

        def take(x: jax.Array) -> jax.Array:
            x = x.reshape(len(seeds), -1, *x.shape[3:])
            return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)

        state = jax.tree.map(take, after)
        before = [jnp.repeat(x[..., None], len(MOVES), axis=2) for x in sums]
        sums = [take(x + y) for x, y in zip(before, (gpu, late, judged), strict=True)]
        picked = take(size)
        wanted = jnp.repeat(jnp.arange(1, GPUS + 1), KEPT)
        cost = jnp.where(picked == wanted, take(total), NOWHERE)
        return (state, cost, *sums), (picked, index // len(MOVES))

    start = (state, zero, zero, zero, zero)
    (_, cost, *sums), (sizes, parents) = jax.lax.scan(block, start, jnp.arange(blocks) == 0)
    return cost, *sums, sizes, parents
