"""Requests and answers of the HTTP API; their parts are in ``schema_parts``.

Validators raise ``PydanticCustomError`` only: a ValueError inside one cannot be put into an answer. Lists end at their
first bad entry and have a greatest length, so that a body of errors costs no more than a good one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from inferencegym_jax.fleet.rules import DEFAULTS
from inferencegym_jax.models import LONGEST_EPISODE
from inferencegym_jax.policies import NAMES
from server.bounds import MOST_EPISODES
from server.schema_parts import (
    STRICT,
    AnyAction,
    Config,
    FleetObservationBody,
    ObservationBody,
    Seed,
    SessionId,
    StepInfo,
    TaskId,
)


class _Request(BaseModel):
    model_config = STRICT


def config_dict(config: Any) -> dict[str, float]:
    """The overrides that were given."""
    return {} if config is None else config.model_dump(exclude_none=True)


class ResetRequest(_Request):
    """Start an episode. Everything may be left out: task 1 and a seed that the server draws and reports."""

    model_config = STRICT | ConfigDict(json_schema_extra={"examples": [{"task_id": 2, "seed": 7}, {}]})

    task_id: TaskId = 1
    seed: Seed | None = Field(default=None, description="0 to 4294967295; null: drawn, and reported in info")
    config: Config | None = Field(default=None, description="overrides of reward weights and SLO")
    episode_id: str | None = Field(default=None, max_length=255, description="a name of your own for the episode")


class StepRequest(_Request):
    """Take one step. A retry with the same ``step_id`` gets the first answer and does not step again."""

    model_config = STRICT | ConfigDict(
        json_schema_extra={"examples": [{"session_id": "0f...", "action": {"batch_size": 64}}]}
    )

    session_id: SessionId
    action: AnyAction
    step_id: str | None = Field(default=None, min_length=1, max_length=64, description="makes a retry safe")
    timeout_s: float | None = Field(default=None, gt=0, description="OpenEnv's; a step takes under a millisecond")
    request_id: str | None = Field(default=None, max_length=255, description="OpenEnv's; echoed in no answer")


class ResetResponse(BaseModel):
    """A new session and what the agent sees first."""

    session_id: str
    observation: ObservationBody | FleetObservationBody
    episode_length: int = Field(description="steps until done")
    reward: float | None = Field(default=None, description="always null")
    done: bool = Field(default=False, description="always false")
    info: dict[str, Any] = Field(description="task_id, seed, config, active_actions")
    metadata: dict[str, Any] = Field(description="the same as info, under OpenEnv's name")


class StepResponse(BaseModel):
    """What a step answers."""

    observation: ObservationBody | FleetObservationBody
    reward: float = Field(le=1, description="from -1 to 1; of a fleet minus what it cost over the whole fleet's cost")
    done: bool
    info: StepInfo
    metadata: dict[str, Any] = Field(description="session_id, step_count")


ByClass = Annotated[list[float], Field(fail_fast=True, max_length=8)]


class LogEntry(BaseModel):
    """One step of an episode log. Fields that the graders do not read may be left out; extra ones are not read."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    action: dict[str, bool | int | float] = Field(description="the knobs")
    reward: float | None = None
    metrics: dict[str, int | float] = Field(description="at least the fields that the graders read")
    outcome: dict[str, float | ByClass] | None = Field(
        default=None, description="of an open-loop task, which is scored by request"
    )


class GraderRequest(_Request):
    """One of three forms: a session; a log; or task, seed, config and actions to simulate again (a log is verified)."""

    model_config = STRICT | ConfigDict(json_schema_extra={"examples": [{"task_id": 1, "episode_log": []}]})

    session_id: SessionId | None = None
    task_id: TaskId | None = None
    seed: Seed | None = None
    config: Config | None = None
    actions: Annotated[list[AnyAction], Field(fail_fast=True, max_length=LONGEST_EPISODE)] | None = None
    episode_log: Annotated[list[LogEntry], Field(fail_fast=True, max_length=LONGEST_EPISODE)] | None = None

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
    complete: bool = Field(description="does the log hold the whole episode")
    outcome: dict[str, float] | None = Field(
        default=None, description="open loop: the episode's requests by what became of them, tokens and GPU-seconds"
    )
    verified: bool = Field(description="true: the server regenerated this episode and it is the one scored")
    first_difference: dict[str, Any] | None = Field(default=None, description="where a claimed log differs")


POLICIES = (*NAMES, *DEFAULTS)
"""Names of policies; those of rules with published defaults are fleets'."""
Sequence = Annotated[list[AnyAction], Field(fail_fast=True, min_length=1, max_length=LONGEST_EPISODE)]


class RolloutRequest(_Request):
    """Whole episodes in one call: a built-in policy on every seed, or one sequence of actions a seed."""

    model_config = STRICT | ConfigDict(
        json_schema_extra={"examples": [{"task_id": 2, "seeds": [0, 1, 2], "policy": "best_static"}]}
    )

    task_id: TaskId
    seeds: list[Seed] = Field(fail_fast=True, min_length=1, max_length=MOST_EPISODES, description="one episode each")
    policy: Literal[POLICIES] | None = None  # pyright: ignore[reportInvalidTypeForm]
    actions: Annotated[list[Sequence], Field(fail_fast=True, min_length=1, max_length=MOST_EPISODES)] | None = Field(
        None, description="a sequence a seed, or one for all; an episode ends with its sequence"
    )
    config: Config | None = None
    trajectories: bool = Field(default=False, description="return every step too")
    format: Literal["json", "arrow"] = Field(default="json", description="arrow: an IPC stream of all steps")

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
    gpu_seconds: list[float] | None = Field(None, description="of each episode, where requests are counted")
    oom_shares: list[float] = Field(description="share of each episode's seconds out of memory")
    mean_oom_share: float
    trajectories: list[list[dict[str, Any]]] | None = Field(
        None, description="per episode, per step: observation (before), action, reward, metrics, workload, outcome, oom"
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


class ScoreComponent(BaseModel):
    """One term of a task's score."""

    weight: float
    meaning: str = Field(description="how it is computed over an episode, before it is clipped to [0, 1]")


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
    slo_tpot_ms: float | list[float | None] | None = Field(
        description="ms, of an open-loop task; by class where the classes differ"
    )
    class_shares: list[float]
    memory_limit_gb: float | None
    cost_budget: float | None
    reward_weights: dict[str, float]
    scored_by_request: bool = Field(description="false: by the second")
    kind: Literal["engine", "fleet"] = Field(description="whose knobs and observations it has, see /info")
    step_s: int = Field(description="simulated seconds of a step")
    policies: dict[str, str] = Field(description="what POST /rollout can play on it, each in a sentence")
    components: dict[str, ScoreComponent] = Field(description="what the score is made of")


class TaskList(BaseModel):
    """All tasks."""

    tasks: list[TaskEntry]


class Info(BaseModel):
    """What the server is."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str
    action_space: dict[str, Any]
    observation_space: dict[str, Any]
    metrics: dict[str, Any] = Field(description="JSON schema of what a second measures, with unit and scale")
    workload: dict[str, Any] = Field(description="the same of its traffic")
    fleet: dict[str, Any] = Field(description="of fleets: action_space, observation_space, metrics, workload, outcome")
    outcome: dict[str, Any] = Field(description="the same of what became of its requests, where they are counted")
    classes: list[str] = Field(description="names of the classes of requests, in the order of every list by class")
    episode_length: int
    reward_weights: dict[str, dict[str, float]]
    config: dict[str, Any] = Field(description="JSON schema of a reset's config")
    policies: dict[str, bool] = Field(description="what POST /rollout can play")
    policy_descriptions: dict[str, str] = Field(description="what each of them does, in a sentence")
    trained_policies: dict[str, bool] = Field(description="whether there is a trained policy, by the task's name")
    table: dict[str, Any]
    trace: dict[str, Any] | None
    links: dict[str, str | None] = Field(description="repository, documentation, leaderboard")
    first_screen: dict[str, Any] | None = Field(description="the episode that the page opens with, kept as a file")
    limits: dict[str, Any]


class BaselineScore(BaseModel):
    """The fixed agent on one task."""

    task_id: int
    name: str
    score: float
    breakdown: dict[str, float]
    gpu_seconds: float | None = Field(None, description="of the episode, where requests are counted")
    total_reward: float
    oom_share: float = Field(description="share of seconds out of memory")
    expected_range: list[float] | None


class Baseline(BaseModel):
    """The fixed agent on every task."""

    agent: str
    action: dict[str, Any]
    seed: int
    tasks: list[BaselineScore]
    not_asked_for: list[str] = Field(description="tasks that wait for a search until they are asked for")
