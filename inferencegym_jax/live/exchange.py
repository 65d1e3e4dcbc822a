"""One request passed on to the upstream and its answer passed back, bytes untouched, tokens counted on the way."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import httpx

from inferencegym_jax.live.control_metrics import ControlMetrics
from inferencegym_jax.live.gate import CLASSES
from inferencegym_jax.live.observer import Observer, Watched
from inferencegym_jax.live.streaming import Endpoint
from inferencegym_jax.live.watch import EventCounter, Seen, completion_tokens

log = logging.getLogger(__name__)
HOP_BY_HOP = frozenset(  # RFC 9110, 7.6.1: for one connection only, never forwarded
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection "
    b"te trailer transfer-encoding upgrade".split()
)
KEEP_ANSWER = 1_000_000  # bytes of an answer in one piece that are kept to read its token count


@dataclass(frozen=True)
class Upstream:
    """Where to, how long to wait, and who is told."""

    endpoint: Endpoint
    client: httpx.AsyncClient
    observer: Observer
    metrics: ControlMetrics
    first_byte_timeout_s: float
    stall_timeout_s: float


class Exchange:
    """One request passed on and its answer passed back."""

    def __init__(
        self,
        upstream: Upstream,
        scope: Any,
        body: bytes,
        send: Any,
        seen: Seen | None = None,
        watched: Watched | None = None,
    ):
        self.upstream, self.scope, self.body, self.send = upstream, scope, body, send
        self.seen, self.watched = seen, watched
        self.outcome = "client_gone"  # unless it ends in another way
        self.started = False

    async def run(self) -> None:
        """Forward; a failure before the answer began is a 502 or 504, after that the answer breaks off."""
        if self.watched is not None and self.seen is not None and not self.seen.streams:
            self.upstream.observer.admit_untimed(self.watched, time.perf_counter())
        try:
            async with asyncio.timeout(self.upstream.first_byte_timeout_s) as deadline:
                response = await self.upstream.client.send(self._request(), stream=True)
                try:
                    await self._pass_back(response, deadline)
                finally:
                    await response.aclose()
            self.outcome = "completed" if response.status_code < 500 else "upstream_error"
        except (TimeoutError, httpx.TimeoutException):
            await self._fail(504, f"{self.upstream.endpoint.shown} was silent for too long")
        except httpx.HTTPError as error:
            detail = str(error) or type(error).__name__
            await self._fail(502, f"{self.upstream.endpoint.shown} does not answer: {detail}")

    def _request(self) -> httpx.Request:
        raw = self.scope.get("raw_path") or self.scope["path"].encode()
        query = self.scope.get("query_string", b"")
        target = raw.decode("latin-1") + ("?" + query.decode("latin-1") if query else "")
        headers = [
            (name, value)
            for name, value in self.scope["headers"]
            if name not in HOP_BY_HOP and name not in (b"host", b"content-length")
        ]
        return httpx.Request(
            self.scope["method"], self.upstream.endpoint.root + target, headers=headers, content=self.body or None
        )

    async def _pass_back(self, response: httpx.Response, deadline: asyncio.Timeout) -> None:
        headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in HOP_BY_HOP]
        await self.send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        self.started = True
        loop = asyncio.get_running_loop()
        good = response.status_code == 200 and self.watched is not None
        streams = good and "text/event-stream" in response.headers.get("content-type", "")
        counter = EventCounter()
        kept = b""
        async for chunk in response.aiter_raw():
            deadline.reschedule(loop.time() + self.upstream.stall_timeout_s)
            await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
            if streams:
                self._count(counter.feed(chunk))
            elif good and len(kept) < KEEP_ANSWER:
                kept += chunk
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})
        if good and not streams:
            tokens = completion_tokens(kept)
            self.upstream.observer.add_tokens(tokens)
            self.upstream.metrics.tokens.inc(tokens)

    def _count(self, tokens: int) -> None:
        if not tokens or self.watched is None:
            return
        now = time.perf_counter()
        if self.watched.first_s is None:
            name = CLASSES[self.watched.klass]
            self.upstream.metrics.ttft.labels(name).observe(now - self.watched.arrived_s)
        self.upstream.observer.token(self.watched, now, tokens)
        self.upstream.metrics.tokens.inc(tokens)

    async def _fail(self, status: int, message: str) -> None:
        self.outcome = "truncated" if self.started else "upstream_error"
        log.warning("%s %s: %s", self.scope["method"], self.scope["path"], message)
        if not self.started:
            await answer(self.send, status, message)
        # else: returning without a final chunk makes the server close the connection, and the client see that it broke


async def answer(send: Any, status: int, message: str, headers: dict[str, str] | None = None) -> None:
    """An error of the proxy's own, in OpenAI's format."""
    kind = {429: "rate_limit_error", 400: "invalid_request_error", 413: "invalid_request_error"}.get(
        status, "upstream_error"
    )
    body = json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()
    lines = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    lines += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
