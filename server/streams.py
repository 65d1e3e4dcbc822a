"""Answers that are made while they are sent, so that a slow reader holds one piece of them and not the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Response
from starlette.types import Receive, Scope, Send

from server.errors import problem
from server.memory import trim

STREAMS = 4  # answers that are being sent in pieces; each holds a block of episodes, some 20 MB, and a piece
WAIT_S = 30.0  # how long one more waits for its place
PATIENCE_S = 30.0  # a reader may lag behind SLOWEST by so long
SLOWEST = 100_000  # bytes/s
LARGE = 10_000_000  # bytes of an answer after which freed memory is given back to the system
SLICE = 128_000  # bytes handed to the connection at once


class Streams:
    """The places for answers that are sent in pieces."""

    def __init__(self, count: int = STREAMS):
        self.places = asyncio.Semaphore(count)


class PieceResponse(Response):
    """An answer whose pieces are made one at a time, each after the one before it was taken.

    Args:
        pieces: what makes them, in a worker thread.
        media_type: the answer's.
        streams: where it takes a place while it is sent; without one in time it is 503.
        limiter: of the worker threads.
    """

    def __init__(self, pieces: Iterator[bytes], media_type: str, streams: Streams, limiter: CapacityLimiter):
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.pieces, self.streams, self.limiter = pieces, streams, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a reader that is too slow, or gone, ends it."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self.streams.places.acquire()
        except TimeoutError:
            text = f"{STREAMS} other answers are being sent"
            await problem(503, text, {"retry-after": "30"})(scope, receive, send)
            return
        gone = asyncio.ensure_future(_end(receive))
        sent = 0
        try:
            sent = await self._send(send, gone)
        finally:
            self.streams.places.release()
            gone.cancel()
            if isinstance(self.pieces, Generator):
                self.pieces.close()
        if sent > LARGE:
            await to_thread.run_sync(trim, limiter=self.limiter)

    async def _send(self, send: Send, gone: asyncio.Future[None]) -> int:
        """Send the pieces; returns how many bytes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        loop = asyncio.get_running_loop()
        end, making, sent = loop.time() + PATIENCE_S, 0.0, 0
        while not gone.done():
            begun = loop.time()
            piece: Any = await to_thread.run_sync(next, self.pieces, None, limiter=self.limiter)
            making = loop.time() - begun
            if piece is None:
                await send({"type": "http.response.body", "body": b""})
                return sent
            end += making + len(piece) / SLOWEST
            sent += len(piece)
            for start in range(0, len(piece), SLICE):
                async with asyncio.timeout_at(end):
                    part = piece[start : start + SLICE]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        return sent


async def _end(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
