"""Rollouts take turns, block by block: a short one does not wait for a long one, and who left is not worked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import httpx
import orjson
from fastapi import FastAPI

from server.bodies import body_route
from server.metrics import Metrics
from server.routes import scoring
from server.schemas import RolloutRequest

LONG, SHORT = 1000, 1  # blocks


class Blocks:
    """Rollouts of as many blocks as there are seeds, each of which waits until it is let go."""

    def __init__(self) -> None:
        self.played: list[int] = []  # of each block, its request's number of blocks
        self.go = threading.Semaphore(0)

    def check(self, request: RolloutRequest) -> None:
        pass

    def play(self, request: RolloutRequest) -> Iterator[Any]:
        for _ in request.seeds:
            assert self.go.acquire(timeout=20)
            self.played.append(len(request.seeds))
            yield None
        yield SimpleNamespace(steps=1, answer=lambda **more: {"blocks": len(request.seeds)})


def application() -> tuple[FastAPI, Blocks]:
    app, blocks = FastAPI(), Blocks()
    nothing = cast(Any, None)
    app.include_router(scoring.build(nothing, cast(Any, blocks), Metrics(), body_route()))
    return app, blocks


def body(blocks: int) -> dict[str, Any]:
    return {"task_id": 1, "seeds": list(range(blocks)), "policy": "baseline"}


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_short_rollout_does_not_wait_for_a_long_one():
    app, blocks = application()

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=20) as http:
            long = asyncio.create_task(http.post("/rollout", json=body(LONG)))
            blocks.go.release()
            await until(lambda: blocks.played)
            short = asyncio.create_task(http.post("/rollout", json=body(SHORT)))
            while not short.done():
                blocks.go.release()
                await asyncio.sleep(0.01)
            assert (await short).json() == {"blocks": SHORT} and not long.done()
            blocks.go.release(LONG)
            assert (await long).json() == {"blocks": LONG}

    asyncio.run(ask())
    assert blocks.played.count(LONG) == LONG and blocks.played.count(SHORT) == SHORT


def test_who_has_left_is_not_worked_for():
    app, blocks = application()

    async def ask() -> dict[str, Any]:
        left = asyncio.Event()
        sent = orjson.dumps(body(LONG))
        messages = [{"type": "http.request", "body": sent, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(sent)).encode())]
        scope: dict[str, Any] = {
            "type": "http", "method": "POST", "path": "/rollout", "raw_path": b"/rollout", "query_string": b"",
            "headers": headers, "http_version": "1.1", "scheme": "http", "client": ("a", 1), "server": ("b", 2),
        }  # fmt: skip
        asked = asyncio.create_task(app(scope, receive, send))
        blocks.go.release(2)
        await until(lambda: len(blocks.played) == 2)
        left.set()
        blocks.go.release(LONG)
        async with asyncio.timeout(20):
            await asked
        return scope

    scope = asyncio.run(ask())
    assert scope["client_left"] is True
    assert len(blocks.played) <= 4  # the one that was under way, and at most one that had begun


def test_no_more_than_so_many_take_turns():
    app, blocks = application()

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=20) as http:
            asked = [asyncio.create_task(http.post("/rollout", json=body(1))) for _ in range(scoring.MOST_ROLLOUTS)]
            refused = await asyncio.create_task(http.post("/rollout", json=body(1)))
            blocks.go.release(scoring.MOST_ROLLOUTS)
            return [refused, *await asyncio.gather(*asked)]

    refused, *answers = asyncio.run(ask())
    assert refused.status_code == 503 and refused.headers["retry-after"] == "10"
    assert [answer.status_code for answer in answers] == [200] * scoring.MOST_ROLLOUTS
