"""A spare engine in a replay: the states of ``capacity.spare.Spare`` on simulated time, and the two engines as one.

``measure_spare -> SpareTimes -> ForetoldSpare, Pair``. Starts and stops take the times that were measured; none fails.
While both engines run an iteration, each takes longer by the factor that was measured (``measure.beside``).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

from inferencegym_jax.live.capacity.engines import Engines
from inferencegym_jax.live.capacity.lifecycle import LifecycleError
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.capacity.spare import opened
from inferencegym_jax.live.measure.beside import Beside, Load, measure_beside
from inferencegym_jax.live.server.combined import Combined
from inferencegym_jax.live.server.probe import EngineError, EngineMetrics, probe
from inferencegym_jax.live.server.streaming import Endpoint, hide_user, open_client
from inferencegym_jax.live.trial.profile_engine import EngineRequest, ProfileEngine


async def measure_spare(settings: SpareSettings, first: Endpoint, load: Load | None) -> SpareTimes:
    """Start a spare once and stop it again, and take the times; while it is up, measure what the two engines cost each
    other.

    Args:
        settings: of the spare.
        first: the engine that always runs.
        load: on both while that is measured; None takes it for granted that they share nothing.

    Raises:
        EngineError: it does not start, or does not stop; the message says how.
    """
    async with opened(settings) as spare:
        assert spare is not None
        try:
            await spare.end()  # should it run already
            spare.ask(True)
            while not spare.serves:
                await asyncio.sleep(0.02)
                if spare.history.failures["start"]:
                    raise EngineError(f"spare {hide_user(settings.url)}: {spare.history.last_failure}")
            beside = None if load is None else await _beside(first, settings.url, load)
            await spare.end()
        except LifecycleError as error:
            raise EngineError(str(error)) from None
        times = SpareTimes(spare.history.start_s[-1], spare.history.stop_s[-1], settings.lease_s)
        return times if beside is None else dataclasses.replace(times, slowdown=beside.slowdown, beside=beside)


async def _beside(first: Endpoint, url: str, load: Load) -> Beside:
    async with open_client(first) as client:
        accepted = (await probe(client, first)).endpoint
        second = dataclasses.replace(accepted, base_url=url)
        async with open_client(second) as other:
            return await measure_beside((client, accepted), (other, second), load)


@dataclass(frozen=True)
class SpareTimes:
    """What a spare takes, seconds.

    Attributes:
        start_s: from the asking to the first request that it may get.
        stop_s: of a stop, after it was empty.
        lease_s: for which it is kept at least.
        slowdown: no seconds, but by what an iteration's time is multiplied while both engines run one; 1 where they
            share nothing.
        beside: how that was measured; None where it was not.
        under_load: by what ``slowdown`` was multiplied for iterations under the load that is sent
            (``scenarios.calibration``); None where that was not measured.
    """

    start_s: float
    stop_s: float = 0.0
    lease_s: float = 60.0
    slowdown: float = 1.0
    beside: Beside | None = None
    under_load: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.slowdown < float("inf"):
            raise ValueError(f"slowdown = {self.slowdown}: must be a number above 0")
        for name in ("start_s", "stop_s", "lease_s"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} = {value}: must be a number of seconds of at least 0")


class ForetoldSpare:
    """One spare; ``tick`` brings it to a moment, in seconds of the replay."""

    def __init__(self, times: SpareTimes):
        self.times = times
        self.now = 0.0
        self.inside = 0
        self.state: Literal["off", "starting", "serving", "draining", "stopping"] = "off"
        self.on_change: Callable[[], None] = lambda: None
        self._wanted = False
        self._asked_s = self._until_s = 0.0
        self._billed_s = 0.0

    @property
    def serves(self) -> bool:
        """Whether new requests go to it."""
        return self.state == "serving"

    @property
    def is_up(self) -> bool:
        """Whether it runs requests."""
        return self.state in ("serving", "draining")

    @property
    def billed_s(self) -> float:
        """Seconds that are paid for so far."""
        return self._billed_s + (self.now - self._asked_s if self.state != "off" else 0.0)

    def ask(self, wanted: bool) -> None:
        """Ask for it, or give it back."""
        self._wanted = wanted
        self.tick(self.now)

    def enter(self) -> None:
        """A request is sent to it."""
        self.inside += 1

    def leave(self) -> None:
        """It has ended."""
        self.inside -= 1
        self.tick(self.now)

    def suspect(self) -> None:
        """A foretold engine refuses nobody."""

    def tick(self, now: float) -> None:
        """Bring it to a moment."""
        self.now = now
        before = None
        while before != self.state:
            before = self.state
            self._move()
        self.on_change()

    def _is_kept(self) -> bool:
        return self._wanted or self.now < self._asked_s + self.times.lease_s

    def _move(self) -> None:
        if self.state == "off" and self._wanted:
            self.state, self._asked_s, self._until_s = "starting", self.now, self.now + self.times.start_s
        elif self.state == "starting" and self.now >= self._until_s:
            self.state = "serving"
        elif self.state == "starting" and not self._is_kept():
            self._end()
        elif self.state == "serving" and not self._wanted:
            self.state = "draining"
        elif self.state == "draining" and self._wanted:
            self.state = "serving"
        elif self.state == "draining" and not self.inside and not self._is_kept():
            self._end()
        elif self.state == "stopping" and self.now >= self._until_s:
            self._billed_s += self._until_s - self._asked_s
            self.state = "off"

    def _end(self) -> None:
        self.state, self._until_s = "stopping", self.now + self.times.stop_s


class Pair:
    """Two engines that iterate side by side, as one: ``start`` and ``end`` go to the next end of an iteration.

    Args:
        engines: the upstream and its spare.
        slowdown: by what an iteration takes longer as long as the other engine runs one too.
    """

    def __init__(self, engines: Engines[ProfileEngine], slowdown: float = 1.0):
        self.engines, self.slowdown = engines, slowdown
        self._left_ms: dict[ProfileEngine, float] = {}  # of the iterations under way, as if they were alone
        self._combined = Combined()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run, nor to show."""
        return not self._left_ms and all(place.handle.idle for place in self.engines.places)

    def metrics(self) -> EngineMetrics:
        """What the two servers' ``/metrics`` would say, as one."""
        up = self.engines.up
        readings: dict[Hashable, EngineMetrics] = {id(place): place.handle.metrics() for place in up}
        reading = self._combined.read(readings, {id(place) for place in up if place.serves})
        assert reading is not None
        return reading

    def start(self, most_ms: float) -> float:
        """Let those that can begin an iteration; ms until one ends, at most ``most_ms`` while the other has nothing to
        do."""
        for place in self.engines.places:
            if place.handle not in self._left_ms and not place.handle.idle:
                self._left_ms[place.handle] = place.handle.start()
        both = len(self._left_ms) == len(self.engines.places) > 1
        stretched = self.slowdown if both else 1.0
        length = min(self._left_ms.values()) * stretched
        if not both:
            length = min(length, most_ms)
        self._left_ms = {engine: left - length / stretched for engine, left in self._left_ms.items()}
        return length

    def end(self) -> list[EngineRequest]:
        """Carry out the iterations that have ended; the requests whose next token the client sees."""
        shown: list[EngineRequest] = []
        for engine in [engine for engine, left in self._left_ms.items() if left <= 1e-9]:
            del self._left_ms[engine]
            shown += engine.end()
        return shown
