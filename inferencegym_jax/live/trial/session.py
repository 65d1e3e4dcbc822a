"""One episode on a live server: sends the traffic as it arrives, through the gate, and keeps a record of every request.

Belongs to one event loop. Every request ends in exactly one of the outcomes of ``Record``.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from inferencegym_jax.live.capacity.engines import Engines, Place
from inferencegym_jax.live.capacity.spare import Spare
from inferencegym_jax.live.loop.fates import Ended, Watched
from inferencegym_jax.live.loop.gate import Gate, QueueFull
from inferencegym_jax.live.loop.observer import Observer, Snapshot
from inferencegym_jax.live.server.cancellation import cancel_all
from inferencegym_jax.live.server.combined import Combined, read_all
from inferencegym_jax.live.server.probe import EngineMetrics
from inferencegym_jax.live.server.streaming import Endpoint, Generation, Stream, stream_completion
from inferencegym_jax.live.trial.traffic import Traffic
from inferencegym_jax.models import QUEUE_CAPACITY, Phase

ENDED: dict[str, Ended] = {"completed": "completed", "failed": "failed"}  # an unfinished one is gone


@dataclass(frozen=True)
class Record:
    """How one request went; arrival in steps (seconds) from the episode's start, latencies in ms.

    ``outcome``: completed, rejected (queue full), failed (``error`` says how), unfinished (the episode ended first).
    ``token_s``: when its tokens came, in steps from the episode's start; empty where that was foretold.
    ``on_spare``: whether the spare engine was the one that they came from.
    """

    arrival_s: float
    klass: int
    prompt: int
    output: int
    outcome: str
    wait_ms: float | None = None  # at the gate
    ttft_ms: float | None = None  # arrival to first token
    tpot_ms: float | None = None
    tokens: int = 0
    error: str | None = None
    token_s: array[float] = field(default_factory=lambda: array("d"), repr=False, compare=False)
    on_spare: bool = False


@dataclass(frozen=True)
class Server:
    """An endpoint, the client that reaches it, and what it tells of its KV cache: the share in use, and the tokens that
    fit."""

    endpoint: Endpoint
    client: httpx.AsyncClient
    kv_usage: float | None = None
    pool_tokens: float | None = None


class Session:
    """An episode in progress.

    Args:
        choose: the server for a new request; called at its admission, so that routing follows the last action.
        traffic: what arrives when.
        slo_ms: TTFT objective of each class.
        step_seconds: length of a step.
        base_memory_gb: memory of weights and runtime.
        capacity: most requests that wait.
        seed: of the prompts.
        episode_length: steps of an episode.
        slo_tpot_ms: objective on the time per output token of each class.
        spare: a second engine, to which requests go while it serves.
        second: how it is reached.
    """

    def __init__(
        self,
        choose: Callable[[], Server],
        traffic: Traffic,
        slo_ms: Any,
        *,
        step_seconds: float = 1.0,
        base_memory_gb: float = 0.0,
        capacity: int = QUEUE_CAPACITY,
        seed: int = 0,
        episode_length: int = 200,
        slo_tpot_ms: Any = (np.inf, np.inf, np.inf),
        spare: Spare | None = None,
        second: Server | None = None,
    ):
        self.choose, self.traffic, self.step_seconds, self.seed = choose, traffic, step_seconds, seed
        self.gate = Gate(limit=1, capacity=capacity)
        self.gate.read_cache(choose().kv_usage, choose().pool_tokens)  # as the probe found it
        self.observer = Observer(
            slo_ms, self.gate, base_memory_gb, episode_length=episode_length, slo_tpot_ms=slo_tpot_ms
        )
        reach = None if second is None else lambda: second
        self.spare = spare
        self.engines: Engines[Callable[[], Server]] = Engines(self.gate, choose, spare, reach)
        self._combined = Combined()
        self._billed_s = self.engines.billed_s
        self.records: list[Record] = []
        self.start_s = time.perf_counter()
        self._last_s = self.start_s
        self._due_s = self.start_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None

    async def step(
        self, limit: int, kv_budget: float = 1.0, gpus: float = 1.0, quality: float = 1.0, wants_spare: bool = False
    ) -> Snapshot:
        """One step under limits of admission: until the next boundary, or at once for a caller who is late.

        The traffic does not wait for the caller; a late step is longer, and its rates are divided by its own length.

        Args:
            limit: most requests inside one engine.
            kv_budget: share of the KV pool up to which requests are admitted.
            gpus: that are paid for, without the spare.
            quality: of the answers, 1 at most.
            wants_spare: whether the spare is asked for.
        """
        self.gate.kv_budget = kv_budget
        self.engines.set_batch_size(limit)
        if self.spare is not None:
            self.spare.ask(wants_spare)
        if self._sender is None:
            self.start_s = self._last_s = self._due_s = time.perf_counter()
            self._sender = asyncio.create_task(self._send_all())
        self._due_s = max(self._due_s + self.step_seconds, time.perf_counter() + 0.5 * self.step_seconds)
        await asyncio.sleep(max(self._due_s - time.perf_counter(), 0.0))
        if self._sender.done():
            self._sender.result()  # a bug in here must not look like a quiet server
        engine = await self._read()
        now = time.perf_counter()
        seconds, self._last_s = now - self._last_s, now
        billed_s = self.engines.billed_s
        gpus += (billed_s - self._billed_s) / seconds
        self._billed_s = billed_s
        return self.observer.close(now, seconds, engine, self._phase(now), gpus, quality)

    async def _read(self) -> EngineMetrics | None:
        up = self.engines.up
        readings = await read_all({id(place): place.handle().client for place in up}, self.step_seconds / 2)
        engine = self._combined.read(readings, {id(place) for place in up if place.serves})
        if engine is not None:
            self.gate.read_cache(engine.kv_usage, engine.kv_cache_tokens, engine.running)
        return engine

    def _phase(self, now: float) -> Phase:
        second = int((now - self.start_s) / self.step_seconds)
        phases = self.traffic.phase
        return Phase(int(phases[min(max(second - 1, 0), len(phases) - 1)])) if len(phases) else Phase.STEADY

    async def _send_all(self) -> None:
        traffic = self.traffic
        for i, moment in enumerate(traffic.time_s):
            due = self.start_s + moment * self.step_seconds
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            task = asyncio.create_task(self._serve(i, due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, i: int, arrived_s: float) -> None:
        traffic = self.traffic
        klass, prompt, output = int(traffic.klass[i]), int(traffic.prompt[i]), int(traffic.output[i])
        watched = self.observer.arrive(arrived_s, klass, prompt, output)
        admitted_s: float | None = None
        stream: Stream | None = None
        on_spare = False
        outcome = "unfinished"
        try:
            await self.gate.enter(klass, prompt)
            admitted_s = time.perf_counter()
            request = Generation(prompt, output, (self.seed << 32) + i, klass)

            def token(_: Stream, now: float) -> None:
                if watched.first_s is None:
                    self.gate.start(prompt)
                self.observer.token(watched, now)
                self.gate.grow(1.0)

            try:
                stream, on_spare = await self._send(request, token)
            finally:
                self.gate.leave(prompt + watched.tokens, None if watched.tokens else prompt)
            outcome = "completed" if stream.error is None else "failed"
        except QueueFull:
            outcome = "rejected"
            self.observer.reject(watched)
        finally:
            ended = ENDED.get(outcome, "gone")
            self.observer.finish(watched, ended, stream.tokens if stream is not None else None)
            self.records.append(self._record(i, arrived_s, admitted_s, watched, stream, on_spare, outcome))

    async def _send(self, request: Generation, on_token: Callable[[Stream, float], None]) -> tuple[Stream, bool]:
        """To the engine with the fewest requests; to the other one where that refuses the connection. What came, and
        whether from the spare."""
        refused: Place[Callable[[], Server]] | None = None
        while True:
            place = self.engines.enter(refused)
            try:
                is_last = refused is not None or self.engines.choose(place) is None
                server = place.handle()
                stream = await stream_completion(server.client, server.endpoint, request, on_token)
            finally:
                self.engines.leave(place)
            if is_last or stream.error is None or stream.error.kind != "connect":
                return stream, place.spare is not None
            refused = place
            self.engines.refused(place)

    def _record(
        self,
        i: int,
        arrived_s: float,
        admitted_s: float | None,
        watched: Watched,
        stream: Stream | None,
        on_spare: bool,
        outcome: str,
    ) -> Record:
        traffic = self.traffic
        return Record(
            arrival_s=self._step_of(arrived_s),
            klass=int(traffic.klass[i]),
            prompt=int(traffic.prompt[i]),
            output=int(traffic.output[i]),
            outcome=outcome,
            wait_ms=None if admitted_s is None else 1000.0 * (admitted_s - arrived_s),
            ttft_ms=None if watched.first_s is None else 1000.0 * (watched.first_s - arrived_s),
            tpot_ms=stream.tpot_ms if stream is not None else None,
            tokens=stream.tokens if stream is not None else 0,
            error=f"{stream.error.kind}: {stream.error.message}" if stream is not None and stream.error else None,
            token_s=array("d", [] if stream is None else map(self._step_of, stream.token_s)),
            on_spare=on_spare,
        )

    def _step_of(self, moment_s: float) -> float:
        return (moment_s - self.start_s) / self.step_seconds

    async def drain(self, most_seconds: float) -> None:
        """Let what has arrived finish, for so long at most; what has not is recorded as unfinished."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=most_seconds)
        await self.stop()

    async def stop(self) -> None:
        """End at once: nothing more is sent, and what is in flight is cancelled, which tells the server."""
        tasks = [*self._tasks, *([self._sender] if self._sender is not None else [])]
        await cancel_all(tasks)
        self.records.sort(key=lambda record: record.arrival_s)

    @property
    def arrived(self) -> int:
        """Requests that have arrived so far."""
        return len(self.records) + len(self._tasks)
