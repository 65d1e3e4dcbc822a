"""Connections with bounds: how many, how long a request may take to arrive, how large its head may be, how many
requests or frames are read at once.

uvicorn's protocols bound none of these: a client that sends headers for ever, a byte a minute, or nothing, would hold
its connection and memory; one that sends thousands of requests or frames at once would hold up everybody else. Bodies
have their own bounds (``middleware.BodyLimit``), and so have messages (``messages``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server.bounds import BODY_S

HEAD_S = 10.0  # a request's head must have arrived so long after its connection or its first byte
MESSAGE_S = BODY_S + 10.0  # and its body so long after its head; BodyLimit answers before
TAKE_S = 30.0  # what was sent must have been taken, all but a little, after so long
MOST_HEAD = 64_000  # bytes of a request beside its body: its head, and what chunks and trailers add
MOST_PIPELINED = 16  # requests that a client may send on a connection before the first of them is answered
PART = 4096  # bytes of a WebSocket's frames that are read before others have their turn
MOST_FRAGMENTS = 1000  # frames of one message
MOST_CONTROLS, CONTROL_S = 200, 10.0  # pings and pongs from a client in so many seconds


class EndsWhereNothingIsTaken(asyncio.Protocol):
    """A connection that ends when its client takes nothing of what it was sent for ``TAKE_S`` seconds."""

    loop: Any
    transport: Any
    _untaken: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """More waits to be taken by the client than the connection may hold."""
        super().pause_writing()
        self._await_taking()

    def resume_writing(self) -> None:
        """The client took it."""
        super().resume_writing()
        self._forget_untaken()

    def _await_taking(self) -> None:
        self._forget_untaken()
        self._untaken = self.loop.call_later(TAKE_S, self.transport.abort)

    def _forget_untaken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._forget_untaken()
        super().connection_lost(exc)


class BoundedProtocol(EndsWhereNothingIsTaken, HttpToolsProtocol):
    """uvicorn's HTTP protocol for one connection, which ends where a bound is passed.

    ``most_connections`` is the process's, from its settings.
    """

    most_connections = 2048

    def connection_made(self, transport: Any) -> None:
        """Begin, or close at once where there are too many."""
        super().connection_made(transport)
        self._beside = 0  # bytes of the request beside its body
        self._arriving = True  # a request is awaited or under way
        self._has_ended = False  # a request ended in what is being read
        self._deadline: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most_connections:
            transport.abort()
            return
        self._expect(HEAD_S)

    def _expect(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Count, and pass on."""
        if self.transport.is_closing():
            return
        if not self._arriving:  # the first bytes of the next request
            self._arriving, self._beside = True, 0
            self._expect(HEAD_S)
        self._has_ended = False
        self._beside += len(data)
        super().data_received(data)
        if self._arriving and self._beside > MOST_HEAD and not self.transport.is_closing():
            text = b"the request's head is larger than %d bytes" % MOST_HEAD
            head = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(STATUS_LINE[431] + head + text)
                self.transport.close()
            else:
                self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Say that it is no HTTP; while an earlier request waits for its answer, which this would be taken for, end."""
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins, perhaps in the middle of what was received.

        Raises:
            RuntimeError: too many wait already; ends the reading.
        """
        if len(self.pipeline) >= MOST_PIPELINED:
            raise RuntimeError(f"more than {MOST_PIPELINED} requests at once on one connection")
        super().on_message_begin()
        if self._has_ended:
            self._arriving, self._beside = True, 0
            self._expect(HEAD_S)

    def on_headers_complete(self) -> None:
        """The head is whole: the body has its own time."""
        self._expect(MESSAGE_S)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body, which counts as itself."""
        self._beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole: what it waits for now is the server."""
        self._arriving, self._has_ended = False, True
        self._expect(None)
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """From here on the WebSocket's protocol keeps time, with pings."""
        self._expect(None)
        super().handle_websocket_upgrade()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for so long, or nothing of the last answer was taken: end without waiting for the client."""
        if not self.transport.is_closing():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._expect(None)
        super().connection_lost(exc)


class BoundedWebSocket(EndsWhereNothingIsTaken, WebSocketsSansIOProtocol):
    """uvicorn's protocol of one WebSocket connection, which reads what arrived part by part, no further than what is
    being worked on, and ends where a bound is passed or the client takes nothing."""

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self._unread = b""
        self._turn: asyncio.Handle | None = None  # when the next part is read
        self._controls, self._counted_from = 0, 0.0

    def data_received(self, data: bytes) -> None:
        """Read a part of it; the rest in turns, and after messages that are still to be taken."""
        self._unread += data
        if self._turn is None and not self.read_paused:
            self._read()

    def _read(self) -> None:
        self._turn = None
        part, self._unread = self._unread[:PART], self._unread[PART:]
        super().data_received(part)
        if len(self.frames) > MOST_FRAGMENTS:
            self.transport.abort()
        if self.transport.is_closing():
            self._unread = b""
        elif not self.read_paused:
            self._go_on()

    def _go_on(self) -> None:
        if not self._unread:
            self.transport.resume_reading()
        elif self._turn is None:
            self.transport.pause_reading()
            self._turn = self.loop.call_soon(self._read)

    async def receive(self) -> Any:
        """The next message; when none waits, more is read."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._go_on()
        return message

    def handle_ping(self) -> None:
        """Answer it, unless there are too many."""
        if not self._too_many():
            super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        """Take it, unless there are too many."""
        if not self._too_many():
            super().handle_pong(event)

    def _too_many(self) -> bool:
        now = self.loop.time()
        if now - self._counted_from > CONTROL_S:
            self._controls, self._counted_from = 0, now
        self._controls += 1
        if self._controls > MOST_CONTROLS:
            self.transport.abort()
        return self.transport.is_closing()

    def keepalive_timeout(self) -> None:
        """The client answers no ping: end, without waiting until it takes a farewell."""
        super().keepalive_timeout()
        self.transport.abort()

    async def run_asgi(self) -> None:
        """Serve it; a client that does not take the last words is not waited for."""
        await super().run_asgi()
        if not self.disconnected:
            self._await_taking()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._unread = b""
        if self._turn is not None:
            self._turn.cancel()
        super().connection_lost(exc)
