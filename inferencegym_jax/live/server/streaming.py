"""One streamed ``/v1/completions`` request, timed token by token; failures are values, not exceptions.

All times are of ``time.perf_counter`` (monotonic, seconds), so a clock that jumps changes nothing. The API key is
sent in one header and appears nowhere else: not in ``repr``, not in an error, not in a log line.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

FIRST_TOKEN_ID = 100  # prompts are drawn from token ids that any vocabulary has
TOKEN_ID_SPAN = 6000


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and how long to wait for it.

    Attributes:
        base_url: with or without a trailing ``/v1``.
        model: name that the server knows.
        api_key: sent as a bearer token; never shown.
        connect_timeout_s: until a connection is there.
        first_token_timeout_s: from sending to the first token.
        stall_timeout_s: between two tokens.
        ignore_eos: ask for exactly ``max_tokens`` tokens (vLLM, SGLang); ``engine.probe`` says whether the server
            takes it.
        include_usage: ask for token counts at the end of the stream.
    """

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    connect_timeout_s: float = 5.0
    first_token_timeout_s: float = 120.0
    stall_timeout_s: float = 30.0
    ignore_eos: bool = True
    include_usage: bool = True

    def __post_init__(self) -> None:
        check_url("base_url", self.base_url)

    @property
    def root(self) -> str:
        """The server's root, without ``/v1``."""
        return self.base_url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def shown(self) -> str:
        """The URL for messages, without user and password."""
        return hide_user(self.root)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, which no proxy of the environment should come between."""
        host = urlsplit(self.root).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def redact(self, text: str) -> str:
        """``text`` without the API key, should a server have echoed it."""
        return text.replace(self.api_key, "***") if self.api_key else text


def check_url(name: str, url: str) -> None:
    """Raise ``ValueError``, which calls the URL ``name``, unless it is one of HTTP with a host."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} = {hide_user(url)!r}: must be http://HOST:PORT or https://HOST:PORT")


def hide_user(url: str) -> str:
    """A URL without the user and password that it may carry."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def open_client(endpoint: Endpoint, keepalive_s: float = 2.0) -> httpx.AsyncClient:
    """A client with enough connections for any concurrency; proxies of the environment are not used for this machine.

    Idle connections are dropped after ``keepalive_s``, before the server does (uvicorn: 5 s), so that no request
    meets a connection that is just being closed.
    """
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    return httpx.AsyncClient(
        base_url=endpoint.root,
        headers=headers,
        timeout=httpx.Timeout(None, connect=endpoint.connect_timeout_s),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=1024, keepalive_expiry=keepalive_s),
        trust_env=not endpoint.is_local,
    )


@dataclass(frozen=True)
class Generation:
    """A request to send: ``prompt_tokens`` random token ids in, ``output_tokens`` out.

    Attributes:
        number: what its random prompt is drawn from, so that no two requests share a prefix.
        klass: 0 interactive, 1 batch, 2 best effort.
    """

    prompt_tokens: int
    output_tokens: int
    number: int = 0
    klass: int = 0

    def body(self, endpoint: Endpoint) -> dict[str, Any]:
        """The JSON of the request."""
        body: dict[str, Any] = {
            "model": endpoint.model,
            "prompt": prompt_ids(self.number, self.prompt_tokens),
            "max_tokens": self.output_tokens,
            "temperature": 0.0,
            "stream": True,
        }
        if endpoint.ignore_eos:
            body["ignore_eos"] = True
        if endpoint.include_usage:
            body["stream_options"] = {"include_usage": True}
        return body


def prompt_ids(number: int, length: int) -> list[int]:
    """``length`` token ids that differ from the first on between numbers: defeats prefix caches; no generator state."""
    x = (number * 2654435761 + 97) & 0xFFFFFFFF
    ids = []
    for _ in range(length):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        ids.append(FIRST_TOKEN_ID + (x >> 16) % TOKEN_ID_SPAN)
    return ids


@dataclass(frozen=True)
class StreamError:
    """Why a stream did not end as it should.

    ``kind`` is one of connect, timeout (no first token), stall (between tokens), http (a status), truncated (ended
    early), server (an error event in the stream), protocol (not an event stream).
    """

    kind: str
    message: str
    status: int | None = None


@dataclass
class Stream:
    """A request as it went. ``token_s`` are arrival times on the same clock as ``sent_s``."""

    request: Generation
    sent_s: float
    token_s: list[float] = field(default_factory=list)
    end_s: float | None = None
    prompt_tokens: int | None = None  # as the server counted them
    output_tokens: int | None = None
    error: StreamError | None = None

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token, or None when there was none."""
        return 1000.0 * (self.token_s[0] - self.sent_s) if self.token_s else None

    @property
    def tokens(self) -> int:
        """Output tokens: the server's count, or the events seen."""
        return self.output_tokens if self.output_tokens is not None else len(self.token_s)

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per output token after the first: (last - first) / (tokens - 1)."""
        if len(self.token_s) < 2 or self.tokens < 2:
            return None
        return 1000.0 * (self.token_s[-1] - self.token_s[0]) / (self.tokens - 1)


async def stream_completion(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    request: Generation,
    on_token: Callable[[Stream, float], None] | None = None,
) -> Stream:
    """Send one request and time its tokens.

    Args:
        client: from ``open_client``.
        endpoint: where to and how long to wait.
        request: what to ask for.
        on_token: called with (stream, arrival time) at every token.

    Returns:
        The stream; ``error`` says what went wrong, if anything did. Cancelling the task closes the connection, which
        tells the server to stop, and raises ``CancelledError`` as usual.
    """
    loop = asyncio.get_running_loop()
    body = json.dumps(request.body(endpoint)).encode()
    result = Stream(request, time.perf_counter())
    try:
        async with asyncio.timeout(endpoint.first_token_timeout_s) as deadline:
            call = client.stream("POST", "/v1/completions", content=body, headers={"Content-Type": "application/json"})
            async with call as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    result.error = http_error(endpoint, response.status_code, text)
                elif "text/event-stream" not in response.headers.get("content-type", ""):
                    kind = response.headers.get("content-type", "no content type")
                    result.error = StreamError("protocol", f"the server does not stream: it answered with {kind}")
                else:
                    async for event in events(response):
                        now = time.perf_counter()
                        if _take(result, event, endpoint):
                            result.token_s.append(now)
                            deadline.reschedule(loop.time() + endpoint.stall_timeout_s)
                            if on_token is not None:
                                on_token(result, now)
                    if result.end_s is None and result.error is None:
                        result.error = StreamError("truncated", f"the stream ended after {result.tokens} tokens")
    except TimeoutError:
        if result.token_s:
            result.error = StreamError("stall", f"no token for {endpoint.stall_timeout_s:g} s")
        else:
            result.error = StreamError("timeout", f"no first token within {endpoint.first_token_timeout_s:g} s")
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        result.error = StreamError("connect", f"{endpoint.shown} does not answer: {error or type(error).__name__}")
    except httpx.HTTPError as error:
        result.error = StreamError(
            "truncated", endpoint.redact(f"the connection broke: {error or type(error).__name__}")
        )
    result.end_s = time.perf_counter()
    return result


def http_error(endpoint: Endpoint, status: int, text: str) -> StreamError:
    """A server's refusal as a value: its status and its own message, shortened, without the key."""
    try:
        body = json.loads(text)
        detail = body.get("error", body)
        message = detail.get("message", text) if isinstance(detail, dict) else str(detail)
    except (ValueError, AttributeError):
        message = text
    return StreamError("http", endpoint.redact(f"{endpoint.shown} answered {status}: {str(message)[:300]}"), status)


async def events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each server-sent event, as bytes."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _take(result: Stream, event: bytes, endpoint: Endpoint) -> bool:
    """Note what an event says; whether it carries a token."""
    if event == b"[DONE]":
        result.end_s = time.perf_counter()
        return False
    try:
        data = json.loads(event)
        choices = data.get("choices") or []
    except (ValueError, AttributeError):
        result.error = StreamError("protocol", f"not a completion event: {endpoint.redact(repr(event[:80]))}")
        return False
    if "error" in data:
        result.error = StreamError("server", endpoint.redact(str(data["error"])[:300]))
        return False
    usage = data.get("usage")
    if usage:
        result.prompt_tokens, result.output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not choices:
        return False
    text = choices[0].get("text")
    if text is None:
        text = (choices[0].get("delta") or {}).get("content")
    return bool(text) or choices[0].get("finish_reason") is None
