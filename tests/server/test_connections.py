"""What one connection may do: requests and frames at once, pings without end, taking nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server import connections
from server.connections import MOST_CONTROLS, MOST_FRAGMENTS, MOST_PIPELINED, BoundedProtocol, BoundedWebSocket
from tests.server.conftest import free_port, raw_websocket
from tests.server.corpus import frame

TEXT, CONTINUED, PING = 0x1, 0x0, 0x9
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Echo:
    """An application that answers every request, and every message with itself."""

    def __init__(self) -> None:
        self.open = 0
        self.size = 1  # an answer repeats its message so often

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(0.01)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        await receive()
        await send({"type": "websocket.accept"})
        self.open += 1
        try:
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"] * self.size})
        finally:
            self.open -= 1


@pytest.fixture
def echo() -> Iterator[tuple[Echo, int]]:
    """The application on a port of its own."""
    app, port = Echo(), free_port()
    options: dict[str, Any] = {"http": BoundedProtocol, "ws": BoundedWebSocket, "ws_max_size": 256_000}
    config = uvicorn.Config(
        app, port=port, lifespan="off", log_level="critical", ws_per_message_deflate=False, **options
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end and thread.is_alive()
        time.sleep(0.01)
    yield app, port
    server.should_exit = True
    thread.join(20)


def ends(raw: socket.socket, data: Iterator[bytes], most: int = 50_000_000) -> bool:
    """Whether the server ends the connection while it is sent this; nothing is read of it before."""
    sent = 0
    raw.settimeout(20)
    try:
        for part in data:
            raw.sendall(part)
            sent += len(part)
            if sent > most:
                return False
        while raw.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def answers(raw: socket.socket) -> int:
    """How many answers come before the connection ends."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := raw.recv(65536):
            found += part
    return found.count(b"HTTP/1.1 200")


def test_requests_sent_at_once_are_answered_and_too_many_end_the_connection(echo: tuple[Echo, int]):
    with socket.create_connection(("127.0.0.1", echo[1]), 20) as raw:
        raw.sendall(GET * MOST_PIPELINED + GET.replace(b"host", b"connection: close\r\nhost"))
        assert answers(raw) == MOST_PIPELINED + 1
    with socket.create_connection(("127.0.0.1", echo[1]), 20) as raw:
        raw.sendall(GET * 5000)
        assert answers(raw) <= MOST_PIPELINED + 1


def test_no_answer_is_taken_for_that_of_an_earlier_request(echo: tuple[Echo, int]):
    """What is no HTTP behind a request that waits."""
    with socket.create_connection(("127.0.0.1", echo[1]), 20) as raw:
        raw.sendall(GET + b"nonsense\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert not raw.recv(65536).startswith(b"HTTP/1.1 400")
    with socket.create_connection(("127.0.0.1", echo[1]), 20) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("size", [1, 100, 50_000, 250_000])
def test_messages_sent_at_once_are_answered_each_in_their_order(echo: tuple[Echo, int], size: int):
    count = min(3000, 5_000_000 // size)
    with connect(f"ws://127.0.0.1:{echo[1]}/ws", max_size=None, compression=None) as client:
        sender = threading.Thread(target=lambda: [client.send(str(i) * max(1, size // 4)) for i in range(count)])
        sender.start()
        for i in range(count):
            assert client.recv(20) == str(i) * max(1, size // 4)
        sender.join(20)
        assert client.ping().wait(20)


def test_a_message_in_parts_is_one(echo: tuple[Echo, int]):
    with connect(f"ws://127.0.0.1:{echo[1]}/ws", compression=None) as client:
        client.send(["part"] * 300)
        assert client.recv(20) == "part" * 300


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(frame(PING, b""), id="pings"),
        pytest.param(frame(PING, b"x" * 125), id="long pings"),
        pytest.param(frame(0xA, b""), id="pongs"),
        pytest.param(frame(CONTINUED, b"", last=False), id="parts of nothing"),
    ],
)
def test_frames_without_end_end_the_connection(echo: tuple[Echo, int], flood: bytes):
    app, port = echo
    with raw_websocket(port) as raw:
        raw.sendall(frame(TEXT, b"a", last=False))
        assert ends(raw, itertools.repeat(flood * 1000))
    with connect(f"ws://127.0.0.1:{port}/ws") as client:  # others are served
        client.send("there")
        assert client.recv(20) == "there"


def test_so_many_controls_and_parts_are_allowed(echo: tuple[Echo, int]):
    with connect(f"ws://127.0.0.1:{echo[1]}/ws", compression=None, ping_interval=None) as client:
        for _ in range(MOST_CONTROLS - 1):
            assert client.ping().wait(20)
        client.send(["x"] * MOST_FRAGMENTS)
        assert client.recv(20) == "x" * MOST_FRAGMENTS


def test_who_takes_nothing_is_not_waited_for(echo: tuple[Echo, int], monkeypatch: pytest.MonkeyPatch):
    app, port = echo
    monkeypatch.setattr(connections, "TAKE_S", 0.2)
    app.size = 10_000
    with raw_websocket(port) as raw:
        assert ends(raw, itertools.repeat(frame(TEXT, b"x" * 100)), most=10**9)
    end = time.monotonic() + 20
    while app.open:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_message_that_is_too_long_ends_the_connection(echo: tuple[Echo, int]):
    with connect(f"ws://127.0.0.1:{echo[1]}/ws", compression=None) as client, pytest.raises(ConnectionClosed):
        client.send(os.urandom(200_000).hex())
        client.recv(20)
