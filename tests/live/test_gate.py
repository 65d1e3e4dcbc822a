"""The gate: never more inside than the limit, urgent classes first, no request lost or counted twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencegym_jax.live.loop.gate import Gate, QueueFull


def run(test: Any) -> Any:
    return asyncio.run(test)


def test_the_most_urgent_class_goes_first_and_within_a_class_the_first_to_come() -> None:
    async def story() -> list[str]:
        gate, order = Gate(limit=1), []

        async def request(name: str, klass: int) -> None:
            await gate.enter(klass)
            order.append(name)
            await asyncio.sleep(0)
            gate.leave()

        await gate.enter(0)
        tasks = [asyncio.create_task(request(name, int(name[0]))) for name in ("2a", "1a", "0a", "2b", "1b", "0b")]
        await asyncio.sleep(0)
        assert gate.waiting_by_class == [2, 2, 2]
        gate.leave()
        await asyncio.gather(*tasks)
        return order

    assert run(story()) == ["0a", "0b", "1a", "1b", "2a", "2b"]


def test_a_higher_limit_admits_at_once_and_none_admits_all() -> None:
    async def story() -> None:
        gate = Gate(limit=1, capacity=10)
        tasks = [asyncio.create_task(gate.enter()) for _ in range(8)]
        await asyncio.sleep(0)
        assert (gate.inside, gate.waiting) == (1, 7)
        gate.limit = 3
        assert (gate.inside, gate.waiting) == (3, 5)
        gate.limit = 1  # nothing is thrown out
        assert gate.inside == 3
        gate.limit = None
        assert (gate.inside, gate.waiting) == (8, 0)
        await asyncio.gather(*tasks)

    run(story())


def test_a_full_queue_refuses_and_a_cancelled_request_makes_room() -> None:
    async def story() -> None:
        gate = Gate(limit=1, capacity=1)
        await gate.enter()
        waiting = asyncio.create_task(gate.enter(2))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await gate.enter(2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (gate.waiting, gate.given_up, gate.rejected) == (0, 1, 1)

    run(story())


def test_a_full_queue_turns_away_the_youngest_of_its_laxest_class() -> None:
    async def story() -> None:
        gate = Gate(limit=1, capacity=3)
        await gate.enter()
        older, younger, batch = (asyncio.create_task(gate.enter(klass)) for klass in (2, 2, 1))
        await asyncio.sleep(0)
        urgent = asyncio.create_task(gate.enter(0))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await younger
        assert (gate.waiting_by_class, gate.rejected) == ([1, 1, 1], 1)
        also = asyncio.create_task(gate.enter(1))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await older
        with pytest.raises(QueueFull):  # nobody waits who can wait longer than it
            await gate.enter(1)
        for task in (urgent, batch, also):
            gate.leave()
            await task
        assert (gate.admitted, gate.rejected, gate.waiting) == (4, 3, 0)

    run(story())


def test_kv_budget_admits_up_to_a_share_of_the_cache_and_one_at_least() -> None:
    async def story() -> None:
        gate = Gate(limit=100)
        gate.kv_budget = 0.5
        await gate.enter(0, 10_000)  # the engine has not said anything of its cache yet: no limit
        assert not gate.sees_cache
        gate.start(10_000)
        gate.read_cache(0.2, 1000.0)
        await gate.enter(0, 300)
        assert gate.cache_use() == pytest.approx(0.5)
        head = asyncio.create_task(gate.enter(0, 200))
        lax = asyncio.create_task(gate.enter(2, 1))  # would fit, and does not overtake
        await asyncio.sleep(0)
        assert (gate.inside, gate.waiting) == (2, 2)
        gate.read_cache(0.2, 1000.0, running=1)  # the second prompt is not on this reading
        assert gate.cache_use() == pytest.approx(0.5)
        gate.read_cache(0.5, 1000.0, running=2)  # on this one it is
        assert gate.cache_use() == pytest.approx(0.5)
        gate.start(300)
        gate.grow(50)
        gate.leave(350)
        await asyncio.gather(head, lax)
        assert gate.cache_use() == pytest.approx(0.401)
        gate.read_cache(0.9)  # a share and no size: it counts as it is
        alone = asyncio.create_task(gate.enter(0, 5))
        await asyncio.sleep(0)
        assert gate.waiting == 1
        for tokens, prompt in ((10_000, None), (200, 200), (1, 1)):
            gate.leave(tokens, prompt)
        await alone  # an empty engine takes any
        with pytest.raises(ValueError, match="kv_budget = 0.05: must be from 0.1 to 1"):
            gate.kv_budget = 0.05
        gate.kv_budget = 1.0
        assert gate.inside == 1

    run(story())


def test_a_request_cancelled_in_the_instant_of_its_admission_gives_its_place_back() -> None:
    async def story() -> None:
        gate = Gate(limit=1)
        await gate.enter()
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        gate.leave()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (gate.inside, gate.waiting) == (0, 0)

    run(story())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "leave", "cancel", "limit"]), st.integers(0, 5)), min_size=1, max_size=60
    )
)
def test_every_request_is_in_one_place(moves: list[tuple[str, int]]) -> None:
    async def story() -> None:
        gate = Gate(limit=2, capacity=4)
        tasks: list[asyncio.Task[None]] = []
        for move, number in moves:
            if move == "enter":
                tasks.append(asyncio.create_task(gate.enter(number % 3)))
            elif move == "leave" and gate.inside:
                gate.leave()
            elif move == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            elif move == "limit":
                gate.limit = number or None
            if number % 2:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert gate.entered == gate.inside + gate.waiting + gate.left + gate.rejected + gate.given_up
        assert gate.waiting <= gate.capacity
        if gate.waiting:
            assert gate.limit is not None and gate.inside >= gate.limit
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(story())


def test_a_task_that_swallows_its_first_cancellation_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from inferencegym_jax.live.server import cancellation

    monkeypatch.setattr(cancellation, "AGAIN_S", 0.01)
    swallowed = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            swallowed.append(True)
        await asyncio.sleep(3600)

    async def story() -> None:
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await cancellation.cancel_all([task])
        assert task.cancelled()

    run(story())
    assert swallowed == [True]
