"""The HTTP API as Python: sync and async, typed with the library's models, safe to retry.

    from inferencegym_jax.client import Client
    with Client("http://localhost:7860") as client:
        episode = client.reset(2, seed=7)
        while not episode.done:
            step = episode.step(ServeAction(batch_size=64))
        print(episode.grade()["score"])

Needs httpx (``pip install "inferencegym-jax[client]"``). Every step carries a ``step_id``: when a connection breaks or
the server answers 502, 503, 504 or 429 the same step is sent again, and the server takes it once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from inferencegym_jax.models import ServeAction
from inferencegym_jax.wire import (
    RETRIED,
    ApiError,
    Call,
    EpisodeView,
    Retry,
    Step,
    read,
    read_table,
    reset_call,
    rollout_call,
    step_call,
)

__all__ = ["ApiError", "AsyncClient", "AsyncEpisode", "Client", "Episode", "Retry", "Step"]


class Episode(EpisodeView):
    """One session on the server; made by ``Client.reset``."""

    def __init__(self, client: Client, answer: dict[str, Any]):
        super().__init__(answer)
        self._client = client

    def step(self, action: ServeAction | Mapping[str, Any]) -> Step:
        """One simulated second.

        Raises:
            ValueError, TypeError: a knob of a ``ServeAction`` is out of range.
            ApiError: the server refused (404 expired, 409 over, 422 out of range).
        """
        return self.take(self._client.send(step_call(self.session_id, action)))

    def state(self) -> dict[str, Any]:
        """Where the session stands on the server."""
        return self._client.send(Call("GET", "/state", query={"session_id": self.session_id}))

    def grade(self) -> dict[str, Any]:
        """Score, breakdown, feedback, verified."""
        return self._client.send(Call("POST", "/grader", {"session_id": self.session_id}))


class AsyncEpisode(EpisodeView):
    """One session on the server; made by ``AsyncClient.reset``. Methods as in ``Episode``."""

    def __init__(self, client: AsyncClient, answer: dict[str, Any]):
        super().__init__(answer)
        self._client = client

    async def step(self, action: ServeAction | Mapping[str, Any]) -> Step:
        """One simulated second; see ``Episode.step``."""
        return self.take(await self._client.send(step_call(self.session_id, action)))

    async def state(self) -> dict[str, Any]:
        """Where the session stands on the server."""
        return await self._client.send(Call("GET", "/state", query={"session_id": self.session_id}))

    async def grade(self) -> dict[str, Any]:
        """Score, breakdown, feedback, verified."""
        return await self._client.send(Call("POST", "/grader", {"session_id": self.session_id}))


class Client:
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

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call) -> Any:
        """Send a request, again where that is safe and helps; the answer's JSON (bytes for Arrow)."""
        for attempt in range(self._retry.attempts):
            last = attempt == self._retry.attempts - 1
            answer = None
            try:
                answer = self._http.request(**call.arguments())
                if answer.status_code not in RETRIED or last:
                    return read(answer)
            except httpx.TransportError:
                if last:
                    raise
            time.sleep(self._retry.wait_s(attempt, answer))
        raise ValueError(f"attempts = {self._retry.attempts}: must be at least 1")

    def reset(
        self,
        task: int | str = 1,
        seed: int | None = None,
        config: Mapping[str, float] | None = None,
        episode_id: str | None = None,
    ) -> Episode:
        """Start an episode; without a seed the server draws one and ``Episode.seed`` says which."""
        return Episode(self, self.send(reset_call(task, seed, config, episode_id)))

    def tasks(self) -> list[dict[str, Any]]:
        """The tasks."""
        return self.send(Call("GET", "/tasks"))

    def info(self) -> dict[str, Any]:
        """Spaces, weights, provenance of the table, limits."""
        return self.send(Call("GET", "/info"))

    def health(self) -> dict[str, Any]:
        """Is the server up."""
        return self.send(Call("GET", "/health"))

    def baseline(self) -> dict[str, Any]:
        """Scores of the fixed agent."""
        return self.send(Call("GET", "/baseline"))

    def grade(self, **request: Any) -> dict[str, Any]:
        """POST /grader with any of its three forms, as keywords."""
        return self.send(Call("POST", "/grader", request))

    def rollout(
        self,
        task: int | str,
        seeds: Sequence[int],
        policy: str | None = None,
        *,
        actions: Sequence[Sequence[ServeAction | Mapping[str, Any]]] | None = None,
        config: Mapping[str, float] | None = None,
        trajectories: bool = False,
    ) -> Any:
        """Whole episodes in one call: the scores as a dict, or with ``trajectories`` every step as a pyarrow table."""
        return read_table(self.send(rollout_call(task, seeds, policy, actions, config, trajectories)))


class AsyncClient:
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

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call) -> Any:
        """Send a request, again where that is safe and helps; the answer's JSON (bytes for Arrow)."""
        for attempt in range(self._retry.attempts):
            last = attempt == self._retry.attempts - 1
            answer = None
            try:
                answer = await self._http.request(**call.arguments())
                if answer.status_code not in RETRIED or last:
                    return read(answer)
            except httpx.TransportError:
                if last:
                    raise
            await asyncio.sleep(self._retry.wait_s(attempt, answer))
        raise ValueError(f"attempts = {self._retry.attempts}: must be at least 1")

    async def reset(
        self,
        task: int | str = 1,
        seed: int | None = None,
        config: Mapping[str, float] | None = None,
        episode_id: str | None = None,
    ) -> AsyncEpisode:
        """Start an episode."""
        return AsyncEpisode(self, await self.send(reset_call(task, seed, config, episode_id)))

    async def tasks(self) -> list[dict[str, Any]]:
        """The tasks."""
        return await self.send(Call("GET", "/tasks"))

    async def info(self) -> dict[str, Any]:
        """Spaces, weights, provenance of the table, limits."""
        return await self.send(Call("GET", "/info"))

    async def health(self) -> dict[str, Any]:
        """Is the server up."""
        return await self.send(Call("GET", "/health"))

    async def baseline(self) -> dict[str, Any]:
        """Scores of the fixed agent."""
        return await self.send(Call("GET", "/baseline"))

    async def grade(self, **request: Any) -> dict[str, Any]:
        """POST /grader with any of its three forms, as keywords."""
        return await self.send(Call("POST", "/grader", request))

    async def rollout(
        self,
        task: int | str,
        seeds: Sequence[int],
        policy: str | None = None,
        *,
        actions: Sequence[Sequence[ServeAction | Mapping[str, Any]]] | None = None,
        config: Mapping[str, float] | None = None,
        trajectories: bool = False,
    ) -> Any:
        """Whole episodes in one call; see ``Client.rollout``."""
        return read_table(await self.send(rollout_call(task, seeds, policy, actions, config, trajectories)))
