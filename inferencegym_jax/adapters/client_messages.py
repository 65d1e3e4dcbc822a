"""Requests, answers and retries of the HTTP API without the sending, which ``client`` does in two ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import httpx

from inferencegym_jax.adapters.answer_types import ENGINE, FLEET, Parts, knobs, known
from inferencegym_jax.fleet.making import is_fleet
from inferencegym_jax.fleet.observation import FleetObservation
from inferencegym_jax.fleet.state import FleetMetrics, FleetWorkload
from inferencegym_jax.models import OUTCOME, MetricsSnapshot, RequestOutcome, ServeObservation, WorkloadState

__all__ = ["ApiError", "EpisodeView", "Request", "Retry", "Step", "body_of", "knobs", "read_table"]

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

    observation: ServeObservation | FleetObservation
    reward: float
    done: bool
    metrics: MetricsSnapshot | FleetMetrics
    workload: WorkloadState | FleetWorkload
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


def body_of(**fields: Any) -> dict[str, Any]:
    """The fields of a request's body that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def read_table(content: Any) -> Any:
    """A pyarrow table of an Arrow answer; JSON stays as it is."""
    if not isinstance(content, bytes):
        return content
    import pyarrow as pa

    return pa.ipc.open_stream(content).read_all()


class EpisodeView:
    """Where an episode stands, as far as this client has seen."""

    def __init__(self, body: dict[str, Any]):
        self.session_id: str = body["session_id"]
        self.task_id: int = body["info"]["task_id"]
        self.seed: int = body["info"]["seed"]
        self.length: int = body["episode_length"]
        self.active_actions: list[str] = body["info"]["active_actions"]
        self._parts: Parts = FLEET if is_fleet(self.task_id) else ENGINE
        self.observation: ServeObservation | FleetObservation = self._parts.read("observation", body["observation"])
        self.done: bool = False
        self.total_reward: float = 0.0

    def take(self, body: dict[str, Any]) -> Step:
        """The step in an answer of POST /step; moves this view on."""
        info = body["info"]
        outcome = info.get("outcome")
        step = Step(
            self._parts.read("observation", body["observation"]),
            body["reward"],
            body["done"],
            self._parts.read("metrics", info["metrics"]),
            self._parts.read("workload", info["workload"]),
            info["oom"],
            info["timestep"],
            None if outcome is None else RequestOutcome(**known(outcome, OUTCOME)),
        )
        self.observation, self.done = step.observation, step.done
        self.total_reward += step.reward
        return step
