"""An HTTP proxy for the OpenAI API that admits requests as a policy says; what an engineer deploys in front of an
engine.

``client -> gate -> forwarding -> upstream``. Bytes pass through untouched in both directions. Requests that generate
wait at the gate; everything else (models, health, tokenize) goes straight on. No POST is retried, so none is
answered twice; one that the spare engine refused the connection, before a byte was sent, goes to the upstream.

- queue full: 429 with Retry-After; a client that leaves takes its request out of the queue, or cancels it upstream;
- the upstream does not answer, or not as HTTP: 502, or 504 when it is too slow; its own errors reach the client as they
  are;
- the upstream breaks off in mid-stream: so does the answer, visibly (no final chunk), never as a clean end;
- whatever else goes wrong with a request is a 502 and one line of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from inferencegym_jax.live.capacity.engines import Engines
from inferencegym_jax.live.capacity.settings import SpareSettings, check_apart
from inferencegym_jax.live.capacity.spare import opened
from inferencegym_jax.live.loop.admission_line import CLASSES
from inferencegym_jax.live.loop.fates import Ended
from inferencegym_jax.live.loop.gate import Gate, QueueFull
from inferencegym_jax.live.loop.observer import Observer
from inferencegym_jax.live.proxy.controller import Controller
from inferencegym_jax.live.proxy.forwarding import ForwardedRequest, Upstream, open_upstream, respond, shown_request
from inferencegym_jax.live.proxy.metrics import ControlMetrics
from inferencegym_jax.live.proxy.pace import Pace
from inferencegym_jax.live.proxy.policy_source import Asks, Loads
from inferencegym_jax.live.proxy.reloading import Reloader, on_hangup
from inferencegym_jax.live.proxy.sniffing import BadPriority, generates, read_request
from inferencegym_jax.live.server.cancellation import cancel_all
from inferencegym_jax.live.server.streaming import Endpoint, check_url, open_client
from inferencegym_jax.models import QUEUE_CAPACITY

log = logging.getLogger(__name__)
ENDED: dict[str, Ended] = {"completed": "completed", "upstream_error": "failed", "truncated": "failed"}


@dataclass(frozen=True)
class ControlSettings:
    """How the proxy behaves.

    Attributes:
        upstream: the engine's root URL.
        queue: most requests waiting.
        slo_ms: TTFT objective of each class, for the policy's observation.
        slo_tpot_ms: objective on a request's mean time per output token, for the same; inf for none.
        connect_timeout_s: until a connection to the upstream is there.
        first_byte_timeout_s: from sending a request upstream to its first byte.
        stall_timeout_s: between two chunks of an answer.
        max_body_bytes: largest request body.
        step_seconds: how often the policy is asked; 1 but in tests.
        base_memory_gb: memory of weights and runtime, for the observation.
        applies_kv_budget: whether the policy's kv_budget is a limit of admission, as it is in open-loop tasks.
        spare: a second engine, which the policy's second-GPU knob starts and stops.
        observes: the policy is asked and obeyed in nothing: what it would have done is shown.
        token: that ``POST /policy`` must show; empty: nobody may.
    """

    upstream: str
    queue: int = QUEUE_CAPACITY
    slo_ms: tuple[float, float, float] = (300.0, 2000.0, math.inf)
    slo_tpot_ms: float = math.inf
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 600.0
    stall_timeout_s: float = 60.0
    max_body_bytes: int = 64_000_000
    step_seconds: float = 1.0
    base_memory_gb: float = 0.0
    applies_kv_budget: bool = True
    spare: SpareSettings | None = None
    observes: bool = False
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        check_url("upstream", self.upstream)
        if self.spare is not None:
            check_apart(self.upstream, self.spare.url)


def create_app(settings: ControlSettings, policy: Asks, policy_name: str, source: Loads | None = None) -> Starlette:
    """The proxy as an ASGI app.

    Args:
        settings: upstream and limits.
        policy: asked once a second; anything with ``ask(observation) -> ServeAction``.
        policy_name: for ``/status``.
        source: of the policies that ``POST /policy`` and SIGHUP load; None: neither does anything.
    """
    gate = Gate(limit=None, capacity=settings.queue)
    metrics = ControlMetrics()
    tpot_ms = (settings.slo_tpot_ms,) * len(settings.slo_ms)
    observer = Observer(settings.slo_ms, gate, settings.base_memory_gb, slo_tpot_ms=tpot_ms)
    controller = Controller(
        observer,
        policy,
        policy_name,
        metrics,
        settings.step_seconds,
        applies_kv_budget=settings.applies_kv_budget,
        observes=settings.observes,
    )
    reloader = Reloader(controller, source, settings.token, metrics)
    endpoint = Endpoint(settings.upstream, "", connect_timeout_s=settings.connect_timeout_s)
    proxy = Proxy(settings, gate, observer, metrics)

    async def status(_: Request) -> Response:
        return JSONResponse({"upstream": endpoint.shown, **controller.status(), **reloader.status()})

    async def prometheus(_: Request) -> Response:
        page = metrics.page(gate, controller)
        return Response(page, media_type="text/plain; version=0.0.4")

    def reached(client: aiohttp.ClientSession, endpoint: Endpoint) -> Upstream:
        return Upstream(endpoint, client, observer, metrics, settings.first_byte_timeout_s, settings.stall_timeout_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # what builds observations is compiled before anybody waits for it
        Observer(settings.slo_ms, Gate()).close(time.perf_counter(), 1.0, None)
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(open_upstream(endpoint))
            readers = {"upstream": await stack.enter_async_context(open_client(endpoint))}
            spare, second = None, None
            if settings.spare is not None:
                other = Endpoint(settings.spare.url, "", connect_timeout_s=settings.connect_timeout_s)
                second = reached(await stack.enter_async_context(open_upstream(other)), other)
                readers["spare"] = await stack.enter_async_context(open_client(other))
                # in a dry run nothing is started
                spare = await stack.enter_async_context(opened(None if settings.observes else settings.spare))
            proxy.engines = Engines(gate, reached(client, endpoint), spare, second)
            with on_hangup(reloader.again):
                loop = asyncio.create_task(controller.run(proxy.engines, readers, spare))
                try:
                    yield
                finally:
                    await cancel_all((loop,))

    routes = [
        Route("/status", status),
        Route("/metrics", prometheus),
        Route("/policy", reloader.answer, methods=["POST"]),
        Mount("/", app=proxy),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class Proxy:
    """The ASGI app that decides what waits and forwards the rest."""

    engines: Engines[Upstream]

    def __init__(self, settings: ControlSettings, gate: Gate, observer: Observer, metrics: ControlMetrics):
        self.settings, self.gate, self.observer, self.metrics = settings, gate, observer, metrics
        self.pace = Pace()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request: forward it until it ends or its client leaves."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})
            return
        most = self.settings.max_body_bytes
        try:
            body = await _read_body(receive, most)
        except _ClientGone:
            return
        if body is None:
            await respond(send, 413, f"the body is larger than {most} bytes")
            return
        work = asyncio.create_task(self._guarded(scope, body, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    async def _guarded(self, scope: Any, body: bytes, send: Any) -> None:
        """Serve; a bug in here is a 502 for its one request and one line of the log, which quotes nothing."""
        started = False

        async def noting(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._serve(scope, body, noting)
        except Exception as error:
            log.warning("%s: failed in the proxy: %s", shown_request(scope), type(error).__name__)
            if not started:
                await respond(send, 502, f"the proxy failed: {type(error).__name__}")

    async def _serve(self, scope: Any, body: bytes, send: Any) -> None:
        if not generates(scope["method"], scope["path"]):
            await ForwardedRequest(scope, body, send).run(self.engines.places[0].handle)
            return
        try:
            seen = read_request(scope["headers"], body)
        except BadPriority as error:
            await respond(send, 400, str(error))
            return
        watched = self.observer.arrive(time.perf_counter(), seen.klass, seen.prompt_tokens)
        forwarded = ForwardedRequest(scope, body, send, seen, watched)
        try:
            await self.gate.enter(seen.klass, seen.prompt_tokens)
            self.pace.begin(time.perf_counter())
            try:
                await self._send(forwarded)
            finally:
                unseen = None if forwarded.begun else seen.prompt_tokens
                self.gate.leave(seen.prompt_tokens + watched.tokens, unseen)
                self.pace.end(time.perf_counter())
        except QueueFull:
            forwarded.outcome = "rejected"
            self.observer.reject(watched)
            await respond(send, 429, f"{self.gate.capacity} requests wait already", self._retry_after())
        finally:
            self.observer.finish(watched, ENDED.get(forwarded.outcome, "gone"))
            self.metrics.requests.labels(CLASSES[seen.klass], forwarded.outcome).inc()

    async def _send(self, forwarded: ForwardedRequest) -> None:
        """To the engine with the fewest requests; to the other one where that refuses the connection."""
        refused = None
        while True:
            place = self.engines.enter(refused)
            try:
                is_last = refused is not None or self.engines.choose(place) is None
                await forwarded.run(place.handle, is_last)
            finally:
                self.engines.leave(place)
            if not forwarded.is_unsent:
                return
            refused = place
            self.engines.refused(place)

    def _retry_after(self) -> dict[str, str]:
        """Seconds until the queue has emptied, whole ones from 1 to 60."""
        seconds = self.gate.waiting / self.pace.rate(time.perf_counter())
        return {"Retry-After": str(math.ceil(min(max(seconds, 1.0), 60.0)))}


class _ClientGone(Exception):
    """The client left before its request was complete."""


async def _read_body(receive: Any, most: int) -> bytes | None:
    """The whole body, or None when it is larger than allowed."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        size += len(message.get("body", b""))
        if size > most:
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
