"""Requests, answers and retries of the HTTP API without the sending, which ``client`` does in two ways."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import httpx

from inferencegym_jax.models import (
    METRICS,
    OBSERVATION,
    OUTCOME,
    WORKLOAD,
    MetricsSnapshot,
    RequestOutcome,
    ServeAction,
    ServeObservation,
    WorkloadState,
    check_action,
)

T = TypeVar("T")
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
    outcome: RequestOutcome | None = None  # of an open-loop task


@dataclass(frozen=True)
class Retry:
    """How often and how patiently to send again: waits grow from ``first_s`` by doubling, up to ``most_s``."""

    attempts: int = 5
    first_s: float = 0.1
    most_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts = {self.attempts}: must be at least 1")

    def wait_s(self, attempt: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds before the next attempt, the server's Retry-After where it is a number; None: this one was the last.

        Args:
            attempt: which one it was, from 0.
            outcome: what it came to.
        """
        failed = isinstance(outcome, httpx.TransportError)
        if attempt + 1 >= self.attempts or not (failed or outcome.status_code in RETRIED):
            return None
        asked = "" if failed else outcome.headers.get("retry-after", "")
        return float(asked) if asked.isdigit() else min(self.most_s, self.first_s * 2**attempt)


@dataclass(frozen=True)
class Request(Generic[T]):
    """One request and what its answer means; how it is sent is the client's business."""

    method: str
    path: str
    body: Any = None
    query: dict[str, str] | None = None
    parse: Callable[[Any], T] = lambda body: body  # of the answer's JSON (its bytes for Arrow)

    def arguments(self) -> dict[str, Any]:
        """The arguments of httpx' ``request``."""
        return {"method": self.method, "url": self.path, "json": self.body, "params": self.query}

    def read(self, outcome: httpx.Response | httpx.TransportError) -> T:
        """What the answer says.

        Raises:
            ApiError: the server refused.
            httpx.TransportError: no answer came.
        """
        if isinstance(outcome, httpx.TransportError):
            raise outcome
        if outcome.is_success:
            arrow = outcome.headers.get("content-type") == ARROW
            return self.parse(outcome.content if arrow else outcome.json())
        try:
            detail = outcome.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = outcome.text[:200]
        raise ApiError(outcome.status_code, detail)


def knobs(action: ServeAction | Mapping[str, Any]) -> dict[str, Any]:
    """An action as JSON; a ``ServeAction`` is checked here, a mapping by the server."""
    if isinstance(action, ServeAction):
        check_action(action)
        return action.to_dict()
    return dict(action)


def body_of(**fields: Any) -> dict[str, Any]:
    """The fields of a request's body that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def read_table(content: Any) -> Any:
    """A pyarrow table of an Arrow answer; JSON stays as it is."""
    if not isinstance(content, bytes):
        return content
    import pyarrow as pa

    return pa.ipc.open_stream(content).read_all()


def known(fields: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    """The fields that this library has; a newer server may send more."""
    return {name: value for name, value in fields.items() if name in names}


class EpisodeView:
    """Where an episode stands, as far as this client has seen."""

    def __init__(self, body: dict[str, Any]):
        self.session_id: str = body["session_id"]
        self.task_id: int = body["info"]["task_id"]
        self.seed: int = body["info"]["seed"]
        self.length: int = body["episode_length"]
        self.active_actions: list[str] = body["info"]["active_actions"]
        self.observation: ServeObservation = ServeObservation(**known(body["observation"], OBSERVATION))
        self.done: bool = False
        self.total_reward: float = 0.0

    def take(self, body: dict[str, Any]) -> Step:
        """The step in an answer of POST /step; moves this view on."""
        info = body["info"]
        outcome = info.get("outcome")
        step = Step(
            ServeObservation(**known(body["observation"], OBSERVATION)),
            body["reward"],
            body["done"],
            MetricsSnapshot(**known(info["metrics"], METRICS)),
            WorkloadState(**known(info["workload"], WORKLOAD)),
            info["oom"],
            info["timestep"],
            None if outcome is None else RequestOutcome(**known(outcome, OUTCOME)),
        )
        self.observation, self.done = step.observation, step.done
        self.total_reward += step.reward
        return step
