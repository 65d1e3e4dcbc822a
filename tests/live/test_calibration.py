"""How fast engines are under a scenario's own load, of engines whose times are known."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.scenarios import calibration
from inferencegym_jax.live.scenarios.calibration import CALIBRATION_RUNS, FILL_S, at_speed, under_load
from inferencegym_jax.live.scenarios.described import Drift, SecondInstance, scenario_of
from inferencegym_jax.live.scenarios.unsent_days import TRAINING_SEED
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.profile_engine import engine_times
from inferencegym_jax.table.latency_table import LatencyTable
from tests.live.conftest import free_port
from tests.live.test_engine_speed import served
from tests.live.test_trial import SLOW, ideal

ROOT = Path(__file__).resolve().parents[2]
TIMES = SpareTimes(0.5, slowdown=1.1)
SPARE = SpareSettings("http://h:2", start_cmd="x")


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return ideal(SLOW, 32)


@pytest.fixture(scope="module")
def scenario() -> SecondInstance:
    found = scenario_of("second-instance")
    assert isinstance(found, SecondInstance)
    return found


@pytest.mark.parametrize("longer", (0.9, 1.25))
def test_the_slowdown_is_what_all_iterations_took(
    monkeypatch: pytest.MonkeyPatch, table: LatencyTable, scenario: SecondInstance, longer: float
) -> None:
    asked: list[tuple[Any, ...]] = []

    def run(env: Any, policy: Any, day: int, traffic: Any) -> tuple[Any, list[Any]]:
        asked.append((day, traffic.seconds))
        times = dataclasses.replace(SLOW, a=SLOW.a * longer, b=SLOW.b * longer, c=SLOW.c * longer)
        return served(times, 2.0, seed=day % 7), []

    monkeypatch.setattr(calibration, "run_policy", run)
    monkeypatch.setattr(calibration, "LiveEnv", lambda *_, **__: contextlib.nullcontext())
    said: list[str] = []
    found = under_load(scenario, table, TIMES, Endpoint("http://h:1", "m"), SPARE, report=said.append)
    assert found.under_load == pytest.approx(longer, rel=0.02)  # one engine alone: the slowdown is not among it
    assert found.slowdown == pytest.approx(1.1 * longer, rel=0.02)
    assert dataclasses.replace(found, slowdown=1.1, under_load=None) == TIMES
    assert asked == [(TRAINING_SEED + day, 1 + FILL_S + scenario.peak_s) for day in range(CALIBRATION_RUNS)]
    assert f"{found.under_load:.3f} times" in said[-1]


def test_tokens_that_tell_nothing_leave_it_as_it_is(
    monkeypatch: pytest.MonkeyPatch, table: LatencyTable, scenario: SecondInstance
) -> None:
    monkeypatch.setattr(calibration, "run_policy", lambda *_: ([], []))
    monkeypatch.setattr(calibration, "LiveEnv", lambda *_, **__: contextlib.nullcontext())
    said: list[str] = []
    endpoint = Endpoint("http://h:1", "m")
    assert under_load(scenario, table, TIMES, endpoint, SPARE, report=said.append) == TIMES
    assert "stays as it is" in said[-1]
    assert under_load(scenario, table, TIMES, endpoint, SPARE, runs=0) is TIMES


@pytest.mark.parametrize("longer", (0.9, 1.25))
def test_drift_is_foretold_on_an_engine_as_fast_as_it_is_now(
    monkeypatch: pytest.MonkeyPatch, table: LatencyTable, longer: float
) -> None:
    asked: list[tuple[Any, ...]] = []

    def run(env: Any, policy: Any, day: int, traffic: Any) -> tuple[Any, list[Any]]:
        asked.append((day, traffic.seconds))
        times = dataclasses.replace(SLOW, a=SLOW.a * longer, b=SLOW.b * longer, c=SLOW.c * 1.1)
        return served(times, 2.0, seed=day % 7), []

    monkeypatch.setattr(calibration, "run_policy", run)
    monkeypatch.setattr(calibration, "LiveEnv", lambda *_, **__: contextlib.nullcontext())
    scenario = scenario_of("drift")
    assert isinstance(scenario, Drift)
    said: list[str] = []
    found, speed = at_speed(scenario, table, Endpoint("http://h:1", "m"), report=said.append)
    assert speed is not None
    assert speed.decode == pytest.approx(longer, rel=0.02) and speed.prompt == pytest.approx(1.1, rel=0.03)
    before, now = engine_times(table), engine_times(found)
    assert now.decode_ms(8, 100.0) == pytest.approx(speed.decode * before.decode_ms(8, 100.0), rel=0.01)
    assert now.prompt_ms(128.0) == pytest.approx(speed.prompt * before.prompt_ms(128.0), rel=0.01)
    assert asked == [(TRAINING_SEED + day, 2 * scenario.phase_s) for day in range(CALIBRATION_RUNS)]
    assert speed.shown in said[-1]
    assert at_speed(scenario, table, Endpoint("http://h:1", "m"), runs=0) == (table, None)
    monkeypatch.setattr(calibration, "run_policy", lambda *_: ([], []))
    assert at_speed(scenario, table, Endpoint("http://h:1", "m"), report=said.append) == (table, None)
    assert "stays as it is" in said[-1]


@pytest.mark.slow  # real seconds
def test_engines_that_cost_each_other_a_third(
    launch: Callable[..., Any], table: LatencyTable, scenario: SecondInstance, tmp_path: Path
) -> None:
    flags = [str(x) for name in ("a", "b", "c") for x in (f"--{name}", getattr(SLOW, name))]
    flags += ["--host", str(tmp_path / "host"), "--slowdown", "1.33"]
    engine, port = launch(*flags, "--place", 0), free_port()
    start = f"cd {ROOT} && exec {sys.executable} -m tests.live.fake_engine --port {port} --place 1 {' '.join(flags)}"
    spare = SpareSettings(f"http://127.0.0.1:{port}", start_cmd=start, health_every_s=0.2)
    times = SpareTimes(3.0, lease_s=1.0)
    brief = dataclasses.replace(scenario, peak_s=15)
    found = under_load(brief, table, times, Endpoint(engine.url, "fake"), spare, runs=1)
    assert found.slowdown == pytest.approx(1.33, rel=0.08)
