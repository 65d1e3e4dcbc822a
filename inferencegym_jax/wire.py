"""Requests and answers of the HTTP API without the sending: what the sync and the async client share."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from inferencegym_jax.models import MetricsSnapshot, ServeAction, ServeObservation, WorkloadState, check_action

RETRIED = (429, 502, 503, 504)
ARROW = "application/vnd.apache.arrow.stream"


class ApiError(RuntimeError):
    """The server refused: ``status`` is HTTP's, ``detail`` the server's reason."""

    def __init__(self, status: int, detail: Any):
        self.status: int = status
        self.detail: Any = detail
        entries = detail if isinstance(detail, list) else [detail]
        text = "; ".join(f"{e.get('field')}: {e.get('message')}" if isinstance(e, dict) else str(e) for e in entries)
        super().__init__(f"{status}: {text}")


class Step(NamedTuple):
    """What one step answered."""

    observation: ServeObservation
    reward: float
    done: bool
    metrics: MetricsSnapshot
    workload: WorkloadState
    oom: bool
    timestep: int


@dataclass(frozen=True)
class Retry:
    """How often and how patiently to send again: waits grow from ``first_s`` by doubling, up to ``most_s``."""

    attempts: int = 5
    first_s: float = 0.1
    most_s: float = 5.0

    def wait_s(self, attempt: int, answer: httpx.Response | None) -> float:
        """Seconds before the next attempt; the server's Retry-After where it is a number."""
        asked = answer.headers.get("retry-after", "") if answer is not None else ""
        if asked.isdigit():
            return float(asked)
        return min(self.most_s, self.first_s * 2**attempt)


@dataclass(frozen=True)
class Call:
    """One request; both clients send it, each in its own way."""

    method: str
    path: str
    body: Any = None
    query: dict[str, str] | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of httpx' ``request``."""
        return {"method": self.method, "url": self.path, "json": self.body, "params": self.query}


def read(answer: httpx.Response) -> Any:
    """JSON of a good answer (bytes of an Arrow one); raises ``ApiError`` for a refusal."""
    if answer.is_success:
        return answer.content if answer.headers.get("content-type") == ARROW else answer.json()
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.text[:200]
    raise ApiError(answer.status_code, detail)


def reset_call(task: int | str, seed: int | None, config: Mapping[str, float] | None, episode_id: str | None) -> Call:
    """POST /reset."""
    body = {"task_id": task, "seed": seed, "config": None if config is None else dict(config), "episode_id": episode_id}
    return Call("POST", "/reset", {name: value for name, value in body.items() if value is not None})


def step_call(session_id: str, action: ServeAction | Mapping[str, Any]) -> Call:
    """POST /step, with a fresh step_id."""
    return Call("POST", "/step", {"session_id": session_id, "action": knobs(action), "step_id": uuid.uuid4().hex})


def knobs(action: ServeAction | Mapping[str, Any]) -> dict[str, Any]:
    """An action as JSON; a ``ServeAction`` is checked here, a mapping by the server."""
    if isinstance(action, ServeAction):
        check_action(action)
        return action.to_dict()
    return dict(action)


def rollout_call(
    task: int | str,
    seeds: Sequence[int],
    policy: str | None,
    actions: Sequence[Sequence[ServeAction | Mapping[str, Any]]] | None,
    config: Mapping[str, float] | None,
    trajectories: bool,
) -> Call:
    """POST /rollout."""
    body: dict[str, Any] = {"task_id": task, "seeds": [int(seed) for seed in seeds], "trajectories": trajectories}
    if policy is not None:
        body["policy"] = policy
    if actions is not None:
        body["actions"] = [[knobs(action) for action in sequence] for sequence in actions]
    if config is not None:
        body["config"] = dict(config)
    return Call("POST", "/rollout", body | ({"format": "arrow"} if trajectories else {}))


def read_table(content: Any) -> Any:
    """A pyarrow table of an Arrow answer; JSON stays as it is."""
    if not isinstance(content, bytes):
        return content
    import pyarrow as pa

    return pa.ipc.open_stream(content).read_all()


class EpisodeView:
    """Where an episode stands, as far as this client has seen."""

    def __init__(self, answer: dict[str, Any]):
        self.session_id: str = answer["session_id"]
        self.task_id: int = answer["info"]["task_id"]
        self.seed: int = answer["info"]["seed"]
        self.length: int = answer["episode_length"]
        self.active_actions: list[str] = answer["info"]["active_actions"]
        self.observation: ServeObservation = ServeObservation(**answer["observation"])
        self.done: bool = False
        self.total_reward: float = 0.0

    def take(self, answer: dict[str, Any]) -> Step:
        """The step in an answer of POST /step; moves this view on."""
        info = answer["info"]
        step = Step(
            ServeObservation(**answer["observation"]),
            answer["reward"],
            answer["done"],
            MetricsSnapshot(**info["metrics"]),
            WorkloadState(**info["workload"]),
            info["oom"],
            info["timestep"],
        )
        self.observation, self.done = step.observation, step.done
        self.total_reward += step.reward
        return step
