"""What would make an objective feasible that no single deployment meets: more engines, or another objective.

``replays -> Remedies``. Numbers of engines are found by replaying the log on them, each request sent to one in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.recommend.engine_replay import Replayed, quantile
from inferencegym_jax.recommend.quality import Objective

MOST_ENGINES = 64


@dataclass(frozen=True)
class Remedies:
    """What would make the objective feasible; None: nothing of that kind does.

    Attributes:
        engines: of ``knobs``, between which the log is spread.
        gpus: of all of them.
        knobs: of each engine.
        attainment: share of requests within the objective on so many, by replay.
        ttft_ms: objective on TTFT that the closest single deployment meets.
        tpot_ms: objective on TPOT that it meets, where there is one.
        idle_attainment: share of requests within the objective that each find the engine idle.
        longest_request_gb: memory with which the KV pool holds the log's longest request, where it does not.
        most_engines: no more were tried.
    """

    engines: int | None
    gpus: int | None
    knobs: dict[str, Any] | None
    attainment: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    idle_attainment: float
    longest_request_gb: float | None
    most_engines: int = MOST_ENGINES


def fewest_engines(
    replay: Callable[[int, int | None], Replayed], objective: Objective, most: int = MOST_ENGINES
) -> tuple[int, Replayed] | None:
    """The smallest number of engines, from 2 to ``most``, on which the log meets the objective; None: more than that.

    Numbers are tried by one engine's part of the log; the one that is found is then replayed on all of them.

    Args:
        replay: number of engines, how many of them to look at (None: all) -> replay.
        objective: what counts as good.
        most: no more are tried.
    """

    def meets(replayed: Replayed) -> bool:
        return bool(replayed.quality.attainment[0] >= objective.attainment)

    below, above = 1, min(2, most)
    while not meets(replay(above, 1)):
        if above == most:
            return None
        below, above = above, min(2 * above, most)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if meets(replay(middle, 1)) else (middle, above)
    for count in range(above, most + 1):
        kept = replay(count, None)
        if meets(kept):
            return count, kept
    return None


def remedies(
    closest: Replayed,
    candidates: Sequence[Mapping[str, Any]],
    replay: Callable[[Mapping[str, Any], int, int | None], Replayed],
    alone: Callable[[Mapping[str, Any]], tuple[np.ndarray, np.ndarray]],
    objective: Objective,
    longest_request_gb: float | None,
    gpus_per_engine: int = 1,
) -> Remedies:
    """Look for what would make the objective feasible.

    Args:
        closest: replay of the single deployment that comes closest.
        candidates: knobs of deployments of which several may be run, those of one GPU first.
        replay: knobs, number of engines, how many of them to look at -> replay.
        alone: knobs -> TTFT and TPOT of requests that find the engine idle.
        objective: what counts as good.
        longest_request_gb: see ``Remedies``.
        gpus_per_engine: where several GPUs are one.
    """
    best: tuple[int, int, dict[str, Any], float] | None = None  # GPUs, engines, knobs, attainment
    idle = 0.0
    for knobs in candidates:
        each = 2 if knobs["prefill_disagg"] else 1
        ttft, tpot = alone(knobs)
        share = float(((ttft <= objective.ttft_ms) & (tpot <= objective.tpot_ms)).mean())
        idle = max(idle, share)
        if share < objective.attainment:
            continue
        most = MOST_ENGINES if best is None else (best[0] - 1) // each
        smallest_fleet = fewest_engines(functools.partial(replay, knobs), objective, most) if most > 1 else None
        if smallest_fleet is not None:
            engines, replayed = smallest_fleet
            best = (engines * each, engines, dict(knobs), float(replayed.quality.attainment[0]))
    known = ~np.isnan(closest.ttft_ms)
    in_tpot = closest.tpot_ms[known] <= objective.tpot_ms
    needed = quantile(np.where(in_tpot, closest.ttft_ms[known], np.inf), objective.attainment)
    tpot = quantile(closest.tpot_ms[known], objective.attainment) if np.isfinite(objective.tpot_ms) else None
    return Remedies(
        engines=None if best is None else best[1],
        gpus=None if best is None else best[0] * gpus_per_engine,
        knobs=None if best is None else best[2],
        attainment=None if best is None else best[3],
        ttft_ms=needed if np.isfinite(needed) else None,
        tpot_ms=tpot if tpot is not None and tpot > objective.tpot_ms else None,
        idle_attainment=idle,
        longest_request_gb=longest_request_gb,
    )
