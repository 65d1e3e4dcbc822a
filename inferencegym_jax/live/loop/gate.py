"""The bounded priority queue in front of an engine: at most ``limit`` requests inside, the most urgent class first.

One gate serves the live environment and the deployed proxy, so that what is tried is what runs. Single-threaded: it
belongs to one event loop. Conservation: entered = inside + waiting + left + rejected + given up, to the request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from inferencegym_jax.models import QUEUE_CAPACITY

CLASSES = ("interactive", "batch", "best_effort")


class QueueFull(Exception):
    """The queue holds as many as it may."""


class Gate:
    """Admission up to a limit that may change at any time; None means no limit (plain pass-through)."""

    def __init__(self, limit: int | None = None, capacity: int = QUEUE_CAPACITY):
        if capacity < 0:
            raise ValueError(f"capacity = {capacity}: must be at least 0")
        self._limit = limit
        self.capacity = capacity
        self.inside = 0
        self.entered = self.left = self.rejected = self.given_up = self.admitted = 0
        self._queues: tuple[deque[asyncio.Future[None]], ...] = tuple(deque() for _ in CLASSES)

    @property
    def limit(self) -> int | None:
        """Most requests inside at once."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit = {limit}: must be at least 1, or None for no limit")
        self._limit = limit
        self._admit()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(map(len, self._queues))

    @property
    def waiting_by_class(self) -> list[int]:
        """Requests in the queue: interactive, batch, best effort."""
        return [len(queue) for queue in self._queues]

    async def enter(self, klass: int = 0) -> None:
        """Wait for admission; first come, first served within a class. Call ``leave`` once for every return.

        Cancelling the task takes the request out of the queue.

        Raises:
            QueueFull: ``capacity`` requests wait already.
        """
        self.entered += 1
        if self.waiting == 0 and self._has_room():
            self._take()
            return
        if self.waiting >= self.capacity:
            self.rejected += 1
            raise QueueFull
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues[klass].append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # admitted in the same instant: give the place to the next
            else:
                with contextlib.suppress(ValueError):  # an admission in between has dropped it already
                    self._queues[klass].remove(place)
                self.given_up += 1
            raise

    def leave(self) -> None:
        """A request that was admitted is done."""
        self.inside -= 1
        self.left += 1
        self._admit()

    def _has_room(self) -> bool:
        return self._limit is None or self.inside < self._limit

    def _take(self) -> None:
        self.inside += 1
        self.admitted += 1

    def _admit(self) -> None:
        for queue in self._queues:
            while queue and self._has_room():
                place = queue.popleft()
                if not place.done():
                    self._take()
                    place.set_result(None)
