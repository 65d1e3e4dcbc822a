"""What every HTTP request passes: request id, log line and counters; body size; rate limit.

Pure ASGI, so that a step pays microseconds for them. Outermost first: ``Observe``, CORS, ``RateLimit``, ``BodyLimit``.
"""

from __future__ import annotations

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

from server.errors import problem
from server.metrics import Metrics

access = logging.getLogger("server.access")
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


def free(path: str) -> bool:
    """Whether a path is outside the rate limit: who stepped fast can still load the page."""
    return path in UNLIMITED or path.startswith("/static/")


class RateLimit:
    """At most so many requests per client address in a sliding window, counted in each worker."""

    def __init__(self, app: ASGIApp, limit: str):
        self.app, self.limit = app, parse(limit)
        self.limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429 with Retry-After."""
        if scope["type"] != "http" or free(scope["path"]) or scope["method"] == "OPTIONS":
            await self.app(scope, receive, send)
            return
        client = client_address(scope)
        if await self.limiter.hit(self.limit, client):
            await self.app(scope, receive, send)
            return
        stats = await self.limiter.get_window_stats(self.limit, client)
        wait = max(1, round(stats.reset_time - time.time() + 0.5))
        text = f"more than {self.limit} from {client}; wait {wait} s, or run your own server with RATE_LIMIT=off"
        await problem(429, text, {"retry-after": str(wait)})(scope, receive, send)


class BodyLimit:
    """Refuse a body above a size with 413, by its Content-Length or as it arrives."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        text = f"the body is larger than {self.limit} bytes"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self.limit:
            await problem(413, text, {"connection": "close"})(scope, receive, send)
            return
        size, whole = 0, False

        async def counted() -> Message:
            nonlocal size, whole
            message = await receive()
            if message["type"] == "http.disconnect" and not whole:
                scope["client_left"] = True
            whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.limit:
                raise HTTPException(413, text, {"connection": "close"})  # FastAPI passes this one on
            return message

        await self.app(scope, counted, send)
