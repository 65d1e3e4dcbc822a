"""The reference of a fleet: engines of ``batching`` behind a router, request by request.

    serve_fleet(requests, settings, profile, plan, fleet) -> FleetResult

A request goes on arrival to the serving engine with fewest requests (join the shortest queue), the first of equals. A
plan says how many GPUs are asked for in each decision of five seconds. GPUs stand in slots: asked for are the first;
one that was not there is paid from the asking, for `lease_s` at least, and serves after `start_s`; one that is given
back takes nothing new and is paid until it is empty; asked for again before that, it goes on. What is asked for first
is there at once. A GPU that fails loses what ran on it: its requests are routed anew, to be computed again, and it
starts anew. Written from this description and from no formula of the fluid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.reference.batching import Engine, PrefillQueue, Request
from tests.reference.prefill_gpu import PrefillGpu
from tests.reference.settings import Settings
from tests.reference.traffic import Requests

DECISION_MS = 5000.0


@dataclass(frozen=True)
class Fleet:
    """What the fleet's GPUs take: seconds, and failures as (second, slot)."""

    start_s: float = 30.0
    lease_s: float = 60.0
    role_s: float = 5.0
    failures: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True)
class FleetResult:
    """What became of every request, in the order given, ms (NaN: never); GPUs paid for in each second of the plan."""

    requests: Requests
    first_token_ms: np.ndarray
    finish_ms: np.ndarray
    slot: np.ndarray
    paid: np.ndarray
    tokens_made: int

    @property
    def ttft_ms(self) -> np.ndarray:
        """[requests] from arrival to first token."""
        return self.first_token_ms - self.requests.arrival_ms

    @property
    def tpot_ms(self) -> np.ndarray:
        """[requests] mean time between a request's tokens; NaN for a single token."""
        gaps = self.requests.output - 1
        return np.where(gaps > 0, (self.finish_ms - self.first_token_ms) / np.maximum(gaps, 1), np.nan)

    def on_time(self, ttft_ms: float, tpot_ms: float) -> np.ndarray:
        """[requests] bool: within both objectives."""
        with np.errstate(invalid="ignore"):
            quick = (self.requests.output == 1) | (self.tpot_ms <= tpot_ms)
            return (self.ttft_ms <= ttft_ms) & quick & np.isfinite(self.finish_ms)


class PromptPool(PrefillGpu):
    """A GPU that computes prompts for several engines; what is complete goes to the one that asked."""

    def __init__(self, profile: dict[str, Any], settings: Settings, engines: list[Engine]):
        super().__init__(profile, settings, engines[0])
        self.engines = engines

    def put(self, request: Request) -> None:
        """A prompt to compute, of the engine that the request was routed to."""
        self.queue.append(request)

    def end(self, now: float) -> None:
        """Hand on what is complete, one after the other over this GPU's link."""
        for request, _, end in self.chunks:
            request.computed = end
            if end == request.target:
                self.queue.remove(request)
                bytes_moved = request.target * self.profile["kv_bytes_per_token"]
                self.link_free = max(self.link_free, now) + bytes_moved / (self.settings.transfer_gb_s * 1e6)
                ready = self.engines[request.gpu].ready
                ready.append((self.link_free, request))
        self.chunks, self.phase, self.event = [], "idle", math.inf


class Shortest(PrefillQueue):
    """The prefill GPUs as an engine sees them: a prompt goes to the one with fewest."""

    def __init__(self, pools: list[PromptPool]):
        self.pools = pools

    def put(self, request: Request) -> None:
        """A prompt to compute."""
        min(self.pools, key=lambda pool: pool.waiting).put(request)

    def drop(self, request: Request) -> None:
        """The request was preempted."""
        for pool in self.pools:
            pool.drop(request)


@dataclass
class Slot:
    """A GPU's place: when it serves, until when it is paid at least, whether it is there."""

    engine: Engine
    there: bool = False
    active: bool = False
    serves: float = 0.0
    least: float = 0.0

    def takes(self, now: float) -> bool:
        """Whether new requests may come."""
        return self.active and self.serves <= now


class Cluster:
    """Slots and the router."""

    def __init__(self, profile: dict[str, Any], settings: Settings, fleet: Fleet, most: int, prefill: int = 0):
        self.fleet, self.prefill = fleet, prefill
        self.slots = [Slot(Engine(profile, replace(settings, seed=settings.seed + i), i)) for i in range(most)]
        engines = [slot.engine for slot in self.slots]
        self.prompts = [PromptPool(profile, settings, engines) for _ in range(prefill)]
        self.orphans: list[Request] = []

    def resize(self, asked: int, now: float, first: bool) -> None:
        """Ask for so many GPUs."""
        for i, slot in enumerate(self.slots):
            if i < asked and not slot.there:
                slot.there = True
                slot.serves = now if first else now + 1000 * self.fleet.start_s
                slot.least = now + 1000 * self.fleet.lease_s
            slot.active = i < asked
        shortest = Shortest(self.prompts)
        for slot in self.slots[self.prefill :]:
            slot.engine.remote = shortest if self.prefill else None
        self.release(now)

    def fail(self, index: int, now: float) -> None:
        """The slot's GPU fails."""
        slot, engine = self.slots[index], self.slots[index].engine
        if not slot.takes(now):
            return
        while engine.running:
            engine.preempt()
        lost = [request for line in engine.lines for request in line]
        for line in engine.lines:
            line.clear()
        engine.surface(now)
        engine.phase, engine.event, engine.chunks = "idle", math.inf, []
        slot.serves = now + 1000 * self.fleet.start_s
        for request in lost:
            self.route(request, now)
        self.wake(now)

    def route(self, request: Request, now: float) -> None:
        """To the engine with fewest requests."""
        open_slots = [slot for slot in self.slots[self.prefill :] if slot.takes(now)]
        if not open_slots:
            self.orphans.append(request)
            return
        engine = min(open_slots, key=lambda slot: slot.engine.waiting + slot.engine.running).engine
        if request.target == request.prompt:
            engine.submit(request)
        else:  # computed again before anything else
            request.gpu = engine.number
            engine.lines[request.priority].appendleft(request)

    def next_event(self, now: float) -> float:
        """When an engine has something to end, or a GPU begins to serve."""
        starts = [slot.serves for slot in self.slots if slot.active and slot.serves > now]
        ends = [slot.engine.event for slot in self.slots] + [pool.event for pool in self.prompts]
        return min(starts + ends)

    def advance(self, now: float) -> None:
        """Carry out what is due now."""
        for gpu in [*self.prompts, *(slot.engine for slot in self.slots)]:
            if gpu.event <= now:
                gpu.end(now)
                gpu.begin(now)
        self.wake(now)

    def wake(self, now: float) -> None:
        """Route what waits for an engine, and schedule on those that are idle."""
        orphans, self.orphans = self.orphans, []
        for request in orphans:
            self.route(request, now)
        for gpu in [*(slot.engine for slot in self.slots), *self.prompts]:
            if gpu.phase == "idle" and (gpu.waiting or gpu.running or getattr(gpu, "surfacing", None)):
                gpu.begin(now)
        self.release(now)

    def release(self, now: float) -> None:
        """Give up what was given back, is empty and has been paid for long enough."""
        for slot in self.slots:
            empty = not (slot.engine.waiting or slot.engine.running)
            if slot.there and not slot.active and empty and slot.least <= now:
                slot.there = False

    def paid(self) -> int:
        """GPUs paid for."""
        return sum(slot.there for slot in self.slots)


def serve_fleet(
    requests: Requests,
    settings: Settings,
    profile: dict[str, Any],
    plan: Sequence[int],
    fleet: Fleet = Fleet(),
    prefill: int = 0,
) -> FleetResult:
    """Serve the requests until none is left.

    Args:
        requests: the traffic.
        settings: of every engine.
        profile: the JSON of an engine profile.
        plan: GPUs asked for in each decision; the last holds until all is served.
        fleet: starts, leases, failures.
        prefill: of the GPUs, the first so many compute prompts for the others, all the time.
    """
    arrivals = requests.arrival_ms.tolist()
    columns = (requests.prompt.tolist(), requests.output.tolist(), requests.priority.tolist())
    rows = [Request(i, *row) for i, row in enumerate(zip(arrivals, *columns, strict=True))]
    cluster = Cluster(profile, settings, fleet, max(plan), prefill)
    seconds = round(len(plan) * DECISION_MS / 1000)
    paid = np.zeros(seconds)
    failures = sorted(fleet.failures)
    coming, decision, failing, now, billed = 0, 0, 0, 0.0, 0
    while True:
        arrival = arrivals[coming] if coming < len(rows) else math.inf
        decides = DECISION_MS * decision if decision < len(plan) else math.inf
        fails = 1000 * failures[failing][0] if failing < len(failures) else math.inf
        bill = 1000.0 * billed if billed < seconds else math.inf
        at = min(arrival, decides, fails, bill, cluster.next_event(now))
        if at == math.inf:
            break
        now = at
        if decides <= now:
            cluster.resize(plan[decision], now, decision == 0)
            decision += 1
            cluster.wake(now)
        elif fails <= now:
            cluster.fail(failures[failing][1], now)
            failing += 1
        elif bill <= now:
            cluster.release(now)
            paid[billed] = cluster.paid()
            billed += 1
        elif arrival <= now:
            cluster.route(rows[coming], now)
            coming += 1
            cluster.wake(now)
        else:
            cluster.advance(now)
    return FleetResult(
        requests=requests,
        first_token_ms=np.array([row.first_token for row in rows]),
        finish_ms=np.array([row.finish for row in rows]),
        slot=np.array([row.gpu for row in rows], np.int64),
        paid=paid,
        tokens_made=int(sum(sum(row[4] for row in slot.engine.log) for slot in cluster.slots)),
    )
