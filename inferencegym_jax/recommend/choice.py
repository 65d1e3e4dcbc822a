"""Of many judged actions: the one to recommend, and the Pareto front. NumPy only.

The search promises, the replay decides: ``choose`` goes through the actions in the order in which the search's promises
would recommend them, and takes the first that keeps its promise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.models import KNOBS
from inferencegym_jax.recommend.engine_replay import Replayed
from inferencegym_jax.recommend.quality import Objective, Quality

TOLERANCE = 0.01  # of the best goodput: what a cheaper configuration may lack
EQUAL = 0.001  # goodputs that differ by less are the same
AGREES = 0.03  # share of requests by which promise and replay may differ
TRIED = 6  # configurations of as many GPUs that are replayed because they may meet the objective
CLOSEST = 10  # that are replayed where none does
PARETO = 8  # configurations shown of the front


@dataclass(frozen=True)
class Choice:
    """The recommended action.

    Attributes:
        index: of the action.
        meets: whether its replay meets the objective, within ``AGREES`` of its promise.
        agrees: whether promise and replay are within ``AGREES``.
        replayed: index -> replay, of all that were replayed to the end.
        stopped: how many others were given up, as they could not come near the best of as many GPUs.
    """

    index: int
    meets: bool
    agrees: bool
    replayed: dict[int, Replayed]
    stopped: int = 0


def choose(
    actions: Sequence[dict[str, Any]],
    promised: Quality,
    allowed: np.ndarray,
    objective: Objective,
    replay: Callable[[int, float], Replayed | None],
    current: Mapping[str, Any],
) -> Choice:
    """The recommended action.

    The cheapest whose replay meets the objective as promised. Where none does, the cheapest within 1 % of the best
    goodput of the replays of those that promise most; where every request comes too late whatever is done, the one that
    serves most tokens. Of several that promise the same (0.1 %), the one with the fewest changes to what runs now.

    Args:
        actions: all of them.
        promised: by the search.
        allowed: bool[actions].
        objective: what counts as good.
        replay: index, share of requests -> replay of the action as its flags set it, or None where no more than that
            share can be in time.
        current: knobs of what runs now.
    """
    replayed: dict[int, Replayed] = {}
    stopped: set[int] = set()

    def attainment(i: int) -> float:
        """Of the replay; 0 where it was given up."""
        if i not in replayed and i not in stopped:
            rivals = [
                float(r.quality.attainment[0]) for j, r in replayed.items() if promised.gpus[j] == promised.gpus[i]
            ]
            one = replay(i, (1.0 - TOLERANCE) * max(rivals, default=0.0))
            if one is None:
                stopped.add(i)
            else:
                replayed[i] = one
        return float(replayed[i].quality.attainment[0]) if i in replayed else 0.0

    def agrees(i: int) -> bool:
        return abs(float(promised.attainment[i]) - attainment(i)) <= AGREES

    for gpus in np.unique(promised.gpus[allowed]):
        near = allowed & (promised.gpus == gpus) & (promised.attainment >= objective.attainment - AGREES)
        for i in _preferred(actions, promised, near, objective, current)[:TRIED]:
            if attainment(i) >= objective.attainment and agrees(i):
                return Choice(i, True, True, replayed, len(stopped))
    for i in _closest(actions, promised, allowed, current):
        attainment(i)
    for i in _neighbours(actions, allowed, _best(promised, replayed)):
        attainment(i)
    best = _best(promised, replayed)
    return Choice(best, False, agrees(best), replayed, len(stopped))


def _preferred(
    actions: Sequence[dict[str, Any]],
    promised: Quality,
    near: np.ndarray,
    objective: Objective,
    current: Mapping[str, Any],
) -> list[int]:
    """Indices of ``near``, those that promise to meet the objective first, as they would be recommended."""
    goodput = promised.goodput
    meets = near & (promised.attainment >= objective.attainment)
    rank = np.where(meets, 0, 1)
    equal = rank.astype(float)
    if meets.any():
        equal = np.where(meets & (goodput >= (1.0 - EQUAL) * goodput[meets].max()), 0.0, 1.0 + rank)
    changes = np.asarray([_changes(action, current) for action in actions])
    order = np.lexsort((-goodput, np.where(equal == 0.0, changes, 0), equal))
    return [int(i) for i in order if near[i]]


def _closest(
    actions: Sequence[dict[str, Any]], promised: Quality, allowed: np.ndarray, current: Mapping[str, Any]
) -> list[int]:
    """Indices that are worth a replay where nothing promises enough: of each weight format and number of GPUs the best
    one, then the best of all; where no request is in time, by tokens. Of those that promise the same and differ in
    slots only, one."""
    value = promised.goodput if (promised.goodput[allowed] > 0.0).any() else promised.tokens_per_sec
    alike: list[list[int]] = []
    for i in (int(i) for i in np.argsort(-value, kind="stable") if allowed[i]):
        same = (group for group in alike if value[i] >= (1.0 - EQUAL) * value[group[0]])
        like = next((group for group in same if _but_slots(actions[group[0]]) == _but_slots(actions[i])), None)
        if like is None:
            alike.append([i])
        else:
            like.append(i)
    order = [min(group, key=lambda i: _changes(actions[i], current)) for group in alike]
    of_kind: dict[Any, list[int]] = {}
    for i in order:
        of_kind.setdefault((actions[i]["quant_tier"], actions[i]["prefill_disagg"]), []).append(i)
    picked = [i for kind in of_kind.values() for i in kind[:1]]
    return list(dict.fromkeys([*order[: CLOSEST - len(picked)], *picked]))


def _but_slots(action: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in action.items() if name != "batch_size"}


def _changes(action: Mapping[str, Any], current: Mapping[str, Any]) -> int:
    return sum(action[name] != current[name] for name in KNOBS)


def _neighbours(actions: Sequence[dict[str, Any]], allowed: np.ndarray, index: int) -> list[int]:
    """Indices of the actions that are allowed and differ from one in slots or drafts only, by one step."""
    indices: list[int] = []
    for knob in ("batch_size", "spec_length"):
        others = {name: value for name, value in actions[index].items() if name != knob}
        line = [i for i, action in enumerate(actions) if allowed[i] and {**others, knob: action[knob]} == action]
        line.sort(key=lambda i: actions[i][knob])
        at = [actions[i][knob] for i in line].index(actions[index][knob])
        indices += [line[j] for j in (at - 1, at + 1) if 0 <= j < len(line)]
    return indices


def _best(promised: Quality, replayed: dict[int, Replayed]) -> int:
    """The cheapest within 1 % of the best replayed goodput, or of the most tokens; of those the best."""
    indices = list(replayed)
    goodput, tokens = (
        np.asarray([float(getattr(replayed[i].quality, name)[0]) for i in indices])
        for name in ("goodput", "tokens_per_sec")
    )
    value = goodput if goodput.max() > 0.0 else tokens
    near = value >= (1.0 - TOLERANCE) * value.max()
    order = np.lexsort((-value, promised.gpus[indices], ~near))
    return indices[int(order[0])]


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
