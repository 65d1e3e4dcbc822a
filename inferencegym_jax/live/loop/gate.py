"""The gate in front of a live engine: the admission line of an event loop.

One gate serves the live environment and the deployed proxy, so that what is tried is what runs. Single-threaded: it
belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from inferencegym_jax.live.loop.admission_line import AdmissionLine

Place: TypeAlias = "asyncio.Future[None]"


class QueueFull(Exception):
    """The queue holds as many as it may, none of them of a laxer class."""


class Gate(AdmissionLine[Place]):
    """Admission of tasks that wait for it."""

    def _let_in(self, item: Place) -> None:
        item.set_result(None)

    def _turn_away(self, item: Place) -> None:
        item.set_exception(QueueFull())

    def _is_alive(self, item: Place) -> bool:
        return not item.done()  # else cancelled

    async def enter(self, klass: int = 0, prompt: float = 0.0) -> None:
        """Wait for admission; first come, first served within a class. Call ``leave`` once for every return.

        Cancelling the task takes the request out of the queue.

        Args:
            klass: 0 interactive, 1 batch, 2 best effort.
            prompt: its tokens.

        Raises:
            QueueFull: as many wait as may, and this one can wait longest or came last of those.
        """
        place: Place = asyncio.get_running_loop().create_future()
        self.arrive(place, klass, prompt)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled() or not place.done():
                self.withdraw(place, klass)
            elif place.exception() is None:
                self.leave(prompt, prompt)  # admitted in the same instant: give the place to the next
            raise
