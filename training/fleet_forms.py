"""A fleet task as the trainer has it: its environment and view, what is maximised, how a policy is evaluated.

``config -> FleetProblem -> view``; ``reward, outcome -> signal``; ``policy -> FleetRun``. The knobs and the observation
are the fleet's own tables; what PPO does with them is the same as for a single engine.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.adapters.fleet_views import CorrectedFleet, FleetNumbers
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.making import ANYWHERE, OUT_OF_REACH, anywhere_params, fleet_spec_of
from inferencegym_jax.fleet.rules import RulePlan, calm_rule, tuned_rule
from inferencegym_jax.fleet.spec import FleetSpec, fleet_params
from inferencegym_jax.fleet.state import DECISION_S, TRAINING_SEEDS, FleetParams
from inferencegym_jax.fleet.statistics import count, no_counts
from inferencegym_jax.fleet.transition import over_classes
from inferencegym_jax.traffic.days import SEED_STRIDE

VALIDATION_CONDITIONS = TRAINING_SEEDS + (1 << 20)
"""First seed of the conditions on which a run on fleet-anywhere is evaluated: of training pools, none trained on."""
FIELDS = ("on_time_share", "mean_gpus", "changes_an_hour")
STEADY_LOADS = (0.7, 1.0, 1.4, 1.8, 2.2, 2.7, 3.2)
"""Heights of the constant loads that a share of a run's environments may have, GPUs."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetRun:
    """What episodes of a training evaluation came to, an entry an episode; float32."""

    total_reward: Any
    on_time_share: Any
    mean_gpus: Any
    changes_an_hour: Any
    score: Any  # 1 less the price over that of the whole fleet, the reward's own; negative where it is dearer


@dataclass(frozen=True)
class FleetProblem:
    """A fleet task, ready to be trained on.

    Attributes:
        spec: the task; of fleet-anywhere its first condition.
        env: the fleet.
        params: one task, or of fleet-anywhere one for each of the run's environments.
        validation: params of the evaluations, one or one an episode.
    """

    spec: FleetSpec
    env: FleetEnvironment
    params: FleetParams
    validation: FleetParams

    def score(self, found: FleetRun) -> np.ndarray:
        """float64[episodes]."""
        return np.asarray(found.score, np.float64)


@functools.lru_cache(maxsize=4)
def fleet_problem(
    task: int | str,
    table: str | None,
    trace: Any,
    environments: int,
    evaluation_episodes: int,
    hopeless: float = 0.0,
    steady: float = 0.0,
) -> FleetProblem:
    """The problem of a config; of fleet-anywhere every environment has a training condition of its own, of one pool's
    task shares of them, spread evenly, the objectives that nobody can meet and constant loads.

    Raises:
        ValueError, FileNotFoundError: see ``make_fleet``.
    """
    spec = fleet_spec_of(task)
    env, params = ig.make_fleet(task, table=table, trace=trace)
    if spec.name != ANYWHERE or trace is not None:
        mixed = params if steady == 0.0 else with_steady(params, environments, steady)
        mixed = mixed if hopeless == 0.0 else with_hopeless(spec, env, mixed, environments, hopeless)
        return FleetProblem(spec, env, mixed, params)
    conditions = range(TRAINING_SEEDS, TRAINING_SEEDS + environments)
    held = range(VALIDATION_CONDITIONS, VALIDATION_CONDITIONS + evaluation_episodes)
    return FleetProblem(spec, env, anywhere_params(conditions, env.table), anywhere_params(held, env.table))


def with_hopeless(
    spec: FleetSpec, env: FleetEnvironment, params: FleetParams, environments: int, share: float
) -> FleetParams:
    """Params of a task for so many environments, a share of them with ``OUT_OF_REACH`` for objectives and no price on
    late requests.

    Args:
        spec: the task.
        env: the fleet.
        params: one task, or one an environment.
        environments: how many.
        share: of them, spread evenly.
    """
    ttft, tpot = OUT_OF_REACH
    own = fleet_params(spec.replace(slo_ttft_ms=ttft, slo_tpot_ms=tpot), env.table)
    rows = spread_over(params, environments)

    def all_have(value: Any) -> Any:
        return jax.tree.map(lambda x: np.broadcast_to(x, (environments, *np.shape(x))), value)

    # loads stay in the task's own units: it is the same load that nobody can serve within the objectives
    other = rows.replace(
        engine=rows.engine.replace(slo_tpot_ms=all_have(own.engine.slo_tpot_ms)),
        slo_ttft_ms=all_have(own.slo_ttft_ms),
        bare_ttft=all_have(own.bare_ttft),
        bare_tpot=all_have(own.bare_tpot),
        late_price=np.zeros_like(rows.late_price),
    )
    return where(due(environments, share), other, rows)


def with_steady(params: FleetParams, environments: int, share: float) -> FleetParams:
    """Params of a task for so many environments, a share of them with a load that is constant all day and in which
    requests come by chance alone; its heights are ``STEADY_LOADS``, in turn.

    Args:
        params: one task, or one an environment.
        environments: how many.
        share: of them, spread evenly from the other end than ``with_hopeless`` begins at.
    """
    rows = spread_over(params, environments)
    day = rows.engine.day
    steady_ones = due(environments, share)[::-1]
    heights = np.zeros(environments, np.float32)
    heights[steady_ones] = np.resize(np.asarray(STEADY_LOADS, np.float32), int(steady_ones.sum()))
    flat = day.replace(
        hours=np.ones_like(day.hours),
        levels=np.ones_like(day.levels),
        weights=np.zeros_like(day.weights),
        gaps_scv=np.ones_like(day.gaps_scv),
    )
    engine = rows.engine.replace(day=flat, modulation=np.zeros_like(rows.engine.modulation))
    return where(steady_ones, rows.replace(engine=engine, busiest=heights), rows)


def spread_over(params: FleetParams, environments: int) -> FleetParams:
    """Params with an entry an environment, where one task was given: its own, for all."""
    if np.ndim(params.task_id):
        return params
    return jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (environments, *np.shape(x))), params)


def due(environments: int, share: float) -> np.ndarray:
    """bool[environments]: a share of them, spread evenly."""
    return np.floor(share * np.arange(1, environments + 1)) > np.floor(share * np.arange(environments))


def where(mask: np.ndarray, one: Any, other: Any) -> Any:
    """``one`` where ``mask``, bool[environments], else ``other``; leaves have a leading axis of environments."""
    return jax.tree.map(lambda a, b: np.where(mask.reshape(-1, *[1] * (np.ndim(a) - 1)), a, b), one, other)


def view(env: FleetEnvironment, plan: RulePlan | None) -> FleetNumbers:
    """The fleet as the networks see it; with a plan they correct that rule."""
    return FleetNumbers(env) if plan is None else CorrectedFleet(env, plan)


def plan_of(task: int | str, base_rule: str = "tuned") -> RulePlan:
    """The rule that a run on a task corrects: the one tuned on its pool, or its calm one; elsewhere the reactive
    one."""
    name = fleet_spec_of(task).name
    return calm_rule(name) if base_rule == "calm" else tuned_rule(name)


def idle(plan: RulePlan | None, corrections: int) -> Any:
    """What a fleet does before anything is learned."""
    return FleetAction().as_arrays() if plan is None else jnp.zeros(corrections)


def free_knobs(params: FleetParams) -> jax.Array:
    """bool[knobs]: those that the task leaves to the agent; all of a run's conditions leave the same."""
    return jnp.asarray(params.active).reshape(-1, len(FLEET_KNOBS))[0]


def signal(params: FleetParams, hyper: Any, reward: jax.Array, info: Any, limited: bool) -> jax.Array:
    """What PPO maximises in one decision of every fleet; float32[environments].

    ``- (GPU-seconds + late requests at their price + shed ones at theirs) / GPU-seconds of the whole fleet``, with
    ``hyper.late_weight`` added to the price of the reward; requests cost at most ``hyper.late_limit`` of that, where it
    is not 0. Where the task's own price is 0 only those that are shed cost: under an objective that nobody can meet all
    are late, which says nothing of what was decided. A GPU more or less than was asked for before costs
    ``hyper.change_weight`` GPU-seconds besides, which the reward does not price. All of it times
    ``hyper.signal_scale``.

    Args:
        params: one task or one an environment.
        hyper: weights, may be traced.
        reward: the environment's.
        info: of the step.
        limited: whether ``late_limit`` counts.
    """
    outcome = info["outcome"]
    full = DECISION_S * jnp.asarray(params.gpus, jnp.float32)
    shed = over_classes(outcome.rejected) + over_classes(outcome.failed)
    late = jnp.where(jnp.asarray(params.late_price) > 0, over_classes(outcome.late), 0.0) + shed
    work = jnp.asarray(params.work_s)
    missed = (jnp.asarray(params.late_price) + hyper.late_weight) * work * late / full
    if limited:
        missed = jnp.minimum(missed, hyper.late_limit)
    paid = (outcome.gpu_seconds + hyper.change_weight * info["metrics"].changed) / full
    del reward
    return -hyper.signal_scale * (paid + missed + hyper.shed_weight * work * shed / full)


def evaluate(env: FleetNumbers, params: FleetParams, policy: Policy, first: Any, episodes: int) -> FleetRun:
    """Episodes under a view's policy.

    Args:
        env: the view.
        params: one task or one an episode.
        policy: of the view.
        first: seed of the first, may be traced.
        episodes: how many, on days apart.
    """
    seeds = first + SEED_STRIDE * jnp.arange(episodes, dtype=jnp.uint32)
    counted: Any = count
    task: Any = params
    length = int(np.ravel(np.asarray(params.episode_length))[0])
    sums = ig.fold(env, task, policy, seeds, counted, no_counts(), length=length)
    good = sums["on_time"]
    judged = good + sums["late"] + sums["rejected"] + sums["failed"]
    seconds = sums["decisions"] * DECISION_S
    return FleetRun(
        total_reward=sums["reward"],
        on_time_share=jnp.where(judged > 0, good / jnp.maximum(judged, 1e-6), 1.0),
        mean_gpus=sums["gpu_seconds"] / seconds,
        changes_an_hour=sums["changes"] / seconds * 3600.0,
        score=1.0 + sums["reward"] / sums["decisions"],
    )
