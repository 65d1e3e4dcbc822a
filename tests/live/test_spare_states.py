"""The spare's states under random questions, failures, hangs and deaths: what must always hold, without a socket."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import httpx
import pytest

from inferencegym_jax.live.capacity.engines import Engines
from inferencegym_jax.live.capacity.lifecycle import LifecycleError
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.capacity.spare import Spare
from inferencegym_jax.live.loop.gate import Gate

TICK_S = 0.004


class Whimsical:
    """A lifecycle that fails and hangs by chance until it is told to be good."""

    def __init__(self, rng: random.Random):
        self.rng, self.good, self.up, self.dead = rng, False, False, False

    def fate(self) -> str:
        return "well" if self.good else self.rng.choice(["well", "well", "fails", "hangs", "slow"])

    async def start(self) -> None:
        fate = self.fate()
        if fate == "fails":
            raise LifecycleError("by chance")
        if fate == "hangs":
            await asyncio.sleep(1000)
        await asyncio.sleep(TICK_S * (5 if fate == "slow" else 1))
        self.up, self.dead = True, False

    def ended(self) -> str | None:
        return "died by chance" if self.dead else None

    async def stop(self) -> None:
        fate = self.fate()
        if fate == "hangs":
            await asyncio.sleep(1000)
        await asyncio.sleep(TICK_S)
        if fate == "fails":
            raise LifecycleError("by chance")
        self.up, self.dead = False, False

    async def answers(self) -> bool:
        await asyncio.sleep(0)
        return self.up and not self.dead


@pytest.mark.parametrize("seed", range(8))
def test_it_serves_only_what_is_up_and_ends_off_and_empty(seed: int) -> None:
    rng = random.Random(seed)
    settings = SpareSettings(
        "http://h:1",
        start_cmd="x",
        lease_s=rng.choice([0.0, 4 * TICK_S]),
        start_timeout_s=4 * TICK_S,
        stop_timeout_s=4 * TICK_S,
        health_every_s=TICK_S,
        backoff_s=TICK_S,
        most_backoff_s=4 * TICK_S,
    )

    async def run() -> None:
        lifecycle = Whimsical(rng)
        async with httpx.AsyncClient() as client:
            spare = Spare(settings, client, lifecycle)
            gate = Gate()
            engines = Engines(gate, "upstream", spare, "spare")
            engines.set_batch_size(4)
            seen: list[str] = []
            refresh = spare.on_change

            def changed() -> None:
                refresh()
                seen.append(spare.state)
                assert not spare.serves or lifecycle.up
                assert gate.limit == 4 * (1 + spare.serves) + (0 if spare.serves else spare.inside)

            spare.on_change = changed
            await spare.open()
            inside = []
            billed, begun = 0.0, time.monotonic()
            for _ in range(60):
                match rng.choice(["ask", "give back", "enter", "leave", "die", "refuse"]):
                    case "ask":
                        spare.ask(True)
                    case "give back":
                        spare.ask(False)
                        assert not spare.serves
                    case "enter":
                        place = engines.enter()
                        assert place.serves and (place.handle == "upstream" or spare.serves)
                        inside.append(place)
                    case "leave" if inside:
                        engines.leave(inside.pop(rng.randrange(len(inside))))
                    case "die" if lifecycle.up and not lifecycle.good:
                        lifecycle.dead = True
                    case "refuse" if spare.serves and lifecycle.dead:
                        engines.refused(engines.places[1])
                        assert not spare.serves
                    case _:
                        pass
                await asyncio.sleep(TICK_S * rng.random())
                assert spare.billed_s >= billed and spare.inside == engines.places[1].inside
                billed = spare.billed_s
            assert billed <= time.monotonic() - begun
            for place in inside:
                engines.leave(place)
            lifecycle.good = True
            spare.ask(False)
            deadline = time.monotonic() + 10
            while spare.state != "off":
                assert time.monotonic() < deadline, spare.status()
                await asyncio.sleep(TICK_S)
            assert not lifecycle.up and spare.inside == 0 and gate.limit == 4
            paid = spare.billed_s
            await asyncio.sleep(2 * TICK_S)
            assert spare.billed_s == paid
            follows = {
                "off": {"asked"},
                "asked": {"starting", "off", "stopping", "asked"},
                "starting": {"serving", "draining", "stopping"},
                "serving": {"draining", "stopping", "serving"},
                "draining": {"serving", "stopping", "draining", "asked"},
                "stopping": {"asked", "off", "stopping"},
            }
            for before, after in itertools.pairwise(["off", *seen]):
                assert after in follows[before] | {before}, (before, after)
            await spare.close()

    asyncio.run(run())


def test_closing_gives_back_what_runs_whatever_it_is_doing() -> None:
    async def run(delay: float) -> None:
        lifecycle = Whimsical(random.Random(0))
        lifecycle.good = True
        async with httpx.AsyncClient() as client:
            spare = Spare(SpareSettings("http://h:1", start_cmd="x", health_every_s=TICK_S), client, lifecycle)
            await spare.open()
            spare.ask(True)
            spare.enter()  # a request that is still there
            await asyncio.sleep(delay)
            await spare.close()
            assert spare.state == "off" and not lifecycle.up

    for delay in (0.0, TICK_S / 2, 2 * TICK_S, 10 * TICK_S):
        asyncio.run(run(delay))
