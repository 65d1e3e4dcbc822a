"""Of many judged actions: the one to recommend, and the Pareto front. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym_jax.models import KNOBS
from inferencegym_jax.recommend.quality import Objective, Quality

TOLERANCE = 0.01  # of the best goodput: what a cheaper configuration may lack
EQUAL = 0.001  # goodputs that differ by less are the same
PARETO = 8  # configurations shown of the front


def choose(actions: list[dict[str, Any]], quality: Quality, feasible: np.ndarray, objective: Objective) -> int:
    """Index of the recommended action; ``actions[0]`` runs now.

    The cheapest that meets the objective; where none does, the cheapest within 1 % of the best goodput; where every
    request comes too late whatever is done, the cheapest within 1 % of the most tokens served. Of those the one with
    the best goodput; of equals (0.1 %) the one with the fewest changes to what runs now.
    """
    goodput = np.where(feasible, quality.goodput, -1.0)
    near = feasible & (quality.attainment >= objective.attainment)
    if not near.any():
        value = goodput if goodput.max() > 0.0 else np.where(feasible, quality.tokens_per_sec, -1.0)
        near = value >= (1.0 - TOLERANCE) * value.max()
    cost = np.where(near, quality.gpus, np.inf)  # on one log all serve the same tokens, so GPUs are the cost
    near &= cost <= cost.min() + 1e-9
    near &= goodput >= (1.0 - EQUAL) * goodput[near].max()
    changes = np.asarray([sum(action[name] != actions[0][name] for name in KNOBS) for action in actions])
    order = np.lexsort((-goodput, changes, ~near))
    return int(order[0])


def front(quality: Quality, feasible: np.ndarray) -> list[int]:
    """Indices that no other one beats in goodput, p99 TTFT and GPUs, by goodput; at most ``PARETO``, evenly picked."""
    front: list[int] = []
    order = np.lexsort((quality.ttft_p99_ms, quality.gpus, -quality.goodput))
    for i in order[feasible[order]]:
        rival = np.asarray(front, int)
        beaten = (quality.ttft_p99_ms[rival] <= quality.ttft_p99_ms[i]) & (quality.gpus[rival] <= quality.gpus[i])
        if not beaten.any():
            front.append(int(i))
    picked = np.unique(np.linspace(0, len(front) - 1, min(PARETO, len(front))).round().astype(int))
    return [front[i] for i in picked]
