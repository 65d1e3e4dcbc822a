"""How fast the engine is at a moment, beside what was measured of it before: a host that other guests share is not
always equally fast, and near saturation a tenth of an iteration decides how long the queue is.

``engine, table -> a slice of seconds under constant load -> its gaps over those that the table foretells of it``.
"""

from __future__ import annotations

import asyncio

from inferencegym_jax.live.measure.beside import load_of
from inferencegym_jax.live.measure.cell_run import Slice, run_cell
from inferencegym_jax.live.server.probe import probe
from inferencegym_jax.live.server.streaming import Endpoint, open_client
from inferencegym_jax.live.trial.profile_engine import engine_times
from inferencegym_jax.table.latency_table import LatencyTable

SLICE_S = 3.0


def slowdown_now(endpoint: Endpoint, table: LatencyTable, seed: int, slice_s: float = SLICE_S) -> float:
    """By what an iteration takes longer now than the table says: half its largest batch in flight, its shortest prompt,
    for one slice; below 1 where the engine is faster.

    Args:
        endpoint: the engine, which has nothing else to do.
        table: measured on it.
        seed: of lengths and prompts.
        slice_s: shortest slice, seconds; it takes two requests at least.

    Raises:
        EngineError: requests fail one after another.
    """
    return over_table(asyncio.run(_slice(endpoint, table, seed, slice_s)), table)


def over_table(piece: Slice, table: LatencyTable) -> float:
    """A slice's mean gap over what the table foretells of it: an iteration of as many requests as a token saw beside
    it, and the prefills of others that were counted in the gaps."""
    load = load_of(table, piece.seconds)
    times = engine_times(table)
    decode = times.decode_ms(piece.inside, load.prompt_tokens + 0.5 * load.output_tokens)
    return piece.itl_ms / (decode + piece.prefills * times.prompt_ms(load.prompt_tokens))


async def _slice(endpoint: Endpoint, table: LatencyTable, seed: int, slice_s: float) -> Slice:
    load = load_of(table, slice_s)
    async with open_client(endpoint) as client:
        return await run_cell(
            client,
            (await probe(client, endpoint)).endpoint,
            load.concurrency,
            load.prompt_tokens,
            load.output_tokens,
            seconds=slice_s,
            most_seconds=10.0 * slice_s,
            seed=seed,
        )
