"""The reference: requests, settings and a profile in, what became of each request out.

    serve(requests, settings, profile, changes) -> Result -> summary.summarise(...)

Written from the description of the open-loop dynamics (ENVIRONMENT.md) and from no formula of the fluid. One loop over
events: arrivals, changes of settings, ends of iterations; an arrival is seen by the next schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.reference.batching import Engine, Request
from tests.reference.iteration import LONGEST
from tests.reference.prefill_gpu import PrefillGpu
from tests.reference.settings import Change, Settings
from tests.reference.traffic import Requests

ITERATION_FIELDS = ("start_ms", "end_ms", "decoding", "running", "tokens", "held")


@dataclass(frozen=True)
class Result:
    """What became of every request, in the order of the requests given. Times are ms; NaN: never.

    Attributes:
        first_token_ms, finish_ms: [requests] when the client had the first and the last token.
        preemptions: [requests] how often each was preempted.
        rejected: [requests] bool, refused on arrival (line full, or longer than the pool).
        gpu: [requests] 0 or 1, where it decoded.
        iterations: by GPU, a structured array with a row for each iteration: its start and end, requests decoding and
            running, output tokens made, pool tokens taken.
        pool: tokens of the first GPU's pool at the end.
        gpu_seconds: of both GPUs: the first from 0 to the end, the second from the asking to its release, and for its
            least lease.
        end_ms: end of the run.
    """

    requests: Requests
    first_token_ms: np.ndarray
    finish_ms: np.ndarray
    preemptions: np.ndarray
    rejected: np.ndarray
    gpu: np.ndarray
    iterations: tuple[np.ndarray, ...]
    pool: int
    gpu_seconds: float
    end_ms: float

    @property
    def ttft_ms(self) -> np.ndarray:
        """[requests] from arrival to first token."""
        return self.first_token_ms - self.requests.arrival_ms

    @property
    def tpot_ms(self) -> np.ndarray:
        """[requests] mean time between a request's tokens; NaN for a single token."""
        gaps = self.requests.output - 1
        return np.where(gaps > 0, (self.finish_ms - self.first_token_ms) / np.maximum(gaps, 1), np.nan)


class Lease:
    """The second GPU: asked for, started, given back, drained. Times ms."""

    def __init__(self, profile: dict[str, Any], settings: Settings, first: Engine, asked: float, serves: float):
        self.role, self.first = settings.second_gpu, first
        self.asked, self.serves, self.least = asked, serves, asked + 1000 * settings.lease_s
        self.draining, self.serving = False, False
        self.gpu = Engine(profile, settings, 1) if self.role == "replica" else PrefillGpu(profile, settings, first)

    def start(self) -> None:
        """It serves from now on."""
        self.serving, self.draining = True, False
        if isinstance(self.gpu, PrefillGpu):
            self.first.remote = self.gpu

    def give_back(self) -> None:
        """Nothing new for it; what it has it finishes."""
        self.draining = True
        self.first.remote = None

    def empty(self) -> bool:
        """Whether it has nothing left to do."""
        return not self.serving or not (self.gpu.waiting or self.gpu.running)


class Cluster:
    """The first GPU and, while it is leased, a second."""

    def __init__(self, profile: dict[str, Any], settings: Settings):
        self.profile, self.settings = profile, settings
        self.first = Engine(profile, settings)
        self.lease: Lease | None = None
        self.leased_ms = 0.0
        self.closed: list[Engine] = []
        if settings.second_gpu != "none":  # from the start: already warm
            self.lease = Lease(profile, settings, self.first, 0.0, 0.0)
            self.lease.start()

    def gpus(self) -> list[Engine | PrefillGpu]:
        """Those that serve or drain."""
        return [self.first] + ([self.lease.gpu] if self.lease is not None and self.lease.serving else [])

    def route(self, request: Request) -> None:
        """To the engine with fewer requests; the first where they are equal."""
        engine, lease = self.first, self.lease
        if lease is not None and lease.serving and not lease.draining and isinstance(lease.gpu, Engine):
            if lease.gpu.waiting + lease.gpu.running < engine.waiting + engine.running:
                engine = lease.gpu
        engine.submit(request)

    def change(self, change: Change, now: float) -> None:
        """New settings."""
        before, self.settings = self.settings, change.of(self.settings)
        for gpu in [self.first] + ([self.lease.gpu] if self.lease is not None else []):
            gpu.change(self.settings)
        wanted = self.settings.second_gpu
        if wanted == before.second_gpu:
            return
        if wanted == "none":
            assert self.lease is not None
            self.lease.give_back()
        elif self.lease is None:
            self.lease = Lease(self.profile, self.settings, self.first, now, now + 1000 * self.settings.start_s)
        elif wanted == self.lease.role and self.lease.draining:  # still there: it goes on serving
            self.lease.draining = False
            if self.lease.serving:
                self.lease.start()
        else:
            raise ValueError(f"second_gpu cannot go from {before.second_gpu} to {wanted} while the GPU is leased")

    def release(self, now: float) -> None:
        """End a lease that has drained."""
        lease = self.lease
        if lease is not None and lease.draining and lease.empty():
            self.leased_ms += max(now, lease.least) - lease.asked
            self.lease = None
            if isinstance(lease.gpu, Engine):
                self.closed.append(lease.gpu)

    def next_event(self) -> float:
        """When the next GPU has something to end or a leased one starts to serve."""
        lease = self.lease
        starts = lease.serves if lease is not None and not lease.serving and not lease.draining else math.inf
        return min(starts, *(gpu.event for gpu in self.gpus()))

    def advance(self, now: float) -> None:
        """Carry out what is due now."""
        lease = self.lease
        if lease is not None and not lease.serving and not lease.draining and lease.serves <= now:
            lease.start()
        for gpu in reversed(self.gpus()):  # a prefill GPU hands on before the other schedules
            if gpu.event <= now:
                gpu.end(now)
                gpu.begin(now)
        self.wake(now)

    def wake(self, now: float) -> None:
        """Schedule on the GPUs that are idle: something may have come."""
        for gpu in self.gpus():
            if gpu.phase == "idle":
                gpu.begin(now)
        self.release(now)


def serve(
    requests: Requests,
    settings: Settings,
    profile: dict[str, Any],
    changes: Sequence[Change] = (),
    horizon_s: float = math.inf,
) -> Result:
    """Serve the requests until none is left, or until `horizon_s`.

    Args:
        requests: the traffic.
        settings: at the start.
        profile: the JSON of an engine profile.
        changes: of the settings, in order of time.
        horizon_s: stop here.
    """
    if len(requests) and (requests.prompt + requests.output).max() > LONGEST:
        raise ValueError(
            f"a request has {(requests.prompt + requests.output).max()} tokens; at most {LONGEST} are served"
        )
    if profile.get("first_token_extra_iterations", 1) != 1:
        raise ValueError(f"first_token_extra_iterations is {profile['first_token_extra_iterations']}; only 1 is served")
    arrivals = requests.arrival_ms.tolist()
    columns = (requests.prompt.tolist(), requests.output.tolist(), requests.priority.tolist())
    kinds = [requests.kinds[i] for i in requests.kind.tolist()]
    rows = [Request(i, *row) for i, row in enumerate(zip(arrivals, *columns, kinds, strict=True))]
    cluster = Cluster(profile, settings)
    coming, changing, now, end = 0, 0, 0.0, 1000 * horizon_s
    while True:
        arrival = arrivals[coming] if coming < len(rows) else math.inf
        change = 1000 * changes[changing].time_s if changing < len(changes) else math.inf
        event = cluster.next_event()
        at = min(arrival, change, event)
        if at == math.inf or at > end:
            break
        now = at
        if change <= now:
            cluster.change(changes[changing], now)
            changing += 1
            cluster.wake(now)
        elif arrival <= now:
            while coming < len(rows) and arrivals[coming] <= now:
                cluster.route(rows[coming])
                coming += 1
            cluster.wake(now)
        else:
            cluster.advance(now)
    if horizon_s < math.inf:
        now = end
    lease = cluster.lease
    leased = cluster.leased_ms + (max(now, lease.least if lease.draining else 0.0) - lease.asked if lease else 0.0)
    engines = [cluster.first, *cluster.closed]
    if lease is not None and isinstance(lease.gpu, Engine):
        engines.append(lease.gpu)
    return Result(
        requests=requests,
        first_token_ms=np.array([row.first_token for row in rows]),
        finish_ms=np.array([row.finish for row in rows]),
        preemptions=np.array([row.preemptions for row in rows], np.int64),
        rejected=np.array([row.rejected for row in rows], bool),
        gpu=np.array([row.gpu for row in rows], np.int64),
        iterations=tuple(_table(engine.log) for engine in engines),
        pool=cluster.first.pool,
        gpu_seconds=(now + leased) / 1000,
        end_ms=now,
    )


def _table(log: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Rows of an engine's log as a structured array."""
    types = ["f8", "f8", "i8", "i8", "i8", "i8"]
    return np.array(log, dtype=list(zip(ITERATION_FIELDS, types, strict=True)))
