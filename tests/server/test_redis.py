"""Sessions in Redis: shared by servers, kept over a kill -9, and never stepped twice at once."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferencegym_jax.adapters.client import Client
from server.redis_store import RedisStore
from server.sessions import SessionNotFound
from tests.server.conftest import LocalServer, free_port, start_server
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
        one = session("back", steps=2, actions=b"\x01" * 40, step_id="s", response=b"{}")
        await store.create(one)
        assert await store.get("back") == one
        assert await store.count() >= 1
        with pytest.raises(SessionNotFound, match="unknown or expired"):
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


@pytest.mark.parametrize(("evicted", "said"), [("session", " expired: "), ("session known", "is unknown or expired")])
def test_a_session_that_redis_evicted_is_not_called_unknown(redis_url: str, evicted: str, said: str):
    """With ``maxmemory`` Redis drops keys: the session, or what tells that there was one too."""

    async def use(store: RedisStore) -> None:
        await store.create(session("gone"))
        await store._redis.delete(*(f"inferencegym:{name}:{{gone}}" for name in evicted.split()))  # pyright: ignore
        for ask in (store.get("gone"), store.replace(session("gone", steps=1), 0)):
            with pytest.raises(SessionNotFound, match=said):
                await ask

    with_store(redis_url, use)


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


@pytest.fixture(scope="module")
def two_workers(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """One server of two workers, still starting."""
    folder = tmp_path_factory.mktemp("workers")
    with start_server(folder, wait=False, WORKERS="2", REDIS_URL=redis_url, LOG_LEVEL="info") as server:
        yield server


def workers(server: LocalServer, count: int) -> list[int]:
    """Process ids of the workers in the order in which they started, once so many are up."""
    end = time.monotonic() + 120
    while True:
        text = server.log.read_text()
        if text.count("Application startup complete") >= count:
            return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", text)]
        assert server.process.poll() is None and time.monotonic() < end, text
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended (a container's first process may never collect an ended orphan)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def sockets(pid: int) -> int:
    """Open sockets of a process: how many clients it serves."""
    return sum(os.readlink(entry).startswith("socket:") for entry in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.slow
def test_two_servers_share_sessions_and_a_kill_loses_nothing(redis_url: str, two_workers: LocalServer, tmp_path: Path):
    """One server is killed -9 under load; every session goes on, on the other, at the step last acknowledged."""
    actions = [random_actions(i, 30) for i in range(24)]
    with start_server(tmp_path, REDIS_URL=redis_url) as first:
        workers(two_workers, 2)
        found, broken = played_through_a_kill(first.url, two_workers.url, actions, first.kill)
    assert broken > 0 and found == episodes(2, list(range(24)), actions)


@pytest.mark.ci
def test_of_many_steps_at_once_each_is_taken_once(two_workers: LocalServer):
    workers(two_workers, 2)
    with httpx.Client(base_url=two_workers.url) as client:
        session_id = client.post("/reset", json={"task_id": 1, "seed": 0}).json()["session_id"]

        async def race() -> list[int]:
            async with httpx.AsyncClient(base_url=two_workers.url, timeout=30) as many:
                body = {"session_id": session_id, "action": {}}
                answers = await asyncio.gather(*(many.post("/step", json=body) for _ in range(16)))
            return [answer.status_code for answer in answers]

        statuses = asyncio.run(race())
        taken = client.get("/state", params={"session_id": session_id}).json()["step_count"]
        assert set(statuses) <= {200, 409} and statuses.count(200) == taken


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the sockets of a process in /proc")
def test_a_worker_that_is_killed_loses_nothing_and_is_replaced(two_workers: LocalServer):
    """One of two workers on one port is killed -9 under load: every session goes on, on the same address, at the step
    last acknowledged. The server starts another worker, which serves the sessions alone when the first one goes too."""
    actions = [random_actions(i, 30) for i in range(24)]
    pair = workers(two_workers, 2)
    killed: list[int] = []

    def kill_the_busier() -> None:
        killed.append(max(pair, key=sockets))
        os.kill(killed[0], signal.SIGKILL)

    found, broken = played_through_a_kill(two_workers.url, two_workers.url, actions, kill_the_busier)
    assert broken > 0 and found == episodes(2, list(range(24)), actions)

    with Client(two_workers.url) as client:
        episode = client.reset(1, seed=0)
        assert workers(two_workers, 3)[:2] == pair
        (survivor,) = set(pair) - set(killed)
        os.kill(survivor, signal.SIGKILL)
        assert [episode.step({}).timestep for _ in range(3)] == [1, 2, 3]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_their_parent(two_workers: LocalServer):
    """Left behind they would keep the port from the next start. The last test here to use the server."""
    running = [pid for pid in workers(two_workers, 2) if Path(f"/proc/{pid}").exists()]
    assert running
    two_workers.kill()
    end = time.monotonic() + 60
    while left := [pid for pid in running if alive(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


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
