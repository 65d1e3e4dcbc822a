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
from inferencegym_jax.fleet.rules import RulePlan, tuned_rule
from inferencegym_jax.fleet.spec import FleetSpec, fleet_params
from inferencegym_jax.fleet.state import DECISION_S, TRAINING_SEEDS, FleetParams
from inferencegym_jax.fleet.statistics import count, no_counts
from inferencegym_jax.fleet.transition import over_classes
from inferencegym_jax.traffic.days import SEED_STRIDE

VALIDATION_CONDITIONS = TRAINING_SEEDS + (1 << 20)
"""First seed of the conditions on which a run on fleet-anywhere is evaluated: of training pools, none trained on."""
FIELDS = ("on_time_share", "mean_gpus", "changes_an_hour")


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
    task: int | str, table: str | None, trace: Any, environments: int, evaluation_episodes: int, hopeless: float = 0.0
) -> FleetProblem:
    """The problem of a config; of fleet-anywhere every environment has a training condition of its own, of one pool's
    task a share of them, spread evenly, the objectives that nobody can meet.

    Raises:
        ValueError, FileNotFoundError: see ``make_fleet``.
    """
    spec = fleet_spec_of(task)
    env, params = ig.make_fleet(task, table=table, trace=trace)
    if spec.name != ANYWHERE or trace is not None:
        mixed = params if hopeless == 0.0 else with_hopeless(spec, env, params, environments, hopeless)
        return FleetProblem(spec, env, mixed, params)
    conditions = range(TRAINING_SEEDS, TRAINING_SEEDS + environments)
    held = range(VALIDATION_CONDITIONS, VALIDATION_CONDITIONS + evaluation_episodes)
    return FleetProblem(spec, env, anywhere_params(conditions, env.table), anywhere_params(held, env.table))


def with_hopeless(
    spec: FleetSpec, env: FleetEnvironment, params: FleetParams, environments: int, share: float
) -> FleetParams:
    """Params of a task for so many environments, a share of them with ``OUT_OF_REACH`` for objectives and no price on
    late requests."""
    ttft, tpot = OUT_OF_REACH
    other = fleet_params(spec.replace(slo_ttft_ms=ttft, slo_tpot_ms=tpot), env.table)
    # loads in the task's own units: it is the same load that nobody can serve within the objectives
    other = other.replace(prompt_gpus=params.prompt_gpus, output_gpus=params.output_gpus, work_s=params.work_s)
    other = other.replace(late_price=np.zeros_like(params.late_price))
    due = np.floor(share * np.arange(1, environments + 1)) > np.floor(share * np.arange(environments))
    rows = [
        np.stack([np.asarray(a), np.asarray(b)]) for a, b in zip(*map(jax.tree.leaves, (params, other)), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), [row[due.astype(int)] for row in rows])


def view(env: FleetEnvironment, plan: RulePlan | None) -> FleetNumbers:
    """The fleet as the networks see it; with a plan they correct that rule."""
    return FleetNumbers(env) if plan is None else CorrectedFleet(env, plan)


def plan_of(task: int | str) -> RulePlan:
    """The rule that a run on a task corrects: the one tuned on its pool, elsewhere the reactive one."""
    return tuned_rule(fleet_spec_of(task).name)


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
    are late, which says nothing of what was decided. All of it times ``hyper.signal_scale``.

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
    paid = outcome.gpu_seconds / full
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
