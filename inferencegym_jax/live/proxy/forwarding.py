"""One request passed on to the upstream and its answer passed back, bytes untouched, tokens counted on the way."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from inferencegym_jax.live.loop.admission_line import CLASSES
from inferencegym_jax.live.loop.fates import Watched
from inferencegym_jax.live.loop.observer import Observer
from inferencegym_jax.live.proxy.metrics import ControlMetrics
from inferencegym_jax.live.proxy.sniffing import EventCounter, Seen, completion_tokens
from inferencegym_jax.live.server.streaming import Endpoint

log = logging.getLogger(__name__)
HOP_BY_HOP = frozenset(  # RFC 9110, 7.6.1: for one connection only, never forwarded
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection "
    b"te trailer transfer-encoding upgrade".split()
)
# the host is the upstream's; the body is whole by now, so its length is known and nobody waits to be told to go on
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
OWN_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # that aiohttp would add
LONGEST_HEADER = 65536  # bytes
KEEP_ANSWER = 1_000_000  # bytes of an answer in one piece that are kept to read its token count


@dataclass(frozen=True)
class Upstream:
    """Where to, how long to wait, and who is told."""

    endpoint: Endpoint
    client: aiohttp.ClientSession
    observer: Observer
    metrics: ControlMetrics
    first_byte_timeout_s: float
    stall_timeout_s: float


def open_upstream(endpoint: Endpoint, keepalive_s: float = 2.0) -> aiohttp.ClientSession:
    """A client that passes bytes on as they are: no decompression, cookies, redirects or headers of its own.

    Idle connections are dropped after ``keepalive_s``, before the server does (uvicorn: 5 s).
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_s),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=endpoint.connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=OWN_HEADERS,
        auto_decompress=False,
        max_line_size=LONGEST_HEADER,
        max_field_size=LONGEST_HEADER,
        trust_env=not endpoint.is_local,
    )


class ForwardedRequest:
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
                async with self._request() as response:
                    await self._pass_back(response, deadline)
            self.outcome = "completed" if response.status < 500 else "upstream_error"
        except TimeoutError:
            await self._fail(504, f"{self.upstream.endpoint.shown} was silent for too long")
        except aiohttp.ClientError as error:
            detail = str(error) or type(error).__name__
            await self._fail(502, f"{self.upstream.endpoint.shown} does not answer: {detail}")

    def _request(self) -> Any:
        raw = self.scope.get("raw_path") or self.scope["path"].encode()
        query = self.scope.get("query_string", b"")
        target = raw.decode("latin-1") + ("?" + query.decode("latin-1") if query else "")
        headers = [(_text(name), _text(value)) for name, value in self.scope["headers"] if name not in NOT_FORWARDED]
        return self.upstream.client.request(
            self.scope["method"],
            URL(self.upstream.endpoint.root + target, encoded=True),
            headers=headers,
            data=self.body or None,
            allow_redirects=False,
        )

    async def _pass_back(self, response: aiohttp.ClientResponse, deadline: asyncio.Timeout) -> None:
        headers = [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in HOP_BY_HOP]
        await self.send({"type": "http.response.start", "status": response.status, "headers": headers})
        self.started = True
        loop = asyncio.get_running_loop()
        good = response.status == 200 and self.watched is not None
        streams = good and "text/event-stream" in response.headers.get("content-type", "")
        counter = EventCounter()
        kept = b""
        async for chunk in response.content.iter_any():
            deadline.reschedule(loop.time() + self.upstream.stall_timeout_s)
            await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
            if streams:
                self._count(counter.feed(chunk))
            elif good and len(kept) < KEEP_ANSWER:
                kept += chunk
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})
        if good and not streams:
            tokens = completion_tokens(kept)
            self.upstream.observer.add_tokens(tokens, self.watched)
            self.upstream.observer.gate.grow(tokens)
            self.upstream.metrics.tokens.inc(tokens)

    def _count(self, tokens: int) -> None:
        if not tokens or self.watched is None:
            return
        now = time.perf_counter()
        if self.watched.first_s is None:
            name = CLASSES[self.watched.klass]
            self.upstream.metrics.ttft.labels(name).observe(now - self.watched.arrived_s)
        self.upstream.observer.token(self.watched, now, tokens)
        self.upstream.observer.gate.grow(tokens)
        self.upstream.metrics.tokens.inc(tokens)

    async def _fail(self, status: int, message: str) -> None:
        self.outcome = "truncated" if self.started else "upstream_error"
        log.warning("%s %s: %s", self.scope["method"], self.scope["path"], message)
        if not self.started:
            await respond(self.send, status, message)
        # else: returning without a final chunk makes the server close the connection, and the client see that it broke


def _text(value: bytes) -> str:
    """A header as the text that aiohttp, which writes UTF-8, turns into the same bytes where it can."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


async def respond(send: Any, status: int, message: str, headers: dict[str, str] | None = None) -> None:
    """An error of the proxy's own, in OpenAI's format."""
    kind = {429: "rate_limit_error", 400: "invalid_request_error", 413: "invalid_request_error"}.get(
        status, "upstream_error"
    )
    body = json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()
    lines = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    lines += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
