"""The HTTP API as Python: sync and async, typed with the library's models, safe to retry.

    from inferencegym_jax.adapters.client import Client
    with Client("http://localhost:7860") as client:
        episode = client.reset(2, seed=7)
        while not episode.done:
            step = episode.step(ServeAction(batch_size=64))
        print(episode.grade()["score"])

Needs httpx (``pip install "inferencegym-jax[client]"``). Every step carries a ``step_id``: when a connection breaks or
the server answers 502, 503, 504 or 429 the same step is sent again, and the server takes it once.

``Operations, EpisodeOperations -> Request (wire) -> send``: each operation is written once, as the request that it
makes and how its answer is read; ``Client`` sends it and waits, ``AsyncClient`` gives something to await.
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import httpx

from inferencegym_jax.adapters.client_messages import (
    ApiError,
    EpisodeView,
    Request,
    Retry,
    Step,
    body_of,
    knobs,
    read_table,
)
from inferencegym_jax.fleet.action import FleetAction
from inferencegym_jax.models import ServeAction

__all__ = ["ApiError", "AsyncClient", "AsyncEpisode", "Client", "Episode", "Retry", "Step"]

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E")


class Waits(Protocol):
    """What sends a request and waits for its answer."""

    def send(self, request: Request[T], /) -> T: ...


class Awaits(Protocol):
    """What sends a request in a coroutine."""

    async def send(self, request: Request[T], /) -> T: ...


class operation(Generic[P, T]):
    """Turns a method that makes a request into one that sends it, and waits or can be awaited as its class does."""

    def __init__(self, build: Callable[Concatenate[Any, P], Request[T]]):
        self._build = build
        functools.update_wrapper(self, build)  # type: ignore[arg-type]

    @overload
    def __get__(self, at: Waits, kind: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, at: Awaits, kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, at: Any, kind: type) -> Any:
        """The method of an object."""
        if at is None:
            return self
        build: Any = self._build
        return functools.wraps(build)(lambda *args, **named: at.send(build(at, *args, **named)))


class EpisodeOperations(EpisodeView):
    """What can be done with a session."""

    @operation
    def step(self, action: ServeAction | FleetAction | Mapping[str, Any]) -> Request[Step]:
        """One simulated second; of a fleet one decision, five seconds.

        Raises:
            ValueError, TypeError: a knob of a ``ServeAction`` or ``FleetAction`` is out of range.
            ApiError: the server refused (404 expired, 409 over, 422 out of range).
        """
        body = {"session_id": self.session_id, "action": knobs(action), "step_id": uuid.uuid4().hex}
        return Request("POST", "/step", body, parse=self.take)

    @operation
    def state(self) -> Request[dict[str, Any]]:
        """Where the session stands on the server."""
        return Request("GET", "/state", query={"session_id": self.session_id})

    @operation
    def grade(self) -> Request[dict[str, Any]]:
        """Score, breakdown, feedback, verified."""
        return Request("POST", "/grader", {"session_id": self.session_id})


class Operations(Generic[E]):
    """What can be asked of a server; ``_episode`` makes the client's own kind of episode of an answer to a reset."""

    _episode: Callable[[dict[str, Any]], E]

    @operation
    def reset(
        self,
        task: int | str = 1,
        seed: int | None = None,
        config: Mapping[str, float] | None = None,
        episode_id: str | None = None,
    ) -> Request[E]:
        """Start an episode; without a seed the server draws one and the episode's ``seed`` says which."""
        overrides = None if config is None else dict(config)
        body = body_of(task_id=task, seed=seed, config=overrides, episode_id=episode_id)
        return Request("POST", "/reset", body, parse=self._episode)

    @operation
    def tasks(self) -> Request[list[dict[str, Any]]]:
        """The tasks."""
        return Request("GET", "/tasks", parse=lambda body: body["tasks"])

    @operation
    def info(self) -> Request[dict[str, Any]]:
        """Spaces, weights, provenance of the table, limits."""
        return Request("GET", "/info")

    @operation
    def health(self) -> Request[dict[str, Any]]:
        """Is the server up."""
        return Request("GET", "/health")

    @operation
    def baseline(self) -> Request[dict[str, Any]]:
        """Scores of the fixed agent."""
        return Request("GET", "/baseline")

    @operation
    def grade(self, **request: Any) -> Request[dict[str, Any]]:
        """POST /grader with any of its three forms, as keywords."""
        return Request("POST", "/grader", request)

    @operation
    def rollout(
        self,
        task: int | str,
        seeds: Sequence[int],
        policy: str | None = None,
        *,
        actions: Sequence[Sequence[ServeAction | FleetAction | Mapping[str, Any]]] | None = None,
        config: Mapping[str, float] | None = None,
        trajectories: bool = False,
    ) -> Request[Any]:
        """Whole episodes in one call: the scores as a dict, or with ``trajectories`` every step as a pyarrow table."""
        body = body_of(
            task_id=task,
            seeds=[int(seed) for seed in seeds],
            policy=policy,
            actions=None if actions is None else [[knobs(action) for action in sequence] for sequence in actions],
            config=None if config is None else dict(config),
            trajectories=trajectories,
            format="arrow" if trajectories else None,
        )
        return Request("POST", "/rollout", body, parse=read_table)


class Episode(EpisodeOperations):
    """One session on the server; made by ``Client.reset``."""

    def __init__(self, client: Client, body: dict[str, Any]):
        super().__init__(body)
        self._client: Client = client

    def send(self, request: Request[T], /) -> T:
        """Send a request of this session; see ``Client.send``."""
        return self._client.send(request)


class AsyncEpisode(EpisodeOperations):
    """One session on the server; made by ``AsyncClient.reset``. What ``Episode`` does is awaited here."""

    def __init__(self, client: AsyncClient, body: dict[str, Any]):
        super().__init__(body)
        self._client: AsyncClient = client

    async def send(self, request: Request[T], /) -> T:
        """Send a request of this session; see ``AsyncClient.send``."""
        return await self._client.send(request)


class Client(Operations[Episode]):
    """A server, synchronously.

    Args:
        base_url: where it listens.
        retry: how to send again.
        timeout_s: of one attempt.
        transport: an httpx transport instead of the network (tests).
    """

    def __init__(
        self,
        base_url: str = "http://localhost:7860",
        *,
        retry: Retry | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ):
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, transport=transport)
        self._retry = retry or Retry()
        self._episode = functools.partial(Episode, self)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, request: Request[T]) -> T:
        """Send a request, again where that is safe and helps, and read its answer."""
        attempt = 0
        while True:
            try:
                outcome = self._http.request(**request.arguments())
            except httpx.TransportError as error:
                outcome = error
            wait_s = self._retry.wait_s(attempt, outcome)
            if wait_s is None:
                return request.read(outcome)
            time.sleep(wait_s)
            attempt += 1


class AsyncClient(Operations[AsyncEpisode]):
    """A server, asynchronously; arguments and methods as in ``Client``."""

    def __init__(
        self,
        base_url: str = "http://localhost:7860",
        *,
        retry: Retry | None = None,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self._http = httpx.AsyncClient(base_url=base_url, timeout=timeout_s, transport=transport)
        self._retry = retry or Retry()
        self._episode = functools.partial(AsyncEpisode, self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, request: Request[T]) -> T:
        """Send a request, again where that is safe and helps, and read its answer."""
        attempt = 0
        while True:
            try:
                outcome = await self._http.request(**request.arguments())
            except httpx.TransportError as error:
                outcome = error
            wait_s = self._retry.wait_s(attempt, outcome)
            if wait_s is None:
                return request.read(outcome)
            await asyncio.sleep(wait_s)
            attempt += 1
