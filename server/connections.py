"""Connections with bounds: how many, how long a request may take to arrive, how large its head may be.

uvicorn's httptools protocol bounds none of these: a client that sends headers for ever, a byte a minute, or nothing,
would hold its connection and memory. Bodies have their own bounds (``middleware.BodyLimit``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.bounds import BODY_S

HEAD_S = 10.0  # a request's head must have arrived so long after its connection or its first byte
MESSAGE_S = BODY_S + 10.0  # and its body so long after its head; BodyLimit answers before
TAKE_S = 30.0  # what was sent must have been taken, all but a little, after so long
MOST_HEAD = 64_000  # bytes of a request beside its body: its head, and what chunks and trailers add


class BoundedProtocol(HttpToolsProtocol):
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
        self._untaken: asyncio.TimerHandle | None = None
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

    def on_message_begin(self) -> None:
        """A request begins, perhaps in the middle of what was received."""
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

    def pause_writing(self) -> None:
        """More waits to be taken by the client than the connection may hold."""
        super().pause_writing()
        self._untaken = self.loop.call_later(TAKE_S, self._give_up)

    def resume_writing(self) -> None:
        """The client took it."""
        super().resume_writing()
        self._forget_untaken()

    def _forget_untaken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for so long, or nothing of the last answer was taken: end without waiting for the client."""
        if not self.transport.is_closing():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._expect(None)
        self._forget_untaken()
        super().connection_lost(exc)
