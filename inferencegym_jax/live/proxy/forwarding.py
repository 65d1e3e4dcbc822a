"""One request passed on to the upstream and its answer passed back, bytes untouched, tokens counted on the way.

Whatever happens ends in an answer, or in one that visibly breaks off, and in one line of the log. Neither says more of
an unexpected error than its kind: its text may hold what a client sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from yarl import URL

from inferencegym_jax.live.loop.admission_line import CLASSES
from inferencegym_jax.live.loop.fates import Watched
from inferencegym_jax.live.loop.observer import Observer
from inferencegym_jax.live.proxy.counting import AnswerCounter
from inferencegym_jax.live.proxy.headers import BadAnswer, BadTarget, answered, credentials, forwarded, target
from inferencegym_jax.live.proxy.metrics import ControlMetrics
from inferencegym_jax.live.proxy.sniffing import Seen
from inferencegym_jax.live.server.streaming import Endpoint

log = logging.getLogger(__name__)
OWN_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # that aiohttp would add
LONGEST_HEADER = 65536  # bytes
Outcome = Literal["completed", "refused", "rejected", "client_gone", "upstream_error", "truncated"]


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

    upstream: Upstream

    def __init__(
        self,
        scope: Any,
        body: bytes,
        send: Any,
        seen: Seen | None = None,
        watched: Watched | None = None,
    ):
        self.scope, self.body, self.send = scope, body, send
        self.seen, self.watched = seen, watched
        self.outcome: Outcome = "client_gone"  # unless it ends in another way
        self.started = False
        self.is_unsent = False  # the last upstream refused the connection, and somebody else may have the request
        self.begun = False  # whether the gate knows that the engine has taken it up
        self._sending = False  # to the client, who may not read

    async def run(self, upstream: Upstream, is_last: bool = True) -> None:
        """Forward; a failure before the answer began is a 502 or 504, after that the answer breaks off.

        Args:
            upstream: where to.
            is_last: whether a connection that it refuses is answered too; else ``is_unsent`` says that not a byte was
                sent, and the request may go to another one.
        """
        self.upstream, self.is_unsent = upstream, False
        self.root, self.authorization = credentials(upstream.endpoint.root)
        if self.watched is not None and self.seen is not None and not self.seen.streams:
            self.upstream.observer.admit_untimed(self.watched, time.perf_counter())
            self._begin()  # no first token will be seen
        shown = self.upstream.endpoint.shown
        try:
            async with asyncio.timeout(self.upstream.first_byte_timeout_s) as deadline:
                async with self._request() as response:
                    await self._pass_back(response, deadline)
            status = response.status
            self.outcome = "completed" if status < 300 else "refused" if status < 500 else "upstream_error"
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if is_last:
                await self._fail(*_refused(shown, error))
            else:
                log.warning("%s: %s refused the connection; it goes elsewhere", shown_request(self.scope), shown)
                self.is_unsent = True
        except TimeoutError:
            if self._sending:
                log.warning("%s: the client does not read", shown_request(self.scope))
            else:
                await self._fail(504, f"{shown} was silent for too long")
        except BadTarget as error:
            await self._fail(400, str(error), "refused")
        except BadAnswer as error:
            await self._fail(502, f"{shown} {error}")
        except aiohttp.ClientError as error:
            await self._fail(502, f"{shown} does not answer as HTTP should: {type(error).__name__}")
        except OSError as error:
            await self._fail(502, f"{shown} does not answer: {error.strerror or type(error).__name__}")
        except Exception as error:  # whatever it is: one request, not the proxy
            await self._fail(502, f"the request cannot be passed on to {shown}: {type(error).__name__}")

    def _request(self) -> Any:
        raw = self.scope.get("raw_path") or self.scope["path"].encode()
        url = URL(self.root + target(raw, self.scope.get("query_string", b"")), encoded=True)
        headers = forwarded(self.scope["headers"], self.authorization)
        return self.upstream.client.request(
            self.scope["method"],
            url,
            headers=[(_text(name), _text(value)) for name, value in headers],
            data=self.body or None,
            allow_redirects=False,
        )

    async def _pass_back(self, response: aiohttp.ClientResponse, deadline: asyncio.Timeout) -> None:
        headers = answered(response.raw_headers, response.status, self.root)
        self.started = True
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers}, deadline)
        counter = None
        if self.watched is not None and response.status < 300:
            counter = AnswerCounter(
                response.headers.get("Content-Type", ""), response.headers.get("Content-Encoding", "")
            )
        async for chunk in response.content.iter_any():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True}, deadline)
            if counter is not None:
                self._count(counter.feed(chunk))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False}, deadline)
        if counter is not None:
            self._count_whole(counter)

    async def _send(self, message: dict[str, Any], deadline: asyncio.Timeout) -> None:
        """Hand the client a part of the answer; it has as long as the upstream has for the next one."""
        clock = asyncio.get_running_loop().time
        deadline.reschedule(clock() + self.upstream.stall_timeout_s)
        self._sending = True
        await self.send(message)
        self._sending = False
        deadline.reschedule(clock() + self.upstream.stall_timeout_s)

    def _begin(self) -> None:
        """The engine has the prompt in its cache by now."""
        if not self.begun and self.seen is not None:
            self.begun = True
            self.upstream.observer.gate.start(self.seen.prompt_tokens)

    def _count(self, tokens: int) -> None:
        if not tokens or self.watched is None:
            return
        now = time.perf_counter()
        self._begin()
        if self.watched.first_s is None:
            name = CLASSES[self.watched.klass]
            self.upstream.metrics.ttft.labels(name).observe(now - self.watched.arrived_s)
        self.upstream.observer.token(self.watched, now, tokens)
        self.upstream.observer.gate.grow(tokens)
        self.upstream.metrics.tokens.inc(tokens)

    def _count_whole(self, counter: AnswerCounter) -> None:
        if counter.opaque:
            self.upstream.metrics.opaque_answers.inc()
        tokens = counter.whole()
        self.upstream.observer.add_tokens(tokens, self.watched)
        self.upstream.observer.gate.grow(tokens)
        self.upstream.metrics.tokens.inc(tokens)

    async def _fail(self, status: int, message: str, outcome: Outcome = "upstream_error") -> None:
        self.outcome = "truncated" if self.started else outcome
        log.warning("%s: %s", shown_request(self.scope), message)
        if not self.started:
            await respond(self.send, status, message)
        # else: returning without a final chunk makes the server close the connection, and the client see that it broke


def _refused(shown: str, error: aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError) -> tuple[int, str]:
    """Status and message of a connection that did not come about."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return 502, f"{shown} does not answer: {error.os_error.strerror or type(error).__name__}"
    return 504, f"{shown} was silent for too long"


def shown_request(scope: Any) -> str:
    """Method and path for the log, on one line."""
    return f"{scope['method'][:20]} {ascii(scope['path'][:200])[1:-1]}"


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
