"""What a measured table says that a policy will do with some traffic: the trial's prediction, request by request.

``table -> engine profile -> iterations -> records, seconds``. The engine is ``ProfileEngine``: the iteration times,
pool and scheduling of the open-loop physics, on the profile that the compiled step reads; nothing is fitted on the
traffic that is predicted. The policy meets the same admission, observer and seconds as on the live server, so
prediction and measurement are the same records.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inferencegym_jax.live.capacity.engines import Engines, Place
from inferencegym_jax.live.capacity.knob import SECOND_GPU_KNOB
from inferencegym_jax.live.loop.admission_line import AdmissionLine
from inferencegym_jax.live.loop.fates import Watched
from inferencegym_jax.live.loop.observer import Observer, Snapshot
from inferencegym_jax.live.trial.foretold import ForetoldSpare, Pair, SpareTimes
from inferencegym_jax.live.trial.profile_engine import EngineRequest, ProfileEngine, engine_times
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import Traffic
from inferencegym_jax.models import ServeAction, ServeObservation
from inferencegym_jax.table.latency_table import LatencyTable

DRAIN_S = 120.0  # simulated seconds after the traffic's end until what still runs is called unfinished


@dataclass(frozen=True)
class Replayed:
    """What a replay came to.

    Attributes:
        records: one a request, in the order of arrival.
        spare_s: seconds for which the spare is paid until the traffic's end.
        seconds: what the observer saw of each second of the traffic.
        actions: what was in force in each of them.
    """

    records: list[Record]
    spare_s: float
    seconds: list[Snapshot]
    actions: list[ServeAction]


@dataclass(eq=False)
class _Request:
    """One request of the traffic, on its way."""

    number: int
    watched: Watched
    work: EngineRequest
    admitted_s: float | None = None
    place: Place[ProfileEngine] | None = None
    ended: str = "unfinished"

    @property
    def held(self) -> int:
        return self.work.prompt + self.watched.tokens


class _Line(AdmissionLine[_Request]):
    """The gate without an event loop. Who is let in reaches the engine ``path_s`` later: an iteration that begins in
    between is without it, as where the engine begins the next one before the client's next request can be there."""

    def __init__(
        self,
        first: ProfileEngine,
        path_s: float,
        observer_of: Callable[[AdmissionLine[Any]], Observer],
        spare: ForetoldSpare | None = None,
        second: ProfileEngine | None = None,
    ):
        super().__init__(limit=1)
        self.engines, self.now = Engines(self, first, spare, second), 0.0
        self.observer = observer_of(self)
        self.path_s = path_s  # of a request outside iterations
        self._on_their_way: deque[tuple[float, ProfileEngine, EngineRequest]] = deque()

    def _let_in(self, item: _Request) -> None:
        item.admitted_s = self.now
        item.place = self.engines.enter()
        self._on_their_way.append((self.now + self.path_s, item.place.handle, item.work))

    @property
    def next_delivery(self) -> float:
        """When the next request reaches its engine; infinite where none is on its way."""
        return self._on_their_way[0][0] if self._on_their_way else float("inf")

    def deliver(self, now: float) -> None:
        """Hand over to the engines whoever has reached them."""
        while self.next_delivery <= now:
            _, engine, work = self._on_their_way.popleft()
            engine.submit(work)

    def _turn_away(self, item: _Request) -> None:
        item.ended = "rejected"
        self.observer.reject(item.watched)


@dataclass
class _Run:
    """A replay in progress; times are seconds."""

    traffic: Traffic
    line: _Line
    step_seconds: float
    requests: list[_Request] = field(default_factory=list[_Request])
    inside: dict[EngineRequest, _Request] = field(default_factory=dict[EngineRequest, _Request])

    def accept(self, until: float) -> None:
        """Whoever has come by now, each at its own moment."""
        traffic, line = self.traffic, self.line
        while len(self.requests) < len(traffic) and (moment := self.next_arrival()) <= until:
            i = len(self.requests)
            prompt, output, klass = int(traffic.prompt[i]), int(traffic.output[i]), int(traffic.klass[i])
            watched = line.observer.arrive(moment, klass, prompt, output)
            request = _Request(i, watched, EngineRequest(prompt, output))
            self.requests.append(request)
            self.inside[request.work] = request
            line.now = moment
            line.arrive(request, klass, float(prompt))

    def next_arrival(self) -> float:
        """Moment of the next request; infinite after the last."""
        i = len(self.requests)
        return float(self.traffic.time_s[i]) * self.step_seconds if i < len(self.traffic) else float("inf")

    def show(self, works: list[EngineRequest], now: float) -> None:
        """The clients' next tokens."""
        line = self.line
        for work in works:
            request = self.inside[work]
            if request.watched.first_s is None:
                line.start(work.prompt)
            line.observer.token(request.watched, now)
            line.grow(1.0)
            if request.watched.tokens >= work.output:
                request.ended = "completed"
                line.observer.finish(request.watched)
                line.now = now
                if request.place is not None:
                    line.engines.leave(request.place)
                line.leave(request.held)
                del self.inside[work]

    def record(self, request: _Request) -> Record:
        """What became of a request."""
        watched, first, last = request.watched, request.watched.first_s, request.watched.last_s
        gaps = watched.tokens - 1
        waited = None if request.admitted_s is None else request.admitted_s - watched.arrived_s
        return Record(
            arrival_s=watched.arrived_s / self.step_seconds,
            klass=watched.klass,
            prompt=request.work.prompt,
            output=request.work.output,
            outcome=request.ended,
            wait_ms=None if waited is None or request.ended != "completed" else 1000.0 * waited,
            ttft_ms=None if first is None else 1000.0 * (first - watched.arrived_s),
            tpot_ms=None if first is None or last is None or gaps < 1 else 1000.0 * (last - first) / gaps,
            tokens=watched.tokens,
        )


def replayed(
    table: LatencyTable,
    traffic: Traffic,
    ask: Callable[[ServeObservation], ServeAction],
    slo_ms: Any,
    first: ServeObservation,
    *,
    slo_tpot_ms: Any = (np.inf, np.inf, np.inf),
    token_budget: int | None = None,
    max_num_seqs: int = 10**9,
    step_seconds: float = 1.0,
    spare: SpareTimes | None = None,
) -> Replayed:
    """Serve ``traffic`` by the engine of a table under a policy, whose batch_size and kv_budget limit admission.

    Args:
        table: measured.
        traffic: what arrives when.
        ask: the policy, asked at every whole second.
        slo_ms: TTFT objective of each class, for the observation and the outcome of a second.
        first: what the policy sees before the first second.
        slo_tpot_ms: the same on the time per output token.
        token_budget: tokens of one iteration; default: the profile's.
        max_num_seqs: the engine's own limit.
        step_seconds: length of a step; the traffic's seconds are steps.
        spare: a second engine of the same kind, which the policy's second GPU asks for; its times.

    Raises:
        TableError: the table says too little of the engine; the message names what to add.
    """
    times = engine_times(table)
    engine = ProfileEngine(times, max_num_seqs, token_budget)
    foretold = None if spare is None else ForetoldSpare(spare)
    other = None if spare is None else ProfileEngine(times, max_num_seqs, token_budget)
    path_s = times.profile.path_ms / 1000.0
    line = _Line(
        engine, path_s, lambda line: Observer(slo_ms, line, times.base_gb, slo_tpot_ms=slo_tpot_ms), foretold, other
    )
    pair = None if spare is None else Pair(line.engines, spare.slowdown)
    run = _Run(traffic, line, step_seconds)
    line.read_cache(0.0, times.pool_tokens)
    now, second, end, paid_s = 0.0, 0, traffic.seconds * step_seconds + DRAIN_S, 0.0
    steps = math.ceil(traffic.seconds)
    seen: list[Snapshot] = []
    actions: list[ServeAction] = []

    def obey(action: ServeAction) -> None:
        actions.append(action)
        line.now = now
        line.kv_budget = float(action.kv_budget)
        if foretold is not None:
            foretold.ask(bool(getattr(action, SECOND_GPU_KNOB)))
        line.engines.set_batch_size(int(action.batch_size))

    obey(ask(first))
    while now < end:
        if foretold is not None:
            line.now = now
            foretold.tick(now)
        run.accept(now)
        line.deliver(now)
        if now >= (second + 1) * step_seconds:
            second += 1
            metrics = engine.metrics() if pair is None else pair.metrics()
            line.now = now
            line.read_cache(metrics.kv_usage, metrics.kv_cache_tokens, metrics.running)
            before_s, paid_s = paid_s, paid_s if second > steps else line.engines.billed_s
            gpus = 1.0 + (paid_s - before_s) / step_seconds
            snapshot = line.observer.close(now, step_seconds, metrics, gpus=gpus)
            if second <= steps:
                seen.append(snapshot)
            if second < steps:
                obey(ask(snapshot.observation))
        elif engine.idle if pair is None else pair.idle:
            following = min(run.next_arrival(), line.next_delivery)
            if following == float("inf") and not line.waiting and second >= steps:
                break
            now = max(min(following, (second + 1) * step_seconds), now)
        elif pair is None:
            now += engine.start() / 1000.0
            run.accept(now)
            run.show(engine.end(), now)
        else:
            following = min(run.next_arrival(), line.next_delivery)
            now += pair.start(1000.0 * max(following - now, 0.0)) / 1000.0
            run.accept(now)
            run.show(pair.end(), now)
    run.accept(float("inf"))
    return Replayed([run.record(request) for request in run.requests], paid_s, seen, actions)
