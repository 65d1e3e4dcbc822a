"""The parts of which requests and answers are made: action, observation, state, metrics, config, task, seed.

Ranges, units and meanings of knobs, observations, metrics and workload come from ``inferencegym_jax.models``, where
they are written once.
Input is strict: a string is no number, an unknown field is an error, NaN and infinities are refused. Validators raise
``PydanticCustomError`` only, because a ValueError inside one would end an OpenEnv WebSocket session.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from openenv.core.env_server.types import Action, Observation, State
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WrapValidator,
    create_model,
)
from pydantic_core import PydanticCustomError

import inferencegym_jax as ig
from inferencegym_jax.fleet.action import FLEET_KNOBS
from inferencegym_jax.fleet.making import fleet_tasks
from inferencegym_jax.fleet.observation import FLEET_OBSERVATION
from inferencegym_jax.fleet.state import FLEET_METRICS, FLEET_WORKLOAD
from inferencegym_jax.models import (
    KNOBS,
    METRICS,
    OBSERVATION,
    OUTCOME,
    REWARD_WEIGHTS,
    SEEDS,
    WORKLOAD,
    Knob,
    ObservationField,
    Quantity,
)
from inferencegym_jax.tasks import CONFIG_KEYS
from inferencegym_jax.tasks.checks import LEAST_OBJECTIVE_MS, MOST_CONFIG
from server.bad_input import short

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    """64.0 is the integer 64, as in JSON Schema; everything else is left for the strict check."""
    return int(value) if type(value) is float and value.is_integer() else value


def _one_of(knob: Knob) -> Any:
    def check(value: int) -> int:
        if value not in knob.choices:
            raise PydanticCustomError("choice", "Input should be {allowed}", {"allowed": knob.allowed})
        return value

    return check


def _knob_field(knob: Knob) -> Any:
    """(annotation, Field) of a knob. No Literal: it would take true for 1."""
    display = {"unit": knob.unit, "scale": knob.scale, "labels": list(knob.labels)}
    about: dict[str, Any] = {
        "title": knob.title,
        "description": knob.description,
        "strict": True,
        "json_schema_extra": display,
    }
    if knob.kind == "bool":
        return (bool, Field(knob.default, **about))
    if knob.kind == "float":
        return (float, Field(knob.default, ge=knob.low, le=knob.high, allow_inf_nan=False, **about))
    if knob.kind == "int":
        whole = Annotated[int, Field(ge=int(knob.low), le=int(knob.high), strict=True), BeforeValidator(_whole)]
        return (whole, Field(knob.default, **about))
    strict = Field(strict=True, json_schema_extra={"enum": list(knob.choices)})
    choice = Annotated[int, strict, AfterValidator(_one_of(knob)), BeforeValidator(_whole)]
    return (choice, Field(knob.default, **about))


class ActionBase(Action):
    """The knobs; what is left out takes the baseline's value. Locked knobs of a task are forced to it."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False, strict=True, allow_inf_nan=False)
    table: ClassVar[Mapping[str, Knob]] = KNOBS

    def knobs(self) -> dict[str, Any]:
        """The knobs alone."""
        return {name: getattr(self, name) for name in self.table}


class FleetActionBase(ActionBase):
    """The knobs of a fleet; what is left out takes its default. Locked knobs of a task are forced to it."""

    table: ClassVar[Mapping[str, Knob]] = FLEET_KNOBS


def _fields(base: type[ActionBase]) -> dict[str, Any]:
    return {name: _knob_field(knob) for name, knob in base.table.items()}


if TYPE_CHECKING:
    ActionModel, FleetActionModel = ActionBase, FleetActionBase
else:
    ActionModel = create_model("ServeAction", __base__=ActionBase, **_fields(ActionBase))
    FleetActionModel = create_model("FleetAction", __base__=FleetActionBase, **_fields(FleetActionBase))


def parsed_action(value: Any) -> ActionBase:
    """The action that an object is: a fleet's where it names a knob that only a fleet has. Which of them a task takes
    is asked where the task is known, see ``kinds.Kind.knobs_in``.

    Raises:
        pydantic.ValidationError: a knob is unknown or out of range.
    """
    fleet = isinstance(value, FleetActionModel) or (
        isinstance(value, dict) and any(name in FLEET_KNOBS and name not in KNOBS for name in value)
    )
    return (FleetActionModel if fleet else ActionModel).model_validate(value)


AnyAction = Annotated[
    ActionModel | FleetActionModel,
    WrapValidator(lambda value, _: parsed_action(value)),
    Field(description="the knobs of the task's kind; left out: their defaults"),
]


if TYPE_CHECKING:
    OpenEnvAction = ActionBase
else:

    class OpenEnvAction(ActionModel):
        """The action that OpenEnv's handlers read: of either kind. Its schema is the single engine's."""

        @classmethod
        def model_validate(cls, obj: Any, **options: Any) -> Any:
            """See ``parsed_action``."""
            return parsed_action(obj)


def _display(quantity: Quantity) -> dict[str, Any]:
    """What a reported number's schema says besides its type: how people read it."""
    return {
        "description": f"{quantity.description} ({quantity.unit})" if quantity.unit else quantity.description,
        "json_schema_extra": {
            "unit": quantity.unit,
            "scale": quantity.scale,
            "digits": quantity.digits,
            "chart": quantity.chart,
            "exogenous": quantity.exogenous,
        },
    } | ({"title": quantity.title} if quantity.title else {})


def _quantity_field(quantity: Quantity) -> Any:
    """(annotation, Field) of a metric or of a number of the workload."""
    kind: Any = {"float": float, "int": int, "bool": bool}[quantity.kind]
    return (kind if quantity.size == 1 else list[kind], Field(**_display(quantity)))


def _observation_field(spec: ObservationField) -> Any:
    limits: dict[str, Any] = {"ge": spec.low} | ({} if math.isinf(spec.high) else {"le": spec.high})
    number = Annotated[float, Field(**limits)]
    if spec.size == 1:
        return (number, Field(**_display(spec)))
    return (Annotated[list[number], Field(min_length=spec.size, max_length=spec.size)], Field(**_display(spec)))


def _observation_fields(table: Mapping[str, ObservationField]) -> dict[str, Any]:
    return {name: _observation_field(spec) for name, spec in table.items()}


if TYPE_CHECKING:
    ObservationBody = FleetObservationBody = BaseModel
else:
    ObservationBody = create_model("ServeObservation", **_observation_fields(OBSERVATION))
    FleetObservationBody = create_model("FleetObservation", **_observation_fields(FLEET_OBSERVATION))


class SentObservation(Observation):
    """What ``/ws`` sends. OpenEnv would send the metadata twice, inside the observation and beside it; the observation
    is its fields."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False)
    table: ClassVar[Mapping[str, ObservationField]] = OBSERVATION

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The observation's fields for OpenEnv's serialisation, which excludes reward and done; else as ever."""
        if options == {"exclude": {"reward", "done"}}:
            return {name: self.__dict__[name] for name in self.table}
        return super().model_dump(**options)


class SentFleetObservation(SentObservation):
    """The same of a fleet."""

    table: ClassVar[Mapping[str, ObservationField]] = FLEET_OBSERVATION


if TYPE_CHECKING:
    ObservationModel, FleetObservationModel = SentObservation, SentFleetObservation
else:
    ObservationModel = create_model("OpenEnvObservation", __base__=SentObservation, **_observation_fields(OBSERVATION))
    FleetObservationModel = create_model(
        "OpenEnvFleetObservation", __base__=SentFleetObservation, **_observation_fields(FLEET_OBSERVATION)
    )


class StateModel(State):
    """Where an episode stands. Before the first reset everything is at its default."""

    session_id: str | None = Field(default=None, description="the HTTP session; null over the WebSocket")
    task_id: int | None = Field(default=None, description="the task; null before the first reset")
    seed: int | None = Field(default=None, description="the episode's seed")
    config: dict[str, float] = Field(default_factory=dict, description="the reset's overrides")
    cumulative_reward: float = Field(default=0.0, description="sum of the rewards so far")
    done: bool = Field(default=False, description="has the episode reached its last step")
    workload_phase: str = Field(
        default="warmup", description="warmup, steady, burst or cooldown; of a fleet always steady"
    )


if TYPE_CHECKING:
    Metrics = Workload = FleetMetrics = FleetWorkload = BaseModel
else:
    Metrics = create_model(
        "Metrics",
        __doc__="What one second of serving measured.",
        **{name: _quantity_field(quantity) for name, quantity in METRICS.items()},
    )
    Workload = create_model(
        "Workload",
        __doc__="The traffic of one second.",
        **{name: _quantity_field(quantity) for name, quantity in WORKLOAD.items()},
    )
    FleetMetrics = create_model(
        "FleetMetrics",
        __doc__="What one decision's seconds measured.",
        **{name: _quantity_field(quantity) for name, quantity in FLEET_METRICS.items()},
    )
    FleetWorkload = create_model(
        "FleetWorkload",
        __doc__="The traffic of one decision's seconds.",
        **{name: _quantity_field(quantity) for name, quantity in FLEET_WORKLOAD.items()},
    )


if TYPE_CHECKING:
    Outcome = BaseModel
else:
    Outcome = create_model(
        "RequestOutcome",
        __doc__="What became of one second's requests; lists are by class: interactive, batch, best effort.",
        **{name: _quantity_field(spec) for name, spec in OUTCOME.items()},
    )


class StepInfo(BaseModel):
    """The details of a step."""

    timestep: int = Field(description="steps taken in this episode")
    metrics: Metrics | FleetMetrics
    workload: Workload | FleetWorkload
    oom: bool = Field(description="did the GPU run out of memory")
    outcome: Outcome | None = Field(default=None, description="of an open-loop task, which is scored by request")


OBJECTIVES = {
    "slo_ttft_ms": "TTFT objective of the strictest class (ms)",
    "slo_tpot_ms": "objective on the time per output token (ms), of an open-loop task",
}


def _config_field(key: str) -> Any:
    if key in OBJECTIVES:
        about = OBJECTIVES[key]
        return (float | None, Field(None, ge=LEAST_OBJECTIVE_MS, le=MOST_CONFIG, title="SLO", description=about))
    weight = REWARD_WEIGHTS[key]
    return (float | None, Field(None, ge=0, le=MOST_CONFIG, title=weight.symbol, description=weight.term))


if TYPE_CHECKING:
    Config = BaseModel
else:
    Config = create_model(
        "Config",
        __config__=STRICT,
        __doc__="Overrides of a task's reward weights and latency objectives.",
        **{key: _config_field(key) for key in CONFIG_KEYS},
    )


def all_tasks() -> dict[str, ig.TaskSpec | ig.FleetSpec]:
    """Every task by name: single engines', registered ones with them, and fleets'."""
    return {**ig.task_specs(), **fleet_tasks()}


def task_keys() -> list[int | str]:
    """Ids and names of all tasks."""
    specs = all_tasks()
    return [*(spec.id for spec in specs.values()), *specs]


class _TaskSchema:
    """The JSON schema of a task, written when it is asked for: by then all tasks are registered."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": task_keys(), "description": "id or name of a task"}


def check_task(task: Any) -> Any:
    """The task as given, if there is such a one; its message names those there are."""
    if isinstance(task, bool) or not isinstance(task, int | str) or task not in task_keys():
        known = ", ".join(f"{spec.id} ({spec.name})" for spec in all_tasks().values())
        raise PydanticCustomError(
            "task", "{value} is no task; there are {known}", {"value": str(short(task)), "known": known}
        )
    return task


Seed = Annotated[int, Field(ge=0, le=SEEDS - 1, strict=True), BeforeValidator(_whole)]
TaskId = Annotated[
    Any,
    BeforeValidator(_whole),
    AfterValidator(check_task),
    _TaskSchema(),
]
SessionId = Annotated[str, Field(min_length=1, max_length=64, description="from POST /reset")]
