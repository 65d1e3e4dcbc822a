"""A clairvoyant size for every block of a day: a beam search over sizes that knows all that comes.

``days, price of a late request -> GPU-seconds and late requests of the best sequence found``. Every sequence is one
that the fleet played, so what it costs is an upper bound of the least cost, and the gap to it "at least" what
foreknowledge is worth. A block is a start's time and holds one size; of each size, and of each size that it had before,
the cheapest state so far is kept: GPUs that were asked for a block ago serve, those that are asked for now do not, and
the cheapest state of a size alone would always be one that asked too late. From each the next block goes up to two GPUs
up or down. All candidates of all days are one batch.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes import parallel
from inferencegym_jax.fleet.action import GPUS
from inferencegym_jax.fleet.state import DECISION_S
from inferencegym_jax.fleet.transition import over_classes

MOVES = (-2, -1, 0, 1, 2)
LEAST_BLOCK, MOST_BLOCK = 3, 20  # decisions
NOWHERE = 1e12


def block_of(params: ig.FleetParams) -> int:
    """Decisions of a block: a start's time, at least 15 s and at most 100."""
    return int(np.clip(round(float(params.start_s) / DECISION_S), LEAST_BLOCK, MOST_BLOCK))


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
    hold = block_of(params)
    blocks = int(params.episode_length) // hold
    seeds = np.asarray(seeds, np.uint32)
    cores = min(parallel.cores(), len(seeds))
    # equal parts, so that one program plays them; what fills the last one up is dropped
    size = -(-len(seeds) // cores)
    padded = np.resize(seeds, cores * size)
    parts = parallel.each(
        lambda part: _search(env, blocks, hold, params, jnp.asarray(part), jnp.float32(price)), np.split(padded, cores)
    )
    results = [jax.tree.map(np.asarray, part) for part in parts]
    best = np.concatenate([part[0].argmin(axis=1) for part in results])
    rows = np.arange(len(padded))
    totals = [np.concatenate([part[i] for part in results]) for i in (1, 2, 3)]
    parents = np.concatenate([part[4] for part in results], axis=1)
    path = np.zeros((len(padded), blocks), np.int32)
    at = best
    for block in range(blocks - 1, -1, -1):
        path[:, block] = 1 + at // len(MOVES)
        at = parents[block][rows, at]
    picked = [np.asarray(total[rows, best], np.float64)[: len(seeds)] for total in totals]
    return dict(zip(("gpu_seconds", "late", "judged"), picked, strict=True)) | {"sizes": path[: len(seeds)]}


@functools.partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=parallel.compiler_options())
def _search(
    env: ig.FleetEnvironment, blocks: int, hold: int, params: ig.FleetParams, seeds: jax.Array, price: jax.Array
) -> Any:
    days, sizes, moves = len(seeds), jnp.arange(1, GPUS + 1), jnp.asarray(MOVES, jnp.int32)
    ways = len(MOVES)
    state = jax.vmap(lambda seed: env.reset_seed(seed, params)[1])(seeds)
    state = jax.tree.map(lambda x: jnp.repeat(x[:, None], GPUS * ways, axis=1), state)
    zero = jnp.zeros((days, GPUS, ways), jnp.float32)

    def held(state: Any, size: jax.Array) -> Any:
        """A block of every candidate: (states after it, GPU-seconds, late, judged)."""

        def body(both: Any, _: None) -> Any:
            state, sums = both
            _seen, state, _reward, _over, info = env.step_env(None, state, ig.FleetAction(gpus=size), params)
            outcome = info["outcome"]
            late = over_classes(outcome.late + outcome.rejected + outcome.failed)
            judged = late + over_classes(outcome.on_time)
            return (state, (sums[0] + outcome.gpu_seconds, sums[1] + late, sums[2] + judged)), None

        nothing = jnp.zeros(size.shape, jnp.float32)
        return jax.lax.scan(body, (state, (nothing, nothing, nothing)), None, length=hold)[0]

    def block(carry: Any, first: jax.Array) -> Any:
        # slot (i, j) holds the best state of size i + 1 that came there by move j; of them goes every move again
        state, cost, *sums = carry
        size = jnp.broadcast_to(sizes[:, None, None] + moves, (days, GPUS, ways, ways))
        legal = (size >= 1) & (size <= GPUS)
        # in the first block every slot is of the fresh fleet: each size once, as if it had stayed
        still = jnp.broadcast_to(moves == 0, (ways, ways)) & (moves == 0)[:, None]
        legal = jnp.where(first, still, legal)
        asked = jnp.clip(size, 1, GPUS).reshape(days, -1)
        wide = jax.tree.map(lambda x: jnp.repeat(x, ways, axis=1).reshape(-1, *x.shape[2:]), state)
        after, block_sums = held(wide, asked.reshape(-1))
        gpu, late, judged = (x.reshape(days, GPUS, ways, ways) for x in block_sums)
        total = jnp.where(legal, cost[..., None] + gpu + price * late, NOWHERE)
        came = total.argmin(axis=2)  # days, size before, move: by which move that size had been reached
        # slot (i, j) of the next block comes from size i - MOVES[j]
        before = jnp.arange(GPUS)[:, None] - moves
        reached = (before >= 0) & (before < GPUS)
        before = jnp.clip(before, 0, GPUS - 1)
        rows, ways_on = jnp.arange(days)[:, None, None], jnp.arange(ways)
        parent = before * ways + came[:, before, ways_on]
        index = parent * ways + ways_on

        def take(x: jax.Array) -> jax.Array:
            return x.reshape(days, GPUS * ways * ways, *x.shape[1:])[rows[..., 0], index.reshape(days, -1)]

        state = jax.tree.map(take, after)
        both = zip(sums, (gpu, late, judged), strict=True)
        sums = [(x[..., None] + y).reshape(days, -1)[rows, index] for x, y in both]
        cost = jnp.where(reached, total.reshape(days, -1)[rows, index], NOWHERE)
        return (state, cost, *sums), parent.reshape(days, -1)

    start = (state, zero, zero, zero, zero)
    (_, cost, *sums), parents = jax.lax.scan(block, start, jnp.arange(blocks) == 0)
    flat = [x.reshape(days, -1) for x in (cost, *sums)]
    return *flat, parents
