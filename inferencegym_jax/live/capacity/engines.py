"""Which engine a request goes to: the upstream, or the spare while it serves; the one with fewer requests.

A policy's batch_size is a limit on each engine, as in the simulator, so the gate lets in as many as engines serve. What
still runs on a spare that takes nothing new is beside that limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from inferencegym_jax.live.loop.admission_line import AdmissionLine

Handle = TypeVar("Handle")


class Leased(Protocol):
    """A spare, real (``spare.Spare``) or foretold."""

    on_change: Callable[[], None]

    @property
    def serves(self) -> bool:
        """Whether new requests may be sent to it."""
        ...

    @property
    def is_up(self) -> bool:
        """Whether it runs requests."""
        ...

    @property
    def billed_s(self) -> float:
        """Seconds that are paid for so far."""
        ...

    def ask(self, wanted: bool) -> None:
        """Ask for it, or give it back."""
        ...

    def enter(self) -> None:
        """A request is about to be sent to it."""
        ...

    def leave(self) -> None:
        """That request has ended."""
        ...

    def suspect(self) -> None:
        """It refused a connection."""
        ...


@dataclass(eq=False)
class Place(Generic[Handle]):
    """One engine: how it is reached, the requests that were sent to it, and its spare where it is one."""

    handle: Handle
    spare: Leased | None = None
    inside: int = 0

    @property
    def serves(self) -> bool:
        """Whether new requests may be sent there."""
        return self.spare is None or self.spare.serves

    @property
    def is_up(self) -> bool:
        """Whether it runs requests."""
        return self.spare is None or self.spare.is_up


class Engines(Generic[Handle]):
    """The upstream, and a spare where there is one.

    Args:
        gate: whose limit follows the engines that serve.
        upstream: how it is reached.
        spare: the spare, and how it is reached.
    """

    def __init__(
        self,
        gate: AdmissionLine[Any],
        upstream: Handle,
        spare: Leased | None = None,
        second: Handle | None = None,
    ):
        self.gate = gate
        self.places: list[Place[Handle]] = [Place(upstream)]
        if spare is not None and second is not None:
            self.places.append(Place(second, spare))
        if spare is not None:
            spare.on_change = self.refresh
        self.spare = spare
        self.batch_size: int | None = gate.limit
        self.passed_on = 0  # requests that the first engine refused a connection

    @property
    def up(self) -> list[Place[Handle]]:
        """Engines that run requests, the upstream first."""
        return [place for place in self.places if place.is_up]

    @property
    def billed_s(self) -> float:
        """Seconds for which the spare is paid so far."""
        return self.spare.billed_s if self.spare is not None else 0.0

    def set_batch_size(self, batch_size: int | None) -> None:
        """Most requests on each engine from now on; None for no limit."""
        self.batch_size = batch_size
        self.refresh()

    def refresh(self) -> None:
        """Bring the gate's limit up to date with the engines that serve."""
        if self.batch_size is None:
            limit = None
        else:
            limit = self.batch_size * sum(place.serves for place in self.places)
            limit += sum(place.inside for place in self.places if not place.serves)
        if limit != self.gate.limit:
            self.gate.limit = limit

    def choose(self, other_than: Place[Handle] | None = None) -> Place[Handle] | None:
        """The engine that serves with the fewest requests, the upstream of equals; None where there is no other."""
        serving = [place for place in self.places if place.serves and place is not other_than]
        return min(serving, key=lambda place: place.inside, default=None)

    def enter(self, other_than: Place[Handle] | None = None) -> Place[Handle]:
        """Choose one for a request, which ``leave`` ends; the upstream where no other serves."""
        place = self.choose(other_than) or self.places[0]
        place.inside += 1
        if place.spare is not None:
            place.spare.enter()
        return place

    def leave(self, place: Place[Handle]) -> None:
        """The request has ended there."""
        place.inside -= 1
        if place.spare is not None:
            place.spare.leave()
        self.refresh()

    def refused(self, place: Place[Handle]) -> None:
        """It refused a connection, and the request goes to another one."""
        self.passed_on += 1
        if place.spare is not None:
            place.spare.suspect()
        self.refresh()
