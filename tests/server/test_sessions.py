"""Sessions are never lost, never mixed up, and expire only as they should."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.sessions import EmbeddedStore, Session, SessionNotFound
from tests.server.conftest import Running
from tests.server.twins import episodes, random_actions, same, seen


def session(name: str, **fields: Any) -> Session:
    whole: dict[str, Any] = {"task": 1, "seed": 2, "config": {"alpha": 0.5}, "state": b"\x00\xff" * 18}
    return Session(id=name, episode_id=name, **(whole | fields))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_survives_being_written_down():
    one = session("a", steps=3, total_reward=-0.1, actions=bytes(range(60)), step_id="x", response=b'{"reward":1}')
    assert Session.from_bytes(one.to_bytes()) == one


def test_a_record_of_another_version_is_refused():
    data = session("a").to_bytes().replace(b'"version":1', b'"version":2')
    with pytest.raises(ValueError, match="version 2"):
        Session.from_bytes(data)


def test_the_least_recently_used_is_evicted_and_said_to_be_expired():
    async def run() -> None:
        store = EmbeddedStore(capacity=2, idle_s=100)
        for name in "ab":
            await store.create(session(name))
        await store.get("a")  # b is now the least recently used
        await store.create(session("c"))
        assert await store.count() == 2
        assert (await store.get("a")).id == "a" and (await store.get("c")).id == "c"
        with pytest.raises(SessionNotFound, match="expired"):
            await store.get("b")
        with pytest.raises(SessionNotFound, match="unknown"):
            await store.get("z")

    asyncio.run(run())


def test_an_idle_session_expires_and_a_used_one_does_not():
    async def run() -> None:
        clock = Clock()
        store = EmbeddedStore(capacity=10, idle_s=60, clock=clock)
        for name in "ab":
            await store.create(session(name))
        clock.now = 50
        await store.get("a")
        clock.now = 100
        assert (await store.get("a")).id == "a"
        with pytest.raises(SessionNotFound, match="expired"):
            await store.replace(session("b", steps=1), 0)
        assert await store.count() == 1

    asyncio.run(run())


def test_replace_is_a_compare_and_set():
    async def run() -> None:
        store = EmbeddedStore(capacity=10, idle_s=60)
        start = session("a")
        await store.create(start)
        assert await store.replace(replace(start, steps=1), 0)
        assert not await store.replace(replace(start, steps=1, seed=3), 0)
        assert (await store.get("a")).seed == 2

    asyncio.run(run())


def test_many_long_sessions_are_fewer_than_the_capacity():
    async def run() -> None:
        store = EmbeddedStore(capacity=100, idle_s=60, room=10 * session("x", actions=bytes(1000)).size)
        for i in range(10):
            await store.create(session(str(i), actions=bytes(1000)))
        assert await store.count() == 10
        for steps in range(1, 20):  # one grows, and the others go, the least recently used first
            start = await store.get("9")
            await store.get("8")
            assert await store.replace(replace(start, steps=steps, actions=bytes(1000 * steps)), steps - 1)
        assert await store.count() == 4
        assert [(await store.get(name)).id for name in "98"] == ["9", "8"]
        with pytest.raises(SessionNotFound, match="expired"):
            await store.get("0")
        store.idle_s = -1.0
        assert await store.count() == 0
        await store.create(session("alone", actions=bytes(10**6)))  # one is kept however long it is
        store.idle_s = 60.0
        assert (await store.get("alone")).id == "alone"

    asyncio.run(run())


def test_sessions_of_the_usual_length_all_have_room():
    whole = session("x", actions=bytes(20 * 200), response=bytes(3000))
    assert EmbeddedStore(10_000, 60).room >= 10_000 * whole.size
    assert EmbeddedStore(10, 60).room >= 1000 * session("x", actions=bytes(20 * 1800)).size


@pytest.mark.slow
def test_a_thousand_interleaved_sessions_are_their_twins(server: Running):
    """64 clients step 1,000 sessions in random order; every trajectory equals its in-process twin, none is lost."""
    count, steps, clients = 1000, 3, 64
    tasks = [1 + i % 5 for i in range(count)]
    actions = [random_actions(i, steps) for i in range(count)]
    order = [i for i in range(count) for _ in range(steps)]
    random.Random(0).shuffle(order)

    async def run() -> list[list[dict[str, Any]]]:
        found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        locks = [asyncio.Lock() for _ in range(count)]
        work = iter(order)
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            ids: list[str] = [""] * count

            async def start(i: int) -> None:
                body = {"task_id": tasks[i], "seed": i}
                ids[i] = (await client.post("/reset", json=body)).json()["session_id"]

            for first in range(0, count, clients):
                await asyncio.gather(*(start(i) for i in range(first, min(first + clients, count))))

            async def one_client() -> None:
                for i in work:
                    async with locks[i]:
                        body = {"session_id": ids[i], "action": actions[i][len(found[i])]}
                        answer = await client.post("/step", json=body)
                        assert answer.status_code == 200, answer.text
                        found[i].append(seen(answer.json()))

            await asyncio.gather(*(one_client() for _ in range(clients)))
        assert len(set(ids)) == count
        return found

    found = asyncio.run(run())
    for task in sorted(set(tasks)):
        mine = [i for i in range(count) if tasks[i] == task]
        twins = episodes(task, mine, [actions[i] for i in mine])
        assert same([found[i] for i in mine], twins, task)
