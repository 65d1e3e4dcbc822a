"""How an engine is brought up and taken down: by shell commands, or by its own sleep and wake endpoints.

``start`` returns once the start is under way, ``answers`` says whether it serves by now, ``ended`` why it never will.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Protocol

import httpx

from inferencegym_jax.live.capacity.settings import SpareSettings

POLL_S = 0.02  # between two looks at a command that runs
GRACE_S = 10.0  # from the request to end to the kill, at most


class LifecycleError(RuntimeError):
    """A start or a stop that failed; the message says how."""


class Lifecycle(Protocol):
    """What brings an engine up and takes it down."""

    async def start(self) -> None:
        """Set the start under way; ``LifecycleError`` where that fails."""
        ...

    def ended(self) -> str | None:
        """Why the engine that was started does not run any more, in words; None as far as is known."""
        ...

    async def stop(self) -> None:
        """Take it down, whatever state it is in, until it no longer answers; ``LifecycleError`` where that fails."""
        ...

    async def answers(self) -> bool:
        """Whether its health check says that it serves."""
        ...


def lifecycle_of(settings: SpareSettings, client: httpx.AsyncClient) -> Lifecycle:
    """The way that the settings name.

    Args:
        settings: of the spare.
        client: whose base URL is the spare's.
    """
    return SleepAndWake(settings, client) if settings.sleeps else Commands(settings, client)


async def is_healthy(client: httpx.AsyncClient, settings: SpareSettings) -> bool:
    """Whether GET ``health_path`` answers 200 in time."""
    try:
        response = await client.get(settings.health_path, timeout=settings.health_every_s)
    except httpx.HTTPError:
        return False
    return response.status_code == 200


class Commands:
    """An engine that shell commands start and stop; each runs in a process group of its own."""

    def __init__(self, settings: SpareSettings, client: httpx.AsyncClient):
        self.settings, self.client = settings, client
        self._started: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Run the start command; it may stay in the foreground."""
        assert self.settings.start_cmd is not None
        self._started = _spawn(self.settings.start_cmd)

    def ended(self) -> str | None:
        """The start command's failure, or its end where it should have stayed."""
        if self._started is None or (status := self._started.poll()) is None:
            return None
        if status != 0:
            return f"the start command ended with {_shown_status(status)}"
        if self.settings.stop_cmd is None:
            return "the start command ended with status 0: without a stop command it must stay in the foreground"
        return None

    async def stop(self) -> None:
        """Run the stop command, end what the start command left, and wait until the health check is silent."""
        failure = None
        if self.settings.stop_cmd is not None:
            process = _spawn(self.settings.stop_cmd)
            try:
                while (status := process.poll()) is None:
                    await asyncio.sleep(POLL_S)
            finally:
                if process.poll() is None:  # a stop that hangs, which somebody cancelled
                    _signal(process, signal.SIGKILL)
                    process.wait()
            if status != 0:
                failure = f"the stop command ended with {_shown_status(status)}"
        await self._end_group()
        if failure is not None:
            raise LifecycleError(failure)
        while await self.answers():
            await asyncio.sleep(min(POLL_S, self.settings.health_every_s))

    async def answers(self) -> bool:
        """Whether the health check says that it serves."""
        return await is_healthy(self.client, self.settings)

    async def _end_group(self) -> None:
        process, self._started = self._started, None
        if process is None:
            return
        try:
            if process.poll() is None or self.settings.stop_cmd is None:
                _signal(process, signal.SIGTERM)
                deadline = time.monotonic() + min(GRACE_S, self.settings.stop_timeout_s / 2)
                while process.poll() is None and time.monotonic() < deadline:
                    await asyncio.sleep(POLL_S)
        finally:
            if process.poll() is None or self.settings.stop_cmd is None:
                _signal(process, signal.SIGKILL)
            while process.poll() is None:  # reaped at once: it cannot refuse
                await asyncio.sleep(POLL_S)


class SleepAndWake:
    """An engine that runs always and is woken and put to sleep by its own endpoints."""

    def __init__(self, settings: SpareSettings, client: httpx.AsyncClient):
        self.settings, self.client = settings, client

    async def start(self) -> None:
        """Wake it."""
        await self._post(self.settings.wake_path, self.settings.start_timeout_s)

    def ended(self) -> str | None:
        """Nothing is known but what its health check says."""
        return None

    async def stop(self) -> None:
        """Put it to sleep."""
        await self._post(self.settings.sleep_path, self.settings.stop_timeout_s)
        while await self.answers():
            await asyncio.sleep(min(POLL_S, self.settings.health_every_s))

    async def answers(self) -> bool:
        """Whether it is healthy and does not say that it sleeps: a sleeping engine's health check may answer."""
        if not await is_healthy(self.client, self.settings):
            return False
        try:
            response = await self.client.get("/is_sleeping", timeout=self.settings.health_every_s)
            return not (response.status_code == 200 and response.json().get("is_sleeping") is True)
        except (httpx.HTTPError, ValueError, AttributeError):
            return True  # it has no such endpoint: its health check is all that it says

    async def _post(self, path: str | None, timeout_s: float) -> None:
        assert path is not None
        try:
            response = await self.client.post(path, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise LifecycleError(f"POST {path}: {error or type(error).__name__}") from None
        if not 200 <= response.status_code < 300:
            raise LifecycleError(f"POST {path}: answered {response.status_code}")


def _spawn(command: str) -> subprocess.Popen[bytes]:
    """A shell command in a process group of its own; what it prints goes to this process's standard error."""
    try:
        error = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # a stream that is no file
        error = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=error, stderr=error, start_new_session=True
        )
    except OSError as fault:
        raise LifecycleError(f"a command cannot be run: {fault.strerror or fault}") from None


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _shown_status(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {-status}"
