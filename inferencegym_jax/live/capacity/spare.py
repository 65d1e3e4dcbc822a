"""A spare engine from the asking to its end: what it is doing, who may use it, what it costs.

``ask -> off | asked -> starting -> serving -> draining -> stopping -> off``. It is paid from the asking until it has
stopped, for the lease at least. A start that fails or hangs is taken down, reported and tried again after a wait that
doubles; so is a stop. One that does not answer its health check takes nothing new, and is started anew after a few
misses. Belongs to one event loop; ``ask``, ``enter``, ``leave`` and ``suspect`` are plain calls from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import httpx

from inferencegym_jax.live.capacity.lifecycle import Lifecycle, LifecycleError, lifecycle_of
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.server.cancellation import cancel_all
from inferencegym_jax.live.server.streaming import Endpoint, hide_user, open_client

log = logging.getLogger(__name__)

State = Literal["off", "asked", "starting", "serving", "draining", "stopping"]
STATES: tuple[State, ...] = get_args(State)
Failure = Literal["start", "stop", "died"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
END_POLL_S = 0.02
START_POLL_S = 0.25  # between two looks at a start, at most
MOST_MISSED = 3  # health checks in a row, after which one that served counts as dead


@dataclass
class History:
    """What has happened so far; seconds of every start (to the first healthy answer) and of every stop."""

    start_s: list[float] = field(default_factory=list[float])
    stop_s: list[float] = field(default_factory=list[float])
    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    last_failure: str | None = None


class Spare:
    """One spare engine.

    Args:
        settings: how it is started, stopped and watched.
        client: whose base URL is the spare's; closed by whoever opened it.
        lifecycle: what brings it up and takes it down; default: what the settings name.

    Attributes:
        state: what it is doing.
        wanted: what was last asked; None before the first question.
        inside: requests that were sent to it and have not ended.
        history: starts, stops and failures so far.
        on_change: called after every change of what it is doing.
    """

    def __init__(self, settings: SpareSettings, client: httpx.AsyncClient, lifecycle: Lifecycle | None = None):
        self.settings = settings
        self.lifecycle = lifecycle_of(settings, client) if lifecycle is None else lifecycle
        self.state: State = "off"
        self.wanted: bool | None = None
        self.inside = 0
        self.history = History()
        self.on_change: Callable[[], None] = lambda: None  # called when it begins or ceases to serve
        self._suspected = False
        self._lease_end_s = 0.0
        self._billed_s, self._billed_from = 0.0, time.monotonic()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        """Whether new requests may be sent to it."""
        return self.state == "serving" and not self._suspected

    @property
    def is_up(self) -> bool:
        """Whether it runs requests."""
        return self.state in ("serving", "draining")

    @property
    def billed_s(self) -> float:
        """Seconds that are paid for so far: from each asking until it had stopped."""
        return self._billed_s + (time.monotonic() - self._billed_from if self.state != "off" else 0.0)

    @property
    def lease_left_s(self) -> float:
        """Seconds for which it must still be kept."""
        return max(self._lease_end_s - time.monotonic(), 0.0) if self.state != "off" else 0.0

    def ask(self, wanted: bool) -> None:
        """Ask for it, or give it back: from this moment on it takes nothing new."""
        if self.state == "off" and wanted:
            self._lease()
        elif self.state == "serving" and not wanted:
            self._enter("draining")
        elif self.state == "draining" and wanted:
            self._enter("serving")
        self.wanted = wanted
        self._changed.set()

    async def end(self) -> None:
        """Give it back whatever is left of the lease, and wait until it is off.

        Raises:
            LifecycleError: it cannot be stopped.
        """
        self.ask(False)
        self._lease_end_s = 0.0
        failures = self.history.failures["stop"]
        while self.state != "off":
            await asyncio.sleep(END_POLL_S)
            if self.history.failures["stop"] > failures:
                raise LifecycleError(f"spare {hide_user(self.settings.url)}: {self.history.last_failure}")

    def enter(self) -> None:
        """A request is about to be sent to it."""
        self.inside += 1

    def leave(self) -> None:
        """That request has ended."""
        self.inside -= 1
        if not self.inside:
            self._changed.set()

    def suspect(self) -> None:
        """It refused a connection: nothing new goes there until its health check answers."""
        if self.is_up:
            self._suspected = True
            self._changed.set()
            self.on_change()

    async def open(self) -> None:
        """Begin to look after it, in a task."""
        is_up = await self.lifecycle.answers()
        if is_up:  # as an earlier proxy left it: kept if the first decision asks for it
            self._enter("draining")
        self._task = asyncio.create_task(self._look_after(is_up))

    async def close(self) -> None:
        """Give it back for good, whatever runs on it: stopped when this returns, or reported."""
        if self._task is not None:
            await cancel_all((self._task,))
        if self.state != "off":
            self._enter("stopping")
            if await self._stopped():
                self._enter("off")

    def status(self) -> dict[str, Any]:
        """What ``GET /status`` says of it; JSON-ready."""
        history = self.history
        return {
            "url": hide_user(self.settings.url),
            "state": self.state,
            "answers": self.serves or (self.state == "draining" and not self._suspected),
            "wanted": self.wanted,
            "running": self.inside,
            "lease_left_s": self.lease_left_s,
            "billed_s": self.billed_s,
            "starts": len(history.start_s),
            "stops": len(history.stop_s),
            "failures": dict(history.failures),
            "last_failure": history.last_failure,
            "last_start_s": history.start_s[-1] if history.start_s else None,
            "last_stop_s": history.stop_s[-1] if history.stop_s else None,
        }

    def _enter(self, state: State) -> None:
        now = time.monotonic()
        if self.state != "off":
            self._billed_s += now - self._billed_from
        self._billed_from, self.state = now, state
        self.on_change()

    def _lease(self) -> None:
        self._enter("asked")
        self._lease_end_s = time.monotonic() + self.settings.lease_s

    def _is_kept(self) -> bool:
        return self.wanted is not False or time.monotonic() < self._lease_end_s

    def _failed(self, kind: Failure, reason: str) -> None:
        self.history.failures[kind] += 1
        self.history.last_failure = f"{kind}: {reason}"[:300]
        log.warning("spare %s: %s: %s", hide_user(self.settings.url), kind, reason[:300])

    async def _wait(self, seconds: float | None = None) -> None:
        """Until something has changed, for so long at most."""
        # not wait_for, which in Python 3.11 loses a cancellation that comes together with the event
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    async def _look_after(self, is_up: bool) -> None:
        if is_up:
            while self.wanted is None:
                await self._wait()
            if self.wanted:
                self._lease()
        while True:
            try:
                if self.state == "off":
                    await self._wait()
                else:
                    await self._stay(is_up)
            except Exception as error:  # whatever it is, somebody must go on looking after it
                log.exception("looking after the spare failed")
                self._failed("died", f"looking after it failed: {type(error).__name__}")
                self._enter("stopping")
                await asyncio.sleep(self.settings.backoff_s)
            is_up = False

    async def _stay(self, is_up: bool) -> None:
        """From the asking until it has stopped, or until it is asked for again while it cannot be stopped."""
        failures, clean = 0, True
        while True:
            if is_up or await self._started():
                begun = time.monotonic()
                self._suspected = False
                self._enter("serving" if self.wanted else "draining")
                if await self._drained():
                    return await self._stop()
                if time.monotonic() - begun > self.settings.most_backoff_s:
                    failures = 0
            elif not self._is_kept():
                return await self._stop()
            is_up, failures = False, failures + 1
            self._enter("stopping")
            clean = await self._stopped(counts=False)
            self._enter("asked")
            await self._back_off(failures)
            if self.wanted is False:  # nothing is there that a lease could keep
                return self._enter("off") if clean else await self._stop()

    async def _started(self) -> bool:
        """Bring it up; whether it answers."""
        self._enter("starting")
        begun = time.monotonic()
        start = None
        try:
            if not await self.lifecycle.answers():
                start = asyncio.create_task(self.lifecycle.start())
                while not start.done() or not await self.lifecycle.answers():
                    if start.done():
                        start.result()
                    if (reason := self.lifecycle.ended()) is not None:
                        raise LifecycleError(reason)
                    if not self._is_kept():
                        return False
                    if time.monotonic() > begun + self.settings.start_timeout_s:
                        raise LifecycleError(f"no healthy answer within {self.settings.start_timeout_s:g} s")
                    await self._wait(min(self.settings.health_every_s, START_POLL_S))
        except LifecycleError as error:
            self._failed("start", str(error))
            return False
        finally:
            if start is not None:
                await cancel_all((start,))
        self.history.start_s.append(time.monotonic() - begun)
        return True

    async def _drained(self) -> bool:
        """While it is up: True once it is empty and given back, False when it is dead."""
        missed, due = 0, time.monotonic() + self.settings.health_every_s
        while True:
            if self.state == "draining" and not self.inside and not self._is_kept():
                return True
            left = due - time.monotonic()
            if self.state == "draining" and not self.inside:
                left = min(left, max(self.lease_left_s, 0.001))
            if not (self._suspected and not missed):
                await self._wait(max(left, 0.001))
            if time.monotonic() < due and not (self._suspected and not missed):
                continue
            is_well = await self.lifecycle.answers()
            due = time.monotonic() + self.settings.health_every_s
            missed = 0 if is_well else missed + 1
            if self._suspected == is_well:
                self._suspected = not is_well
                self.on_change()
            reason = self.lifecycle.ended()
            if reason is None and missed >= MOST_MISSED:
                reason = f"missed {missed} health checks in a row"
            if reason is not None:
                self._failed("died", reason)
                return False

    async def _stop(self) -> None:
        """Take it down, again and again; off afterwards, or asked where it was asked for meanwhile."""
        self._enter("stopping")
        failures = 0
        while not await self._stopped():
            failures += 1
            await self._back_off(failures)
            if self.wanted:
                return self._lease()
        if self.wanted:
            self._lease()
        else:
            self._enter("off")

    async def _stopped(self, counts: bool = True) -> bool:
        """Take it down once; whether that went well, and is counted as a stop."""
        begun = time.monotonic()
        stop = asyncio.create_task(self.lifecycle.stop())
        try:
            done, _ = await asyncio.wait((stop,), timeout=self.settings.stop_timeout_s)
            if not done:
                raise LifecycleError(f"not down within {self.settings.stop_timeout_s:g} s")
            stop.result()
        except LifecycleError as error:
            self._failed("stop", str(error))
            return False
        finally:
            await cancel_all((stop,))
        if counts:
            self.history.stop_s.append(time.monotonic() - begun)
        return True

    async def _back_off(self, failures: int) -> None:
        """Wait before the next try; shorter where what is wanted changes."""
        asked, settings = self.wanted, self.settings
        deadline = time.monotonic() + min(settings.backoff_s * 2.0 ** min(failures - 1, 30), settings.most_backoff_s)
        while self.wanted == asked and (left := deadline - time.monotonic()) > 0:
            await self._wait(left)


@contextlib.asynccontextmanager
async def opened(settings: SpareSettings | None) -> AsyncIterator[Spare | None]:
    """A spare that is looked after and given back at the end; None of None."""
    if settings is None:
        yield None
        return
    async with open_client(Endpoint(settings.url, "")) as client:
        spare = Spare(settings, client)
        await spare.open()
        try:
            yield spare
        finally:
            await spare.close()
