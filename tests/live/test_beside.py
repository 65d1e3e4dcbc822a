"""What two engines of one host cost each other: measured, kept, and foretold."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inferencegym_jax.live.measure import beside
from inferencegym_jax.live.measure.beside import (
    MOST_ROUNDS,
    PRECISE,
    Beside,
    Load,
    check_beside,
    load_of,
    measure_beside,
)
from inferencegym_jax.live.server.probe import EngineError
from inferencegym_jax.live.server.streaming import Endpoint, open_client
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.prediction import replayed
from inferencegym_jax.live.trial.profile_engine import saturation
from inferencegym_jax.live.trial.traffic import poisson_traffic
from inferencegym_jax.models import ServeAction
from inferencegym_jax.physics.observation import initial_observation
from inferencegym_jax.table.latency_table import LatencyTable
from tests.live.fake_engine import Times
from tests.live.test_trial import ideal

SLOWDOWN = 1.6
TIMES, OUTPUT, PROMPT = Times(a=10.0, b=1.0, c=0.1), 16, 64
LOAD = Load(concurrency=4, prompt_tokens=PROMPT, output_tokens=8, slice_s=0.5)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return ideal(TIMES, OUTPUT)


def measured(first: str, second: str) -> Beside:
    async def run() -> Beside:
        endpoints = [Endpoint(url, "fake") for url in (first, second)]
        async with open_client(endpoints[0]) as one, open_client(endpoints[1]) as other:
            return await measure_beside((one, endpoints[0]), (other, endpoints[1]), LOAD)

    return asyncio.run(run())


@pytest.mark.slow  # real seconds
def test_what_engines_of_one_host_cost_each_other_is_measured(launch: Callable[..., Any], tmp_path: Path) -> None:
    times = [str(x) for name in ("a", "b", "c") for x in (f"--{name}", getattr(TIMES, name))]

    def pair(slowdown: float) -> list[str]:
        host = ["--host", tmp_path / f"host-{slowdown}", "--slowdown", slowdown]
        return [launch(*times, *host, "--place", place).url for place in (0, 1)]

    shared, apart = measured(*pair(SLOWDOWN)), measured(*pair(1.0))
    assert shared.slowdown == pytest.approx(SLOWDOWN, rel=0.12) and apart.slowdown == pytest.approx(1.0, rel=0.12)
    rounds, rest = divmod(len(shared.alone_ms), 4)
    assert rest == 0 and len(shared.together_ms) == len(shared.alone_ms) and 0.0 < shared.half_width < 0.5
    assert rounds == MOST_ROUNDS or shared.half_width <= PRECISE
    alone = TIMES.iteration_ms(LOAD.concurrency, PROMPT, LOAD.output_tokens)
    assert np.mean(shared.alone_ms) == pytest.approx(alone, rel=0.25)


@pytest.mark.parametrize(("spread", "rounds"), [(0.01, 1), (0.05, 2), (0.5, MOST_ROUNDS)])
def test_rounds_go_on_until_it_is_known(monkeypatch: pytest.MonkeyPatch, spread: float, rounds: int) -> None:
    turns: list[str] = []

    def piece(mean: float) -> Any:
        return SimpleNamespace(itl_ms=mean, tpot_ms=[mean * (1.0 - spread), mean, mean * (1.0 + spread)])

    async def one(engine: Any, *_: Any) -> Any:
        turns.append(engine)
        return piece(10.0)

    async def both(engines: Any, *_: Any) -> Any:
        turns.append("both")
        return {name: piece(11.0) for name in engines}

    monkeypatch.setattr(beside, "_slice", one)
    monkeypatch.setattr(beside, "_both", both)
    found = asyncio.run(measure_beside("a", "b", LOAD))  # type: ignore[arg-type]
    assert turns == ["a", "both", "b", "b", "both", "a"] * rounds
    assert found.slowdown == pytest.approx(1.1) and len(found.alone_ms) == len(found.together_ms) == 4 * rounds
    assert (found.half_width <= PRECISE) == (rounds < MOST_ROUNDS)


def test_one_engine_that_fails_ends_the_measurement(launch: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match="requests in a row failed"):
        measured(launch("--a", 2).url, launch("--fault", "500").url)


def served(table: LatencyTable, share: float, times: SpareTimes) -> tuple[float, float]:
    """Mean ITL and mean TTFT, ms, with both engines from the start at a share of what one can finish."""
    traffic = poisson_traffic(share * saturation(table, PROMPT, OUTPUT), 60, PROMPT, OUTPUT, seed=3)
    both = ServeAction(batch_size=64, prefill_disagg=True)
    objective = (math.inf, math.inf, math.inf)
    found = replayed(table, traffic, lambda _: both, objective, initial_observation(), spare=times)
    kept = [record for record in found.records if record.arrival_s > 5.0]
    columns = [[getattr(record, name) for record in kept] for name in ("tpot_ms", "ttft_ms")]
    return float(np.mean(columns[0])), float(np.mean(columns[1]))


def test_iterations_are_foretold_longer_where_both_engines_work(table: LatencyTable) -> None:
    alone, beside = (served(table, 0.01, SpareTimes(0.0, slowdown=slowdown)) for slowdown in (1.0, SLOWDOWN))
    assert beside == pytest.approx(alone, rel=0.05)  # one request at a time, or nearly: one engine works
    free, shared = (served(table, 1.4, SpareTimes(0.0, slowdown=slowdown)) for slowdown in (1.0, 1.2))
    slower = ideal(Times(a=12.0, b=1.2, c=0.12), OUTPUT)
    every = saturation(slower, PROMPT, OUTPUT) / saturation(table, PROMPT, OUTPUT)
    assert every == pytest.approx(1 / 1.2, rel=0.01)
    always = served(slower, 1.4 / every, SpareTimes(0.0))  # as if all iterations were longer: the most that it can be
    for least, found, most in zip(free, shared, always, strict=True):
        assert least * 1.1 < found <= most * 1.03


def test_the_load_is_of_what_the_table_knows(table: LatencyTable) -> None:
    load = load_of(table, 3.0)
    assert load.concurrency == max(table.axes["batch_size"]) // 2 and load.output_tokens == OUTPUT
    assert load.prompt_tokens == min(table.axes["prompt_len_bucket"]) and load.slice_s == 3.0
    with pytest.raises(ValueError, match="slowdown = 0"):
        SpareTimes(1.0, slowdown=0.0)
    for seconds in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="beside-seconds"):
            check_beside(seconds)
    with pytest.raises(ValueError, match="slice_s = nan"):
        Load(4, 64, 8, math.nan)
