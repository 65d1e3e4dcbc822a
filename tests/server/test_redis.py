"""Sessions in Redis: shared by servers, kept over a kill -9, and never stepped twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.redis_store import RedisStore
from server.sessions import SessionNotFound
from tests.server.conftest import free_port, start_server, wait_healthy
from tests.server.test_sessions import session
from tests.server.twins import episodes, random_actions, seen

pytestmark = pytest.mark.redis


def with_store(url: str, use: Any, idle_s: float = 60.0) -> None:
    async def run() -> None:
        store = RedisStore(url, idle_s)
        try:
            await store.ping()
            await use(store)
        finally:
            await store.close()

    asyncio.run(run())


def test_a_session_comes_back_as_it_was(redis_url: str):
    async def use(store: RedisStore) -> None:
        one = session("back", steps=2, actions=b"\x01" * 40, step_id="s", answer=b"{}")
        await store.create(one)
        assert await store.get("back") == one
        assert await store.count() >= 1
        with pytest.raises(SessionNotFound, match="unknown"):
            await store.get("never")

    with_store(redis_url, use)


def test_of_many_writers_of_one_step_one_wins(redis_url: str):
    async def use(store: RedisStore) -> None:
        start = session("race")
        await store.create(start)
        wins = await asyncio.gather(*(store.replace(replace(start, steps=1, seed=i), 0) for i in range(20)))
        assert sum(wins) == 1
        assert (await store.get("race")).seed == wins.index(True)

    with_store(redis_url, use)


def test_an_idle_session_expires_and_is_remembered(redis_url: str):
    async def use(store: RedisStore) -> None:
        await store.create(session("idle"))
        await asyncio.sleep(0.12)
        await store.get("idle")  # a use: 0.2 s more
        await asyncio.sleep(0.12)
        await store.get("idle")
        await asyncio.sleep(0.4)
        with pytest.raises(SessionNotFound, match="expired"):
            await store.get("idle")
        with pytest.raises(SessionNotFound, match="expired"):
            await store.replace(session("idle", steps=1), 0)

    with_store(redis_url, use, idle_s=0.2)


def test_a_record_of_another_version_is_expired(redis_url: str):
    async def use(store: RedisStore) -> None:
        await store.create(session("old"))
        await store._redis.hset("inferencegym:session:{old}", "record", b'{"version":0}')  # pyright: ignore
        with pytest.raises(SessionNotFound, match="expired"):
            await store.get("old")

    with_store(redis_url, use)


def played_through_a_kill(
    first: str, then: str, actions: list[list[dict[str, Any]]], kill: Callable[[], None]
) -> tuple[list[list[dict[str, Any]]], int]:
    """All episodes at once, a session each; a third of the way in ``kill`` is called. A client whose connection breaks
    goes on at ``then``. Returns what each saw, and how many connections broke."""
    count, steps = len(actions), len(actions[0])
    found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    done = broken = 0

    async def run() -> None:
        async with httpx.AsyncClient(timeout=30) as client:

            async def again(method: str, path: str, **request: Any) -> httpx.Response:
                """After a break: connections that the pool still holds to the dead may break once more."""
                for _ in range(count):
                    try:
                        return await client.request(method, f"{then}{path}", **request)
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
                raise AssertionError(f"{then}{path} does not answer")

            async def play(i: int) -> None:
                nonlocal done, broken
                url = first
                reset = await client.post(f"{url}/reset", json={"task_id": 2, "seed": i})
                session_id = reset.json()["session_id"]
                while len(found[i]) < steps:
                    t = len(found[i])
                    body = {"session_id": session_id, "action": actions[i][t], "step_id": str(t)}
                    try:
                        answer = await client.post(f"{url}/step", json=body)
                    except httpx.TransportError:
                        url, broken = then, broken + 1
                        state = await again("GET", "/state", params={"session_id": session_id})
                        # at the step acknowledged, or one further if only the answer was lost
                        assert state.json()["step_count"] in (t, t + 1)
                        continue
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["info"]["timestep"] == t + 1
                    found[i].append(seen(answer.json()))
                    done += 1

            async def killer() -> None:
                while done < count * steps // 3:
                    await asyncio.sleep(0.01)
                kill()

            await asyncio.gather(killer(), *(play(i) for i in range(count)))

    asyncio.run(run())
    return found, broken


def test_two_servers_share_sessions_and_a_kill_loses_nothing(redis_url: str, tmp_path: Path):
    """One server is killed -9 under load; every session goes on, on the other, at the step last acknowledged."""
    actions = [random_actions(i, 30) for i in range(24)]
    second = free_port()
    with (
        start_server(tmp_path, wait=False, REDIS_URL=redis_url) as first,
        start_server(tmp_path, port=second, REDIS_URL=redis_url) as other,
    ):
        wait_healthy(first)
        found, broken = played_through_a_kill(first.url, other.url, actions, first.kill)
        assert broken > 0 and found == episodes(2, list(range(24)), actions)

        with httpx.Client(base_url=other.url) as client:
            session_id = client.post("/reset", json={"task_id": 1, "seed": 0}).json()["session_id"]

            async def race() -> list[int]:
                async with httpx.AsyncClient(base_url=other.url, timeout=30) as many:
                    body = {"session_id": session_id, "action": {}}
                    answers = await asyncio.gather(*(many.post("/step", json=body) for _ in range(16)))
                return [answer.status_code for answer in answers]

            statuses = asyncio.run(race())
            taken = client.get("/state", params={"session_id": session_id}).json()["step_count"]
            assert set(statuses) <= {200, 409} and statuses.count(200) == taken


def test_without_redis_a_request_is_answered_503_and_the_server_recovers(redis_url: str):
    from server.app import create_app
    from server.settings import Settings

    app = create_app(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", rate_limit="off"))

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/state", params={"session_id": "a"}), await client.get("/health")

    for answer in asyncio.run(run()):
        assert answer.status_code == 503 and "store" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "1"
