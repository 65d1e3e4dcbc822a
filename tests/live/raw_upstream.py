"""An upstream of raw bytes: it records every request as it came and answers with what the test says.

The path's first segment names the behaviour (``/BEHAVIOUR/v1/completions``); each connection is served until it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

EVENT = b'data: {"choices":[{"index":0,"text":" w"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = EVENT * 3 + DONE
WHOLE = b'{"choices":[{"index":0,"text":"w w w"}],"usage":{"completion_tokens":3}}'
ZIPPED_STREAM, ZIPPED_WHOLE = (gzip.compress(body, mtime=0) for body in (STREAM, WHOLE))
SECRET = "sk-of-a-client-4711"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def head(status: str = "200 OK", *lines: bytes, kind: bytes = b"text/event-stream") -> bytes:
    rows = [b"HTTP/1.1 " + status.encode(), b"content-type: " + kind, *lines]
    return b"\r\n".join(rows) + b"\r\n\r\n"


def sized(body: bytes, status: str = "200 OK", *lines: bytes, kind: bytes = b"application/json") -> bytes:
    return head(status, b"content-length: %d" % len(body), *lines, kind=kind) + body


CHUNKED = b"transfer-encoding: chunked"
POISON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\npoisoned"

# what is written, and then: "keep" the connection, "close" it, "reset" it, or "hang"
BEHAVIOURS: dict[str, tuple[bytes, str]] = {
    "stream": (head("200 OK", CHUNKED) + chunked(EVENT, EVENT, EVENT, DONE), "keep"),
    "stream-by-bytes": (head("200 OK", CHUNKED) + chunked(*(STREAM[i : i + 1] for i in range(len(STREAM)))), "keep"),
    "stream-cr": (head("200 OK", CHUNKED) + chunked(STREAM.replace(b"\n", b"\r")), "keep"),
    "stream-crlf": (head("200 OK", CHUNKED) + chunked(STREAM.replace(b"\n", b"\r\n")), "keep"),
    "stream-gzip": (
        head("200 OK", CHUNKED, b"content-encoding: gzip") + chunked(gzip.compress(STREAM, mtime=0)),
        "keep",
    ),
    "stream-to-close": (head("200 OK") + STREAM, "close"),
    "whole": (sized(WHOLE), "keep"),
    "whole-gzip": (sized(ZIPPED_WHOLE, "200 OK", b"content-encoding: gzip"), "keep"),
    "whole-brotli": (sized(b"\x0b\x02\x80not brotli\x03", "200 OK", b"content-encoding: br"), "keep"),
    "not-found": (sized(b'{"error":{"message":"no such model"}}', "404 Not Found"), "keep"),
    "too-many": (sized(b"{}", "429 Too Many Requests", b"retry-after: 7"), "keep"),
    "broken": (sized(b'{"error":"out of order"}', "500 Internal Server Error"), "keep"),
    "redirect": (sized(b"", "307 Temporary Redirect", b"location: http://UPSTREAM/stream/v1/completions"), "keep"),
    "not-modified": (head("304 Not Modified", b"content-length: 1234"), "keep"),
    "no-content": (head("204 No Content"), "keep"),
    "status-999": (sized(b"what", "999 What"), "close"),
    "status-101": (head("101 Switching Protocols", b"upgrade: x"), "close"),
    "no-http": (b"220 mail.example ESMTP\r\n", "close"),
    "nothing": (b"", "close"),
    "reset": (b"", "reset"),
    "silence": (b"", "hang"),
    "half-a-head": (b"HTTP/1.1 200 OK\r\ncontent-ty", "hang"),
    "stall": (head("200 OK", CHUNKED) + b"%x\r\n%s\r\n" % (len(EVENT), EVENT), "hang"),
    "cut": (head("200 OK", CHUNKED) + b"%x\r\n%s\r\n" % (len(EVENT), EVENT), "close"),
    "cut-reset": (head("200 OK", CHUNKED) + b"%x\r\n%s\r\n" % (len(EVENT), EVENT), "reset"),
    "short": (head("200 OK", b"content-length: 500", kind=b"application/json") + WHOLE, "close"),
    "long": (sized(WHOLE) + POISON, "keep"),
    "both-lengths": (head("200 OK", CHUNKED, b"content-length: 7") + chunked(EVENT, DONE), "keep"),
    "two-lengths": (head("200 OK", b"content-length: 8", b"content-length: 5") + b"whatever", "close"),
    "same-length-twice": (head("200 OK", b"content-length: 5", b"content-length: 5") + b"hello", "close"),
    "bad-chunk": (head("200 OK", CHUNKED) + b"zz\r\nwhat\r\n0\r\n\r\n", "close"),
    "huge-header": (head("200 OK", b"x-long: " + b"a" * 200_000, b"content-length: 2") + b"ok", "close"),
    "connection-names": (
        sized(b"{}", "200 OK", b"connection: keep-alive, x-hop", b"x-hop: 1", b"keep-alive: timeout=5", b"x-end: 2"),
        "keep",
    ),
    "bad-header": (b"HTTP/1.1 200 OK\r\nx y: z\r\ncontent-length: 0\r\n\r\n", "close"),
}

# status, body, and whether the answer ends cleanly, of a client that reads it; None: any
EXPECTED: dict[str, tuple[set[int], bytes | None, bool | None]] = {
    "stream-cr": ({200}, STREAM.replace(b"\n", b"\r"), True),
    "stream-crlf": ({200}, STREAM.replace(b"\n", b"\r\n"), True),
    "stream-gzip": ({200}, ZIPPED_STREAM, True),
    "whole": ({200}, WHOLE, True),
    "whole-gzip": ({200}, ZIPPED_WHOLE, True),
    "whole-brotli": ({200}, b"\x0b\x02\x80not brotli\x03", True),
    "not-found": ({404}, b'{"error":{"message":"no such model"}}', True),
    "too-many": ({429}, b"{}", True),
    "broken": ({500}, b'{"error":"out of order"}', True),
    "redirect": ({307}, b"", True),
    "not-modified": ({304}, b"", True),
    "no-content": ({204}, b"", True),
    "long": ({200}, WHOLE, True),
    "both-lengths": ({200, 502}, None, True),
    "same-length-twice": ({200, 502}, None, True),
    "connection-names": ({200}, b"{}", True),
    "bad-chunk": ({200, 502}, None, None),
}
EXPECTED |= {name: ({200}, STREAM, True) for name in ("stream", "stream-by-bytes", "stream-to-close")}
EXPECTED |= {name: ({200}, None, False) for name in ("stall", "cut", "cut-reset", "short")}
EXPECTED |= {name: ({504}, None, True) for name in ("silence", "half-a-head")}
REFUSED = ("status-999", "status-101", "no-http", "nothing", "reset", "two-lengths", "huge-header", "bad-header")
EXPECTED |= {name: ({502}, None, True) for name in REFUSED}
TOKENS = dict.fromkeys(("stream", "stream-by-bytes", "stream-cr", "stream-crlf", "stream-gzip", "stream-to-close"), 3)
TOKENS |= dict.fromkeys(("whole", "whole-gzip", "long"), 3)
TOKENS |= dict.fromkeys(("stall", "cut"), 1)


@dataclass
class RawUpstream:
    """The server and what it saw."""

    url: str = ""
    requests: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])  # (head, body)
    garbage: list[bytes] = field(default_factory=list[bytes])  # what was no request of a stated length
    release: threading.Event = field(default_factory=threading.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                top = await reader.readuntil(b"\r\n\r\n")
                lines = top.lower().split(b"\r\n")
                lengths = [line for line in lines if line.startswith(b"content-length:")]
                if len(lengths) > 1 or any(line.startswith(b"transfer-encoding") for line in lines):
                    self.garbage.append(top)
                body = await reader.readexactly(int(lengths[0].partition(b":")[2])) if lengths else b""
                path = top.split(b" ")[1].decode()
                if path == "/metrics":
                    writer.write(sized(b"", "404 Not Found"))
                    continue
                self.requests.append((top, body))
                answer, then = BEHAVIOURS.get(path.split("/")[1], (sized(b"{}"), "keep"))
                writer.write(answer.replace(b"UPSTREAM", self.url.removeprefix("http://").encode()))
                await writer.drain()
                if then == "hang":
                    while not self.release.is_set():
                        await asyncio.sleep(0.02)
                if then == "reset":
                    writer.transport.abort()
                if then != "keep":
                    break
        writer.close()


@contextlib.contextmanager
def raw_upstream() -> Iterator[RawUpstream]:
    """The server, in a thread."""
    upstream, ready, loop = RawUpstream(), threading.Event(), asyncio.new_event_loop()

    async def start() -> Any:
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=1 << 20)
        upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        return server

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield upstream
    finally:
        upstream.release.set()

        async def stop() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            loop.stop()

        asyncio.run_coroutine_threadsafe(stop(), loop)
        thread.join(10)
