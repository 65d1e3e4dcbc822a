"""Exhaustive search over static actions: what is the best that never changing the knobs can do?

Gives each task its throughput normaliser and the static action that a controller has to beat. ``data/calibrate.py``
runs it on the shipped table; ``make`` runs it, coarser, on a user's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.rollout import evaluate
from inferencegym_jax.models import KNOBS, EnvParams, ServeAction, ServeObservation
from inferencegym_jax.scoring.aggregates import EpisodeStatistics

CHUNK = 65536  # environments a call: bounds memory, and one compiled shape serves the whole search


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
    means = jax.tree.map(lambda x: x.mean(axis=1, dtype=np.float64), joined)
    return StaticSearch(actions, means, joined.oom_share.max(axis=1), joined)


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
    search = search_static(env, params, static_actions(env, params), seeds)
    best = optimal_throughput(search, float(np.asarray(params.slo_ms)[0]))
    base = search_static(env, params, [env.table.knob_defaults], seeds)
    length = int(params.episode_length)
    return {
        "optimal_tps": float(search.means.mean_tps[best]),
        "cost_normaliser": float(base.means.total_cost[0]) / length,
    }, search
