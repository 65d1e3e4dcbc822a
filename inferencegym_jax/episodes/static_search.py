"""Search over static actions: what is the best that never changing the knobs can do?

``search_static`` over a grid gives each task its throughput normaliser; ``refine`` searches on between the grid's nodes
for the static action that a controller has to beat. ``data/calibrate.py`` runs both on the shipped table; ``make`` runs
them, coarser, on a user's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.rollout import evaluate
from inferencegym_jax.models import KNOBS, EnvParams, Knob, ServeAction, ServeObservation
from inferencegym_jax.scoring.aggregates import EpisodeStatistics

CHUNK = 2048  # environments a call: bounds memory, and one compiled shape serves the whole search
SPREAD = (-3, -2, -1, 0, 1, 2, 3)  # steps of a number that a round of refinement tries around a centre
FIRST_STEP = 1 / 32  # of a number's range, or of its logarithm's
HALVINGS = 5
CENTRES = 3  # actions that a round searches around, each with other drafts, weights or GPUs
MOST_ROUNDS = 24


@dataclass(frozen=True)
class StaticSearch:
    """Mean statistics of every static action over the seeds.

    Attributes:
        actions: list of knob dicts.
        means: ``EpisodeStatistics`` of float64[actions]: mean over seeds.
        worst_oom_share: float64[actions], the worst seed's.
        per_seed: ``EpisodeStatistics`` of float32[actions, seeds].
    """

    actions: list[dict[str, Any]]
    means: EpisodeStatistics
    worst_oom_share: np.ndarray
    per_seed: EpisodeStatistics


def follow(key: jax.Array, observation: ServeObservation, carry: ServeAction) -> ServeAction:
    """The policy that takes the action in its carry."""
    del key, observation
    return carry


def static_actions(
    env: Environment, params: EnvParams, values: Mapping[str, Sequence[Any]] | None = None
) -> list[dict[str, Any]]:
    """Every combination of the active knobs' values; inactive ones stand at their default.

    Args:
        env: its table's nodes are the values of a knob; of one that no table has, ``Knob.options`` are.
        params: which knobs are active.
        values: name of a knob -> values to try instead.
    """
    defaults, columns = env.table.knob_defaults, []
    for active, (name, knob) in zip(np.asarray(params.active), KNOBS.items(), strict=True):
        nodes = (values or {}).get(name, env.table.axes.get(name, knob.options))
        columns.append([knob.plain(node) for node in nodes] if active else [defaults[name]])
    return [dict(zip(KNOBS, combination, strict=True)) for combination in itertools.product(*columns)]


def search_static(
    env: Environment, params: EnvParams, actions: list[dict[str, Any]], seeds: Any, lanes: int | None = None
) -> StaticSearch:
    """Roll every static action out on every seed, vmapped.

    Args:
        env: the environment.
        params: one task.
        actions: from ``static_actions``.
        seeds: whole numbers, shape (seeds,); every action meets the same ones.
        lanes: environments of a call, for searches that share one compiled shape; default: all, at most ``CHUNK``.
    """
    seeds = np.asarray(seeds)
    count = len(actions) * len(seeds)
    chunk = min(CHUNK, count) if lanes is None else lanes
    columns = {name: np.repeat(np.asarray([action[name] for action in actions]), len(seeds)) for name in KNOBS}
    all_seeds = np.tile(seeds, len(actions))
    parts = []
    for start in range(0, count, chunk):
        index = np.arange(start, start + chunk) % count  # the last chunk wraps round, so that one shape is compiled
        carry = ServeAction(**{name: column[index] for name, column in columns.items()}).as_arrays()
        statistics = evaluate(env, params, follow, all_seeds[index], carry=carry, carry_axis=0)
        parts.append(jax.tree.map(np.asarray, statistics))
    joined = jax.tree.map(lambda *xs: np.concatenate(xs)[:count].reshape(len(actions), len(seeds)), *parts)
    return _summary(actions, joined)


def _summary(actions: list[dict[str, Any]], per_seed: EpisodeStatistics) -> StaticSearch:
    means = jax.tree.map(lambda x: x.mean(axis=1, dtype=np.float64), per_seed)
    return StaticSearch(actions, means, np.asarray(per_seed.oom_share).max(axis=1), per_seed)


Scores: TypeAlias = Callable[[StaticSearch], np.ndarray]
"""float64[actions] of a search: what is to be highest."""


def refine(env: Environment, params: EnvParams, search: StaticSearch, scores: Scores, seeds: Any) -> StaticSearch:
    """Search on around the best actions of a search: lattices of the knobs that are numbers, around the best action and
    the best ones with other drafts, weights or GPUs.

    The steps are halved where a round finds nothing better. What lies between the nodes of a grid and away from its
    best ones stays unseen.

    Args:
        env: the environment.
        params: one task.
        search: of ``static_actions``.
        scores: called again for every round, as what the best action is may depend on all that were tried.
        seeds: as for ``search_static``, the same.

    Returns:
        The search with the actions that were tried in addition at its end.

    Raises:
        ValueError: every action runs out of memory.
    """
    numbers = _numbers(env, params)
    step, halvings = FIRST_STEP, 0
    known = {tuple(action.values()) for action in search.actions}
    for _ in range(MOST_ROUNDS if numbers else 0):
        values = np.where(never_out_of_memory(search), scores(search), -np.inf)
        best = int(np.argmax(values))
        tried = {
            tuple(action.values()): action
            for centre in _centres(search, values)
            for action in _lattice(search.actions[centre], numbers, step)
        }
        fresh = [action for key, action in tried.items() if key not in known]
        if fresh:
            known |= set(tried)
            finer = search_static(env, params, fresh, seeds, CHUNK)
            both = jax.tree.map(lambda a, b: np.concatenate([a, b]), search.per_seed, finer.per_seed)
            search = _summary([*search.actions, *finer.actions], both)
        if not fresh or best_action(search, scores(search)) == best:
            step, halvings = step / 2.0, halvings + 1
            if halvings > HALVINGS:
                break
    return search


def _numbers(env: Environment, params: EnvParams) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of the active knobs that are numbers, within the table's nodes."""
    bounds: dict[str, tuple[float, float]] = {}
    for active, (name, knob) in zip(np.asarray(params.active), KNOBS.items(), strict=True):
        nodes = env.table.axes.get(name, (knob.low, knob.high))
        if active and knob.kind in ("float", "int") and min(nodes) < max(nodes):
            bounds[name] = (float(min(nodes)), float(max(nodes)))
    return bounds


def _centres(search: StaticSearch, values: np.ndarray) -> list[int]:
    """Indices of the best actions, best first, no two of which agree in all knobs that are no numbers."""
    best: dict[tuple[Any, ...], int] = {}
    for i in np.argsort(-values, kind="stable"):
        discrete = tuple(v for name, v in search.actions[i].items() if KNOBS[name].kind not in ("float", "int"))
        if np.isfinite(values[i]):
            best.setdefault(discrete, int(i))
        if len(best) == CENTRES:
            break
    return list(best.values())


def _lattice(
    centre: Mapping[str, Any], numbers: Mapping[str, tuple[float, float]], step: float
) -> Iterator[dict[str, Any]]:
    columns = [[_moved(KNOBS[name], centre[name], n * step, *numbers[name]) for n in SPREAD] for name in numbers]
    for values in itertools.product(*columns):
        yield {**centre, **dict(zip(numbers, values, strict=True))}


def _moved(knob: Knob, value: float, share: float, low: float, high: float) -> Any:
    """A number moved by a share of its range, or of its logarithm's where that is its scale; no further than its ends.
    Four digits: no setting of an engine has more."""
    if knob.scale == "log":
        moved = value * math.exp(share * math.log(high / low))
    else:
        moved = value + share * (high - low)
    return knob.plain(round(min(max(moved, low), high), 0 if knob.kind == "int" else 4))


def never_out_of_memory(search: StaticSearch) -> np.ndarray:
    """bool[actions]: is the action never out of memory on any of the search's seeds. Only such an action is the best
    of anything.

    Raises:
        ValueError: there is none.
    """
    safe = search.worst_oom_share == 0
    if not safe.any():
        raise ValueError(
            "every static action runs out of memory on this table: gpu_mem_gb is above the limit everywhere"
        )
    return safe


def optimal_throughput(search: StaticSearch, slo_ms: float) -> int:
    """Index of the action with the highest mean throughput that never runs out of memory and, where any such action
    manages it, keeps the mean TTFT within the SLO.

    Raises:
        ValueError: every action runs out of memory.
    """
    safe = never_out_of_memory(search)
    within = safe & (search.means.mean_ttft_p50_ms <= slo_ms)
    allowed = within if within.any() else safe
    return int(np.argmax(np.where(allowed, search.means.mean_tps, -np.inf)))


def best_action(search: StaticSearch, values: np.ndarray) -> int:
    """Index of the action with the highest value among those that never run out of memory.

    Args:
        search: every action's statistics.
        values: float64[actions], what is to be highest: the mean score, say.

    Raises:
        ValueError: every action runs out of memory.
    """
    return int(np.argmax(np.where(never_out_of_memory(search), values, -np.inf)))


def normalise(env: Environment, params: EnvParams, seeds: Any) -> tuple[dict[str, float], StaticSearch]:
    """Normalisers of a task on any table: ``optimal_tps`` from the search, ``cost_normaliser`` from the baseline
    action.

    Returns:
        (normalisers, the search over the table's own nodes).
    """
    actions = static_actions(env, params)
    # with the baseline in one search: one compilation
    with_baseline = search_static(env, params, [*actions, env.table.knob_defaults], seeds, CHUNK)
    search = _summary(actions, jax.tree.map(lambda x: x[:-1], with_baseline.per_seed))
    best = optimal_throughput(search, float(np.asarray(params.slo_ms)[0]))
    return {
        "optimal_tps": float(search.means.mean_tps[best]),
        "cost_normaliser": float(with_baseline.means.total_cost[-1]) / int(params.episode_length),
    }, search
