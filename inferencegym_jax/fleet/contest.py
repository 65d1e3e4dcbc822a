"""Many rules on many conditions in one batch: ``plans x seeds -> FleetStatistics`` or every decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.episodes.rollout import rollout
from inferencegym_jax.fleet.action import FleetAction
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.observation import FleetObservation
from inferencegym_jax.fleet.rules import RulePlan, act_by_rule, rule_start, stack_plans
from inferencegym_jax.fleet.state import FleetParams
from inferencegym_jax.fleet.statistics import FleetStatistics, evaluate_fleet


def act_by_carried_rule(key: jax.Array, seen: FleetObservation, carry: Any) -> tuple[FleetAction, Any]:
    """A policy whose plan stands in its carry, so that a batch may have as many plans as fleets."""
    plan, memory = carry
    action, memory = act_by_rule(plan, key, seen, memory)
    return action, (plan, memory)


def _crossed(params: FleetParams, plans: Sequence[RulePlan], seeds: Any) -> tuple[FleetParams, np.ndarray, Any]:
    """Params, seeds and carries of all plans (slow) with all seeds (fast)."""
    seeds = np.asarray(seeds)
    many, count = len(plans), len(seeds)
    if np.ndim(params.task_id):
        params = jax.tree.map(lambda x: np.concatenate([np.asarray(x)] * many), params)
    carried = jax.tree.map(lambda x: np.repeat(x, count, axis=0), stack_plans(list(plans)))
    start = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (many * count, *np.shape(x))), _start())
    return params, np.tile(seeds, many), (carried, start)


def _start() -> Any:
    with jax.ensure_compile_time_eval():
        return jax.tree.map(np.asarray, rule_start(RulePlan()))


def contest(
    env: FleetEnvironment,
    params: FleetParams,
    plans: Sequence[RulePlan],
    seeds: Any,
    length: int | None = None,
) -> FleetStatistics:
    """Statistics of every plan on every seed.

    Args:
        env: the fleet.
        params: one task, or a batch with one entry a seed.
        plans: the rules.
        seeds: whole numbers, (seeds,).
        length: decisions; default: the task's episode.

    Returns:
        ``FleetStatistics``, each field float64[plans, seeds].
    """
    crossed, all_seeds, carry = _crossed(params, plans, seeds)
    statistics = evaluate_fleet(env, crossed, act_by_carried_rule, all_seeds, length=length, carry=carry, carry_axis=0)
    shape = len(plans), len(np.asarray(seeds))
    fields = {f.name: np.reshape(getattr(statistics, f.name), shape) for f in dataclasses.fields(statistics)}
    return FleetStatistics(**fields)


def decisions(
    env: FleetEnvironment, params: FleetParams, plans: Sequence[RulePlan], seeds: Any, length: int | None = None
) -> dict[str, np.ndarray]:
    """What every plan did in every decision of every seed: float64[plans, seeds, decisions].

    Returns:
        "asked", "serving", "starting", "draining", "gpu_seconds", "on_time", "judged", "load".
    """
    crossed, all_seeds, carry = _crossed(params, plans, seeds)
    task: Any = crossed  # a fleet's, where ``rollout`` speaks of a single engine's
    rows = rollout(env, task, act_by_carried_rule, all_seeds, length=length, carry=carry, carry_axis=0)
    return _columns(rows, (len(plans), len(np.asarray(seeds)), -1))


def decisions_of(
    env: FleetEnvironment, params: FleetParams, policy: Policy, seeds: Any, length: int | None = None
) -> dict[str, np.ndarray]:
    """``decisions`` of one policy of any kind: float64[1, seeds, decisions].

    Args:
        env: the fleet.
        params: one task, or a batch with one entry a seed.
        policy: ``policy(key, observation, carry)`` gives a ``FleetAction``.
        seeds: whole numbers, (seeds,).
        length: decisions; default: the task's episode.
    """
    task: Any = params
    rows = rollout(env, task, policy, np.asarray(seeds), length=length)
    return _columns(rows, (1, len(np.asarray(seeds)), -1))


def _columns(rows: Any, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    metrics: Any = rows.metrics
    workload: Any = rows.workload
    good = jnp.sum(rows.outcome.on_time, axis=-1)
    bad = jnp.sum(rows.outcome.late + rows.outcome.rejected + rows.outcome.failed, axis=-1)
    columns = {name: getattr(metrics, name) for name in ("asked", "serving", "starting", "draining")}
    columns |= {"gpu_seconds": rows.outcome.gpu_seconds, "on_time": good, "judged": good + bad, "load": workload.load}
    return {name: np.asarray(value, np.float64).T.reshape(shape) for name, value in columns.items()}
