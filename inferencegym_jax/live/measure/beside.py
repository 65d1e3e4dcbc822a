"""What engines that share a host cost each other: by how much an iteration takes longer while another engine works too.

``two engines -> slices alone and together -> Beside``. Processors, memory bandwidth, caches and the client that reads
the tokens are shared, whatever of them it is; a table that was measured on one engine while the other was idle does not
know. Both sides are closed loops with the same requests, so the ratio of their gaps is that of the iterations.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import httpx
import numpy as np

from inferencegym_jax.live.measure.cell_run import Slice, run_cell
from inferencegym_jax.live.measure.cells import half_width
from inferencegym_jax.live.server.cancellation import cancel_all
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.table.latency_table import LatencyTable

Place: TypeAlias = tuple[httpx.AsyncClient, Endpoint]
BESIDE_S = 5.0  # seconds of a slice, unless said otherwise
TURNS = ("first", "both", "second", "second", "both", "first")  # there and back, so that a drifting host cancels
PRECISE = 0.04  # half-width of the interval, as a share, at which the turns end
MOST_ROUNDS = 3  # of the turns, each a minute and a half on a slow engine


@dataclass(frozen=True)
class Load:
    """What keeps an engine busy while it is measured.

    Attributes:
        concurrency: requests in flight on an engine.
        prompt_tokens: of each.
        output_tokens: mean.
        slice_s: shortest slice, seconds.
    """

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    slice_s: float = BESIDE_S

    def __post_init__(self) -> None:
        if not 0.0 < self.slice_s < math.inf:
            raise ValueError(f"slice_s = {self.slice_s}: must be a number of seconds above 0")


def check_beside(seconds: float) -> None:
    """Raise ``ValueError`` where a slice cannot have that length; 0 is none."""
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"beside-seconds = {seconds}: must be a number of seconds of at least 0 (0: not measured)")


def load_of(table: LatencyTable, slice_s: float) -> Load:
    """Half as many requests at once as the table knows, of its shortest prompt and its mean output."""
    most = int(max(table.axes["batch_size"]))
    prompt = int(min(table.axes["prompt_len_bucket"]))
    return Load(max(most // 2, 1), prompt, int(table.output_length), slice_s)


@dataclass(frozen=True)
class Beside:
    """What was measured.

    Attributes:
        slowdown: an iteration's time while both work, over that while one does; geometric mean over the two engines.
        half_width: of its 95 % interval, as a share.
        alone_ms: mean gap between tokens in each slice with one engine busy; the first engine's, then the second's.
        together_ms: the same with both busy.
    """

    slowdown: float
    half_width: float
    alone_ms: list[float]
    together_ms: list[float]


async def measure_beside(first: Place, second: Place, load: Load) -> Beside:
    """Keep one engine busy, both, and the other one, by turns, until the interval is as narrow as ``PRECISE`` or
    ``MOST_ROUNDS`` rounds are over: on a host that others use too a few slices say little.

    Args:
        first: an open client and the endpoint that ``probe`` returned.
        second: the same of the other engine.
        load: on each engine that is busy.

    Raises:
        EngineError: requests fail one after another, or nothing was measured.
    """
    engines = {"first": first, "second": second}
    alone: dict[str, list[Slice]] = {name: [] for name in engines}
    together: dict[str, list[Slice]] = {name: [] for name in engines}
    for begin in range(0, MOST_ROUNDS * len(TURNS), len(TURNS)):
        for seed, turn in enumerate(TURNS, begin):
            if turn == "both":
                for name, piece in (await _both(engines, load, seed)).items():
                    together[name].append(piece)
            else:
                alone[turn].append(await _slice(engines[turn], load, seed, None))
        if _beside(alone, together).half_width <= PRECISE:
            break
    return _beside(alone, together)


def _beside(alone: Mapping[str, list[Slice]], together: Mapping[str, list[Slice]]) -> Beside:
    ratios = [_mean(together[name]) / _mean(alone[name]) for name in alone]
    sides = [*alone.values(), *together.values()]
    parts = [half_width([x for piece in pieces for x in piece.tpot_ms]) for pieces in sides]
    return Beside(
        slowdown=float(np.exp(np.mean(np.log(ratios)))),
        half_width=math.hypot(*parts) / len(ratios),
        alone_ms=[piece.itl_ms for pieces in alone.values() for piece in pieces],
        together_ms=[piece.itl_ms for pieces in together.values() for piece in pieces],
    )


async def _both(engines: Mapping[str, Place], load: Load, seed: int) -> dict[str, Slice]:
    """A slice of each at the same time; where one fails, the other is not waited for."""
    meet = asyncio.Barrier(len(engines))
    tasks = {name: asyncio.create_task(_slice(engine, load, seed, meet)) for name, engine in engines.items()}
    try:
        done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return {name: task.result() for name, task in tasks.items()}
    finally:
        await cancel_all(tasks.values())


async def _slice(engine: Place, load: Load, seed: int, meet: asyncio.Barrier | None) -> Slice:
    client, endpoint = engine
    return await run_cell(
        client,
        endpoint,
        load.concurrency,
        load.prompt_tokens,
        load.output_tokens,
        seconds=load.slice_s,
        most_seconds=10.0 * load.slice_s,
        seed=seed,
        meet=meet,
    )


def _mean(slices: list[Slice]) -> float:
    return float(np.mean([piece.itl_ms for piece in slices]))
