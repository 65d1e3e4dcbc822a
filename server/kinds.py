"""The two kinds of tasks, a single engine's and a fleet's: knobs, fields and models of each, from its own tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

import inferencegym_jax as ig
from inferencegym_jax.fleet.action import FLEET_KNOBS
from inferencegym_jax.fleet.making import is_fleet
from inferencegym_jax.fleet.state import DECISION_S
from inferencegym_jax.models import KNOBS, Knob
from server.schema_parts import (
    ActionBase,
    ActionModel,
    FleetActionModel,
    FleetMetrics,
    FleetObservationBody,
    FleetObservationModel,
    FleetWorkload,
    Metrics,
    ObservationBody,
    ObservationModel,
    Outcome,
    SentObservation,
    Workload,
    all_tasks,
)


@dataclass(frozen=True)
class Kind:
    """What a task's requests and answers are made of.

    Attributes:
        name: "engine" or "fleet".
        knobs: of an action.
        action: its model.
        observation: the model of what the agent sees.
        sent: the same as OpenEnv sends it.
        metrics, workload: models of what a step measured and of its traffic.
        step_s: simulated seconds of a step.
    """

    name: str
    knobs: Mapping[str, Knob]
    action: type[ActionBase]
    observation: type[BaseModel]
    sent: type[SentObservation]
    metrics: type[BaseModel]
    workload: type[BaseModel]
    step_s: int

    def knobs_in(self, action: ActionBase) -> dict[str, Any]:
        """The knobs of an action; one that was read as the other kind's is read again, as far as it was given.

        Raises:
            pydantic.ValidationError: it has knobs that this kind lacks.
        """
        if not isinstance(action, self.action):
            knobs = {name: getattr(action, name) for name in action.model_fields_set}
            action = self.action.model_validate(knobs)
        return action.knobs()

    def schemas(self) -> dict[str, Any]:
        """JSON schemas of everything that a client sends and gets, as /info has them."""
        return {
            "action_space": self.action.model_json_schema(),
            "observation_space": self.observation.model_json_schema(),
            "metrics": self.metrics.model_json_schema(),
            "workload": self.workload.model_json_schema(),
            "outcome": Outcome.model_json_schema(),
        }


ENGINE = Kind("engine", KNOBS, ActionModel, ObservationBody, ObservationModel, Metrics, Workload, 1)
FLEET = Kind(
    "fleet",
    FLEET_KNOBS,
    FleetActionModel,
    FleetObservationBody,
    FleetObservationModel,
    FleetMetrics,
    FleetWorkload,
    DECISION_S,
)


def kind_of(task: int | str) -> Kind:
    """The kind of a task that there is, by id or name."""
    return FLEET if is_fleet(task) else ENGINE


def spec_of(task: int | str) -> ig.TaskSpec | ig.FleetSpec:
    """The task of an id or a name.

    Raises:
        ValueError: there is none.
    """
    for name, spec in all_tasks().items():
        if task in (name, spec.id):
            return spec
    return ig.get_task(task)  # says which there are
