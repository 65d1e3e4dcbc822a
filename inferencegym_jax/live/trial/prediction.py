"""What a measured table says that a policy will do with some traffic: the trial's prediction, request by request.

``table -> iteration times -> iterations -> records``. An iteration of n decoding requests takes ``t(n, P)``; prompts
ride along in chunks of the engine's token budget and add ``p(P)`` in all; a request spends ``h`` outside iterations.
``t``, ``p`` and ``h`` are what ``measure`` fitted (``measured_table.fit``); nothing is fitted on the traffic that is
predicted. The policy meets the same gate, observer and seconds as on the live server, so prediction and measurement
are the same records.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from inferencegym_jax.live.loop.gate import Gate
from inferencegym_jax.live.loop.observer import Observer, Watched
from inferencegym_jax.live.server.probe import EngineMetrics
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import Traffic
from inferencegym_jax.models import QUEUE_CAPACITY, ServeAction, ServeObservation
from inferencegym_jax.table.iterations import engine_grid
from inferencegym_jax.table.latency_table import METRICS, LatencyTable

TOKEN_BUDGET = 2048  # tokens of one iteration: vLLM's max_num_batched_tokens
DRAIN_S = 120.0  # simulated seconds after the traffic's end until what still runs is called unfinished


class IterationTimes:
    """``t(n, P)``, ``p(P)`` and ``h`` of a table, in ms; linear between nodes, and beyond the last ones."""

    def __init__(self, table: LatencyTable):
        self.batch = np.asarray(table.axes["batch_size"])
        self.prompts = np.asarray(table.axes["prompt_len_bucket"])
        fitted = json.loads(table.metadata.get("fitted", "{}"))
        self.overhead_ms = float(fitted.get("request_overhead_ms", 0.0))
        decode, added = engine_grid(_with_prefill(table, self.overhead_ms)).parts_ms
        self.decode_at, self.prefill_at = decode[0, 0, :, -1], added[0, 0, 0, -1]
        self.memory_at = table.values[0, 0, 0, :, -1, :, METRICS.index("gpu_mem_gb")].astype(np.float64)
        self.pool_gb = float(table.metadata.get("kv_cache_gb", "0"))
        self.base_gb = float(table.metadata.get("base_memory_gb", "0"))

    def decode_ms(self, n: float, prompt: float) -> float:
        """An iteration of ``n`` decoding requests with prompts of ``prompt`` tokens."""
        return max(self._look_up(self.decode_at, n, prompt), 0.01)

    def engine_metrics(self, n: float, prompt: float) -> EngineMetrics | None:
        """What the server's ``/metrics`` would say of its KV cache."""
        if not self.pool_gb or not n:
            return None
        used = self._look_up(self.memory_at, n, prompt) - self.base_gb
        return EngineMetrics(kv_usage=float(np.clip(used / self.pool_gb, 0.0, 1.0)), kv_cache_gb=self.pool_gb)

    def _look_up(self, values: np.ndarray, n: float, prompt: float) -> float:
        column = [_line(n, self.batch, values[:, j]) for j in range(len(self.prompts))]
        return float(np.interp(prompt, self.prompts, column))

    def prefill_ms(self, prompt: float) -> float:
        """What a prompt adds to the iterations that it rides along with; in proportion below the shortest measured."""
        if prompt < self.prompts[0]:
            return float(self.prefill_at[0] * prompt / self.prompts[0])
        return max(_line(prompt, self.prompts, self.prefill_at), 0.0)


def _with_prefill(table: LatencyTable, overhead_ms: float) -> LatencyTable:
    """The table; where it cannot be taken apart, with the prefill that its TTFT at the smallest batch leaves."""
    if table.prefill_ms or len(table.axes["prefill_disagg"]) == 2:
        return table
    ttft, tpot = (table.values[0, 0, 0, 0, -1, :, METRICS.index(name)] for name in ("ttft_p50_ms", "tpot_ms"))
    alone = np.maximum(ttft.astype(np.float64) - tpot - overhead_ms, 0.0)
    return dataclasses.replace(table, metadata={**table.metadata, "prefill_ms": json.dumps(alone.tolist())})


def _line(x: float, nodes: np.ndarray, values: np.ndarray) -> float:
    """Linear between the nodes; the last segment goes on beyond them."""
    if len(nodes) > 1 and x > nodes[-1]:
        slope = (values[-1] - values[-2]) / (nodes[-1] - nodes[-2])
        return float(values[-1] + slope * (x - nodes[-1]))
    return float(np.interp(x, nodes, values))


def saturation(table: LatencyTable, prompt: float, output: float) -> float:
    """Requests a second that the engine can at most finish: the best of ``n / (O T(n))`` over the table's batch
    sizes."""
    times = IterationTimes(table)
    best = 0.0
    for n in times.batch:
        iteration = times.decode_ms(n, prompt) + n / output * times.prefill_ms(prompt)
        best = max(best, 1000.0 * n / (output * iteration))
    return best


@dataclass(eq=False)
class _Request:
    number: int
    watched: Watched
    prompt: int
    output: int
    admitted_s: float = 0.0
    prefilled: float = 0.0
    made: int = 0
    last_s: float = 0.0


class _Line:
    """The gate's figures without its event loop."""

    def __init__(self, capacity: int):
        self.limit, self.capacity = 1, capacity
        self.inside = self.admitted = 0
        self.queues: tuple[deque[_Request], ...] = (deque(), deque(), deque())

    @property
    def waiting(self) -> int:
        return sum(map(len, self.queues))

    def admit(self) -> list[_Request]:
        taken = []
        for queue in self.queues:
            while queue and self.inside < self.limit:
                taken.append(queue.popleft())
                self.inside += 1
                self.admitted += 1
        return taken


def replay(
    table: LatencyTable,
    traffic: Traffic,
    ask: Callable[[ServeObservation], ServeAction],
    slo_ms: Any,
    first: ServeObservation,
    *,
    token_budget: int = TOKEN_BUDGET,
    max_num_seqs: int = 10**9,
    step_seconds: float = 1.0,
) -> list[Record]:
    """Serve ``traffic`` by the table's iteration times under a policy.

    Args:
        table: measured.
        traffic: what arrives when.
        ask: the policy, asked at every whole second.
        slo_ms: TTFT objective of each class, for the observation.
        first: what the policy sees before the first second.
        token_budget: tokens of one iteration.
        max_num_seqs: the engine's own limit.
        step_seconds: length of a step; the traffic's seconds are steps.

    Returns:
        One record a request, in the order of arrival.
    """
    times = IterationTimes(table)
    arrivals_s = traffic.time_s * step_seconds
    line = _Line(QUEUE_CAPACITY)
    observer = Observer(slo_ms, cast(Gate, line), times.base_gb)
    records: dict[int, Record] = {}
    engine: deque[_Request] = deque()  # admitted, waiting for the engine
    running: list[_Request] = []
    line.limit = int(ask(first).batch_size)
    now, arrived, second = 0.0, 0, 0
    end = traffic.seconds * step_seconds + DRAIN_S

    def keep(request: _Request, outcome: str) -> None:
        watched = request.watched
        tpot = (
            1000.0 * (request.last_s - watched.first_s) / (request.made - 1)
            if watched.first_s and request.made > 1
            else None
        )
        records[request.number] = Record(
            arrival_s=watched.arrived_s / step_seconds,
            klass=watched.klass,
            prompt=request.prompt,
            output=request.output,
            outcome=outcome,
            wait_ms=1000.0 * (request.admitted_s - watched.arrived_s) if outcome == "completed" else None,
            ttft_ms=None if watched.first_s is None else 1000.0 * (watched.first_s - watched.arrived_s),
            tpot_ms=tpot,
            tokens=request.made,
        )

    def accept(until: float) -> None:
        nonlocal arrived
        while arrived < len(traffic) and arrivals_s[arrived] <= until:
            moment, klass = float(arrivals_s[arrived]), int(traffic.klass[arrived])
            prompt, output = int(traffic.prompt[arrived]), int(traffic.output[arrived])
            request = _Request(arrived, observer.arrive(moment, klass, prompt), prompt, output)
            arrived += 1
            if line.waiting >= line.capacity:
                observer.reject(request.watched)
                keep(request, "rejected")
            else:
                line.queues[klass].append(request)
                admit(moment)

    def admit(moment: float) -> None:
        for request in line.admit():
            request.admitted_s = moment
            engine.append(request)

    while now < end:
        accept(now)
        admit(now)
        if now >= (second + 1) * step_seconds:
            second += 1
            engine_says = times.engine_metrics(len(running), observer.prompt_len)
            observation = observer.close(now, step_seconds, engine_says).observation
            if second < traffic.seconds:
                line.limit = int(ask(observation).batch_size)
            continue
        while engine and len(running) < max_num_seqs:
            running.append(engine.popleft())
        if not running:
            if arrived >= len(traffic) and not line.waiting:
                break
            following = float(arrivals_s[arrived]) if arrived < len(traffic) else end
            now = max(min(following, (second + 1) * step_seconds), now)
            continue
        now += _iteration(times, running, token_budget) / 1000.0
        accept(now)
        for request in list(running):
            if request.prefilled >= request.prompt:
                request.made += 1
                request.last_s = now + times.overhead_ms / 1000.0
                observer.token(request.watched, request.last_s)
                if request.made >= request.output:
                    running.remove(request)
                    line.inside -= 1
                    observer.finish(request.watched)
                    keep(request, "completed")
    for request in (*running, *engine, *(r for queue in line.queues for r in queue)):
        keep(request, "unfinished")
    return [records[i] for i in sorted(records)]


def _iteration(times: IterationTimes, running: list[_Request], token_budget: int) -> float:
    """Length (ms) of the next iteration, with the prompts' next chunks taken in, first come first."""
    decoding = [request for request in running if request.made > 0]
    room = float(token_budget - len(decoding))
    added = 0.0
    for request in running:
        if request.prefilled < request.prompt and room > 0:
            chunk = min(request.prompt - request.prefilled, room)
            request.prefilled += chunk
            room -= chunk
            added += times.prefill_ms(request.prompt) * chunk / request.prompt
    mean_prompt = sum(request.prompt for request in running) / len(running)
    return times.decode_ms(max(len(decoding), 1), mean_prompt) + added
