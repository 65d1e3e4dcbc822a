"""What every HTTP request passes: request id, log line and counters; failures; rate limit; body size; headers.

Pure ASGI, so that a step pays microseconds for them. Outermost first: ``Observe``, CORS, ``Failures``,
``SecurityHeaders``, ``RateLimit``, ``BodyLimit``, ``Head``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

import orjson
from fastapi import HTTPException
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.bounds import BODIES_AT_ONCE, BODY_S, body_limit
from server.errors import problem
from server.metrics import Metrics

access = logging.getLogger("server.access")
failures = logging.getLogger("server")
UNLIMITED = frozenset({"/health", "/healthz", "/metrics", "/"})  # what probes ask, and the page
CLIENT_LEFT = 499  # in the log and the counters, as in nginx's: the body ended early, nobody hears the answer
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def client_address(scope: Scope) -> str:
    """The client's address; behind a proxy that uvicorn trusts (FORWARDED_ALLOW_IPS) the one it forwards."""
    client = scope.get("client")
    return client[0] if client else "unknown"


class Observe:
    """Request id (taken over or made), JSON log line, request counter and latency histogram."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        header = Headers(scope=scope).get("x-request-id", "")
        request_id = header if REQUEST_ID.fullmatch(header) else uuid.uuid4().hex
        scope["request_id"] = request_id
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - start
            status = CLIENT_LEFT if "client_left" in scope else status
            route = getattr(scope.get("route"), "path", None) or "other"
            self.metrics.requests.labels(scope["method"], route, str(status)).inc()
            self.metrics.latency.labels(route).observe(seconds)
            if access.isEnabledFor(logging.INFO):
                line: dict[str, Any] = {
                    "time": time.time(),
                    "request_id": request_id,
                    "client": client_address(scope),
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "ms": round(1000 * seconds, 3),
                }
                access.info(orjson.dumps(line).decode())


def free(scope: Scope) -> bool:
    """Whether a request is outside the rate limit: who stepped fast can still load the page."""
    return scope["path"] in UNLIMITED or scope["path"].startswith("/static/")


class Failures:
    """Whatever an application raises is answered 500 as JSON, with the request id by which the log tells why."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; an exception after the answer has begun ends the connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if has_begun:
                raise
            failures.exception("request %s failed: %s %s", scope.get("request_id"), scope["method"], scope["path"])
            text = f"the server failed; its log says why, under request id {scope.get('request_id')}"
            await problem(500, text)(scope, receive, send)


class Head:
    """HEAD is GET without the body."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for the same with GET and keep the head of the answer."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def headless(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, headless)


# The page asks nobody but its server. It may be shown in a frame: a Space shows it in one.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'"
    ),
    "referrer-policy": "strict-origin-when-cross-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityHeaders:
    """What a browser is told about every answer (``nosniff``) and about pages (what they may load and ask for)."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and add to the head of its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                if headers.get("content-type", "").startswith("text/html"):
                    headers.update(PAGE_HEADERS)
            await send(message)

        await self.app(scope, receive, secured)


class RateLimit:
    """At most so many requests per client address in a sliding window, counted in each worker.

    Opening a WebSocket is a request. A message on one counts too: beyond the limit it is not refused, it waits.
    """

    def __init__(self, app: ASGIApp, limit: str):
        self.app, self.limit = app, parse(limit)
        self.limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429 with Retry-After."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and (free(scope) or scope["method"] == "OPTIONS")):
            await self.app(scope, receive, send)
            return
        client = client_address(scope)
        if not await self.limiter.hit(self.limit, client):
            wait = max(1, round(await self.seconds_left(client) + 0.5))
            text = f"more than {self.limit} from {client}; wait {wait} s, or run your own server with RATE_LIMIT=off"
            await problem(429, text, {"retry-after": str(wait)})(scope, receive, send)
            return
        if scope["type"] == "http":
            await self.app(scope, receive, send)
            return

        async def paced() -> Message:
            message = await receive()
            while message["type"] == "websocket.receive" and not await self.limiter.hit(self.limit, client):
                await asyncio.sleep(min(max(await self.seconds_left(client), 0.01), 1.0))
            return message

        await self.app(scope, paced, send)

    async def seconds_left(self, client: str) -> float:
        """Seconds until a client's window is over."""
        return (await self.limiter.get_window_stats(self.limit, client)).reset_time - time.time()


class BodyLimit:
    """Refuse a body above its path's size with 413, by its Content-Length or as it arrives; one that takes too long
    with 408; and with 503 any that does not fit beside those that are being read and worked on."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit
        self.held = 0  # bytes of all bodies now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = body_limit(scope["path"], self.limit)
        text = f"the body is larger than {limit} bytes"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > limit:
            await problem(413, text, {"connection": "close"})(scope, receive, send)
            return
        size, whole, end = 0, False, 0.0

        async def counted() -> Message:
            nonlocal size, whole, end
            if whole:
                return await receive()
            loop = asyncio.get_running_loop()
            end = end or loop.time() + BODY_S
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                late = f"the body did not arrive within {BODY_S:g} s"
                raise HTTPException(408, late, {"connection": "close"}) from None
            if message["type"] == "http.disconnect":
                scope["client_left"] = True
            whole = not message.get("more_body", False)
            arrived = len(message.get("body", b""))
            size += arrived
            self.held += arrived
            if size > limit:
                raise HTTPException(413, text, {"connection": "close"})  # FastAPI passes this one on
            if self.held > BODIES_AT_ONCE:
                busy = f"{BODIES_AT_ONCE} bytes of other requests are being worked on"
                raise HTTPException(503, busy, {"connection": "close", "retry-after": "5"})
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= size
