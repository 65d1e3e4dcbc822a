"""Pydantic models of the wire: what the API takes and gives.

Ranges and meanings of knobs and observations come from ``inferencegym_jax.models``, where they are written once.
Input is strict: a string is no number, an unknown field is an error, NaN and infinities are refused. Validators raise
``PydanticCustomError`` only, because a ValueError inside one would end an OpenEnv WebSocket session.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from openenv.core.env_server.types import Action, Observation, State
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

import inferencegym_jax as ig
from inferencegym_jax.models import EPISODE_LENGTH, KNOBS, OBSERVATION, Knob, ObservationField
from inferencegym_jax.tasks import CONFIG_KEYS

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
MAX_SEED = 2**32 - 1
TASK_IDS = tuple(spec.id for spec in ig.task_specs().values())
TASK_NAMES = tuple(ig.task_specs())
POLICIES = ("baseline", "random", "reactive", "best_static", "trained")


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
    about: dict[str, Any] = {"description": knob.description, "strict": True}
    if knob.kind == "bool":
        return (bool, Field(knob.default, **about))
    if knob.kind == "float":
        return (float, Field(knob.default, ge=knob.low, le=knob.high, allow_inf_nan=False, **about))
    if knob.kind == "int":
        whole = Annotated[int, BeforeValidator(_whole), Field(ge=int(knob.low), le=int(knob.high), strict=True)]
        return (whole, Field(knob.default, **about))
    checks = (BeforeValidator(_whole), AfterValidator(_one_of(knob)))
    choice = Annotated[int, *checks, Field(strict=True, json_schema_extra={"enum": list(knob.choices)})]
    return (choice, Field(knob.default, **about))


class _ActionBase(Action):
    """The five knobs; what is left out takes the baseline's value. Locked knobs of a task are forced to it."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False, strict=True, allow_inf_nan=False)

    def knobs(self) -> dict[str, Any]:
        """The knobs alone."""
        return {name: getattr(self, name) for name in KNOBS}


ActionModel: Any = create_model(
    "ServeAction", __base__=_ActionBase, **{name: _knob_field(knob) for name, knob in KNOBS.items()}
)


def _observation_field(spec: ObservationField) -> Any:
    limits = {"ge": spec.low} | ({} if math.isinf(spec.high) else {"le": spec.high})
    about = f"{spec.description} ({spec.unit})"
    number = Annotated[float, Field(**limits)]
    if spec.size == 1:
        return (number, Field(description=about))
    return (Annotated[list[number], Field(min_length=spec.size, max_length=spec.size)], Field(description=about))


OBSERVATION_FIELDS: dict[str, Any] = {name: _observation_field(spec) for name, spec in OBSERVATION.items()}
ObservationBody: Any = create_model("ServeObservation", **OBSERVATION_FIELDS)


class _FastObservation(Observation):
    """What ``/ws`` sends. OpenEnv would put the metadata on the wire twice, inside the observation and beside it; the
    observation is its twelve fields."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The observation's fields for OpenEnv's serialisation, which excludes reward and done; else as ever."""
        if options == {"exclude": {"reward", "done"}}:
            return {name: self.__dict__[name] for name in OBSERVATION}
        return super().model_dump(**options)


ObservationModel: Any = create_model("OpenEnvObservation", __base__=_FastObservation, **OBSERVATION_FIELDS)


class StateModel(State):
    """Where an episode stands. Before the first reset everything is at its default."""

    session_id: str | None = Field(None, description="the HTTP session; null over the WebSocket")
    task_id: int | None = Field(None, description="the task; null before the first reset")
    seed: int | None = Field(None, description="the episode's seed")
    config: dict[str, float] = Field(default_factory=dict, description="the reset's overrides")
    cumulative_reward: float = Field(0.0, description="sum of the rewards so far")
    done: bool = Field(False, description="has the episode reached its last step")
    workload_phase: str = Field("warmup", description="warmup, steady, burst or cooldown")


class Metrics(BaseModel):
    """What one second of serving measured."""

    ttft_p50_ms: float = Field(description="median time to first token (ms)")
    ttft_p99_ms: float = Field(description="99th percentile of the time to first token (ms)")
    tpot_ms: float = Field(description="time per output token (ms)")
    tokens_per_sec: float = Field(description="output tokens a second")
    gpu_memory_gb: float = Field(description="GPU memory in use (GB)")
    cost_per_1k: float = Field(description="cost per 1,000 output tokens")
    spec_accept_rate: float = Field(description="accepted share of the drafted tokens")
    eviction_events: int = Field(description="evicted sequences")
    slo_violations: int = Field(description="requests that missed their objective, or were rejected")


class Workload(BaseModel):
    """The traffic of one second."""

    arrival_rate: float = Field(description="10-step moving average of the arrivals (requests/s)")
    mean_prompt_len: float = Field(description="mean prompt length (tokens)")
    prompt_len_bucket: int = Field(description="0 to 7")
    queue_depth: int = Field(description="requests left waiting")
    priority_distribution: list[float] = Field(description="interactive, batch, best-effort shares")
    is_burst: bool = Field(description="is this second inside a burst")
    phase: int = Field(description="0 warmup, 1 steady, 2 burst, 3 cooldown")
    arrivals: int = Field(description="requests that arrived")
    served: int = Field(description="requests taken from the queue")
    rejected: int = Field(description="requests turned away")


class StepInfo(BaseModel):
    """The details of a step."""

    timestep: int = Field(description="steps taken in this episode")
    metrics: Metrics
    workload: Workload
    oom: bool = Field(description="did the GPU run out of memory")


Config: Any = create_model(
    "Config",
    __config__=STRICT,
    __doc__="Overrides of a task's reward weights and of the TTFT objective of its strictest class.",
    **{
        name: (
            float | None,
            Field(
                None,
                le=1e9,
                description="TTFT objective (ms)" if name == "slo_ttft_ms" else f"reward weight {name}",
                **({"gt": 0} if name == "slo_ttft_ms" else {"ge": 0}),
            ),
        )
        for name in CONFIG_KEYS
    },
)


def check_task(task: Any) -> Any:
    """The task as given, if there is such a one; its message names those there are."""
    if isinstance(task, bool) or not isinstance(task, int | str) or task not in (*TASK_IDS, *TASK_NAMES):
        known = ", ".join(f"{spec.id} ({spec.name})" for spec in ig.task_specs().values())
        raise PydanticCustomError(
            "task", "{value} is no task; there are {known}", {"value": str(task)[:40], "known": known}
        )
    return task


Seed = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=MAX_SEED, strict=True)]
TaskId = Annotated[
    Any,
    BeforeValidator(_whole),
    AfterValidator(check_task),
    WithJsonSchema({"enum": [*TASK_IDS, *TASK_NAMES], "description": "id or name of a task"}),
]
SessionId = Annotated[str, Field(min_length=1, max_length=64, description="from POST /reset")]


class _Request(BaseModel):
    model_config = STRICT


def config_dict(config: Any) -> dict[str, float]:
    """The overrides that were given."""
    return {} if config is None else config.model_dump(exclude_none=True)


class ResetRequest(_Request):
    """Start an episode. Everything may be left out: task 1 and a seed that the server draws and reports."""

    model_config = STRICT | ConfigDict(json_schema_extra={"examples": [{"task_id": 2, "seed": 7}, {}]})

    task_id: TaskId = 1
    seed: Seed | None = Field(None, description="0 to 4294967295; null: drawn by the server and reported in info")
    config: Config | None = Field(None, description="overrides of reward weights and SLO")
    episode_id: str | None = Field(None, max_length=255, description="a name of your own for the episode")


class StepRequest(_Request):
    """Take one step. A retry with the same ``step_id`` gets the first answer and does not step again."""

    model_config = STRICT | ConfigDict(
        json_schema_extra={"examples": [{"session_id": "0f...", "action": {"batch_size": 64}}]}
    )

    session_id: SessionId
    action: ActionModel = Field(description="the knobs; left out: the baseline's value")
    step_id: str | None = Field(None, min_length=1, max_length=64, description="makes a retry of this step safe")
    timeout_s: float | None = Field(None, gt=0, description="OpenEnv's; a step takes under a millisecond")
    request_id: str | None = Field(None, max_length=255, description="OpenEnv's; echoed in no answer")


class ResetResponse(BaseModel):
    """A new session and what the agent sees first."""

    session_id: str
    observation: ObservationBody
    episode_length: int = Field(description="steps until done")
    reward: float | None = Field(None, description="always null")
    done: bool = Field(False, description="always false")
    info: dict[str, Any] = Field(description="task_id, seed, config, active_actions")
    metadata: dict[str, Any] = Field(description="the same as info, under OpenEnv's name")


class StepResponse(BaseModel):
    """What a step answers."""

    observation: ObservationBody
    reward: float = Field(ge=-1, le=1)
    done: bool
    info: StepInfo
    metadata: dict[str, Any] = Field(description="session_id, step_count")


class LogEntry(BaseModel):
    """One step of an episode log. Fields that the graders do not read may be left out; extra ones are not read."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    action: dict[str, bool | int | float] = Field(description="the knobs")
    reward: float | None = None
    metrics: dict[str, int | float] = Field(description="at least the fields that the graders read")


class GraderRequest(_Request):
    """One of three forms: a session; a log; or task, seed, config and actions to simulate again (a log is verified)."""

    model_config = STRICT | ConfigDict(json_schema_extra={"examples": [{"task_id": 1, "episode_log": []}]})

    session_id: SessionId | None = None
    task_id: TaskId | None = None
    seed: Seed | None = None
    config: Config | None = None
    actions: list[ActionModel] | None = Field(None, max_length=EPISODE_LENGTH)
    episode_log: list[LogEntry] | None = Field(None, max_length=EPISODE_LENGTH)

    @model_validator(mode="after")
    def _one_form(self) -> GraderRequest:
        rest = (self.task_id, self.seed, self.config, self.actions, self.episode_log)
        if self.session_id is not None:
            good = all(field is None for field in rest)
        elif self.task_id is None:
            good = False
        elif self.actions is not None:
            good = self.seed is not None
        else:
            good = self.episode_log is not None and (self.config is None or self.seed is not None)
        if not good:
            raise PydanticCustomError(
                "form",
                "give session_id alone; or task_id and episode_log (with seed, and config if any, to have it "
                "verified); or task_id, seed and actions (with config and episode_log if any)",
            )
        return self


class GraderResponse(BaseModel):
    """A score in [0, 1] and how it came about."""

    score: float = Field(ge=0, le=1)
    breakdown: dict[str, float]
    feedback: str
    verified: bool = Field(description="true: the server regenerated this episode and it is the one scored")
    first_difference: dict[str, Any] | None = Field(None, description="where a claimed log leaves the simulated one")


class RolloutRequest(_Request):
    """Whole episodes in one call: a built-in policy on every seed, or one sequence of actions a seed."""

    model_config = STRICT | ConfigDict(
        json_schema_extra={"examples": [{"task_id": 2, "seeds": [0, 1, 2], "policy": "best_static"}]}
    )

    task_id: TaskId
    seeds: list[Seed] = Field(min_length=1, description="one episode each")
    policy: Literal[POLICIES] | None = None  # pyright: ignore[reportInvalidTypeForm]
    actions: list[Annotated[list[ActionModel], Field(min_length=1, max_length=EPISODE_LENGTH)]] | None = Field(
        None, min_length=1, description="a sequence a seed, or one for all; an episode ends with its sequence"
    )
    config: Config | None = None
    trajectories: bool = Field(False, description="return every step too")
    format: Literal["json", "arrow"] = Field("json", description="arrow: an IPC stream of all steps")

    @model_validator(mode="after")
    def _one_source(self) -> RolloutRequest:
        if (self.policy is None) == (self.actions is None):
            raise PydanticCustomError("source", "give either policy or actions")
        if self.actions is not None and len(self.actions) not in (1, len(self.seeds)):
            raise PydanticCustomError(
                "source",
                "actions: {given} sequences for {seeds} seeds; must be 1 or {seeds}",
                {"given": len(self.actions), "seeds": len(self.seeds)},
            )
        return self


class RolloutResponse(BaseModel):
    """Scores of the episodes, and their steps where asked for."""

    task_id: int
    policy: str | None
    seeds: list[int]
    steps: list[int] = Field(description="length of each episode")
    scores: list[float]
    total_rewards: list[float]
    breakdown: dict[str, list[float]]
    mean_score: float
    trajectories: list[list[dict[str, Any]]] | None = Field(
        None, description="per episode, per step: observation (before), action, reward, metrics, workload, oom"
    )


class Problem(BaseModel):
    """What went wrong, in a sentence, or one entry a field for malformed input."""

    detail: str | list[dict[str, Any]]


class Health(BaseModel):
    """Is the server up."""

    status: Literal["healthy"]
    ok: bool
    active_sessions: int
    uptime_s: float


class TaskEntry(BaseModel):
    """One task."""

    id: int
    name: str
    title: str
    difficulty: str
    description: str
    active_actions: list[str]
    episode_length: int
    slo_ttft_ms: list[float | None] = Field(description="ms, of the interactive, batch and best-effort class")
    class_shares: list[float]
    memory_limit_gb: float
    cost_budget: float | None
    reward_weights: dict[str, float]


class Info(BaseModel):
    """What the server is."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str
    action_space: dict[str, Any]
    observation_space: dict[str, Any]
    episode_length: int
    reward_weights: dict[str, dict[str, float]]
    policies: dict[str, bool]
    table: dict[str, Any]
    limits: dict[str, Any]


class BaselineScore(BaseModel):
    """The fixed agent on one task."""

    task_id: int
    name: str
    score: float
    breakdown: dict[str, float]
    total_reward: float
    expected_range: list[float] | None


class Baseline(BaseModel):
    """The fixed agent on every task."""

    agent: str
    action: dict[str, Any]
    seed: int
    tasks: list[BaselineScore]
