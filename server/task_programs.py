"""The compiled reset and step of a task with its config, and what is asked about its episodes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes.single_step import Outcome, SingleStep
from inferencegym_jax.fleet.grading import grade_fleet
from inferencegym_jax.policies.reactive_control import ReactivePlan
from inferencegym_jax.scoring.episode_log import log_entry
from server.kinds import ENGINE, FLEET
from server.plans import Planner, planned_here


class TaskProgram(SingleStep):
    """The compiled reset and step of one engine's task with one config.

    Args:
        problem: the task and the config.
        plan: makes its reactive controller's plan.
    """

    kind = ENGINE

    def __init__(self, problem: ig.Problem, plan: Planner = planned_here):
        super().__init__(problem.env, problem.params)
        self.problem: ig.Problem = problem
        self._plan = plan

    @property
    def length(self) -> int:
        """Steps of an episode."""
        return self.spec.episode_length

    def grade(self, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The grade of an episode log, see ``ig.grade``."""
        return ig.grade(self.spec.id, log, self.problem.normalisers)

    def log_entry(self, knobs: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """The entry of an episode log of a step."""
        info = outcome.info
        return log_entry(self.spec, knobs, outcome.reward, info["metrics"], info.get("outcome", {}))

    @property
    def spec(self) -> ig.TaskSpec:
        """The task."""
        return self.problem.spec

    @property
    def config(self) -> dict[str, float]:
        """The overrides of its weights and objective."""
        return self.problem.config

    @functools.cached_property
    def reactive_plan(self) -> ReactivePlan:
        """The reactive controller's plan for the task.

        Raises:
            ValueError: see ``reactive_for``.
        """
        return self._plan(self.problem)


class FleetProgram(SingleStep):
    """The compiled reset and step of one fleet's task; of fleet-anywhere, of one seed's condition."""

    kind = FLEET
    config: ClassVar[dict[str, float]] = {}

    def __init__(self, spec: ig.FleetSpec, env: ig.FleetEnvironment, params: ig.FleetParams):
        super().__init__(env, cast(Any, params))
        self.fleet_params: ig.FleetParams = params
        self.spec: ig.FleetSpec = spec
        self.gpus: int = int(np.asarray(params.gpus))  # that the fleet has

    @property
    def length(self) -> int:
        """Decisions of an episode."""
        return self.spec.decisions

    def grade(self, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The grade of an episode log, see ``grade_fleet``."""
        return grade_fleet(log, self.fleet_params, self.spec.title)

    def log_entry(self, knobs: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """The entry of an episode log of a decision."""
        info = outcome.info
        parts = {name: info[name] for name in ("metrics", "outcome")}
        return {"action": knobs, "reward": outcome.reward, **parts}


AnyProgram = TaskProgram | FleetProgram
