"""How much longer iterations take under the scenario's own load than table and slowdown say, measured before anything
is foretold.

``second-instance, table, SpareTimes -> busiest minutes of days that are not sent, on both engines -> SpareTimes``;
``drift, table -> both kinds by turns, as no rival is sent them -> table``. The table is made of closed loops on one
engine, and what two cost each other of closed loops with half the largest batch; under the load they are full, prompts
come among tokens, the client reads them all on the same machine, and the host may have become faster or slower since.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.scenarios.described import Drift, SecondInstance
from inferencegym_jax.live.scenarios.drift import drift
from inferencegym_jax.live.scenarios.second_instance import Setting, second_instance
from inferencegym_jax.live.scenarios.unsent_days import TRAINING_SEED
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.engine_speed import Speed, longer_by, slowed, speed_of
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.runs import run_policy
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.models import ServeAction
from inferencegym_jax.policies.builtin import static
from inferencegym_jax.table.latency_table import LatencyTable

CALIBRATION_RUNS = 2
FILL_S = 10  # until as many requests run as the load makes run


def under_load(
    scenario: SecondInstance,
    table: LatencyTable,
    times: SpareTimes,
    endpoint: Endpoint,
    spare: SpareSettings,
    runs: int = CALIBRATION_RUNS,
    report: Callable[[str], None] = lambda _: None,
) -> SpareTimes:
    """The spare's times with the slowdown that the two engines show while both serve the busiest seconds of a day.

    Each run sends the busiest ``scenario.peak_s`` seconds of another day that no trial sends, after the spare's start
    and ``FILL_S``, to both engines without a limit but the largest batch size; all iterations of all runs are added up.

    Args:
        scenario: as it was written down.
        table: measured.
        times: of the spare, with the slowdown of closed loops.
        endpoint: the engine that always runs.
        spare: the other one.
        runs: how many; 0 changes nothing.
        report: told what was seen.

    Raises:
        EngineError: a server cannot be used.
    """
    if not runs:
        return times
    begin = math.ceil(times.start_s) + FILL_S
    seconds = begin + scenario.peak_s
    setting = second_instance(scenario, table, times, seconds, [])
    both = ServeAction(batch_size=max(scenario.batch_sizes), prefill_disagg=True)
    records = _sent(setting, both, endpoint, spare, runs)
    (longer,) = longer_by(records, table, times.slowdown, (begin, seconds))
    if longer is None:
        report("calibration: tokens do not tell how long iterations took; the slowdown stays as it is")
        return times
    report(f"calibration: at the peak of {runs} days iterations take {longer:.3f} times as long as foretold")
    return dataclasses.replace(times, slowdown=times.slowdown * longer, under_load=longer)


def at_speed(
    scenario: Drift,
    table: LatencyTable,
    endpoint: Endpoint,
    runs: int = CALIBRATION_RUNS,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[LatencyTable, Speed | None]:
    """The table of an engine as fast as it is now under both kinds of requests, and by what that is slower.

    Each run sends one turn of either kind, of traffic that no trial sends, without a limit but the largest batch size.

    Args:
        scenario: as it was written down.
        table: measured.
        endpoint: the engine.
        runs: how many; 0 changes nothing.
        report: told what was seen.

    Returns:
        The table as it was, and None, without runs or where tokens do not tell.

    Raises:
        EngineError: the server cannot be used.
        ValueError: see ``engine_speed.slowed``.
    """
    if not runs:
        return table, None
    setting = drift(scenario, table, 2 * scenario.phase_s)
    records = _sent(setting, ServeAction(batch_size=max(scenario.batch_sizes)), endpoint, None, runs)
    speed = speed_of(records, table)
    if speed is None:
        report("calibration: tokens do not tell how long iterations took; the table stays as it is")
        return table, None
    report(f"calibration: iterations, and what prompts add, take {speed.shown} times as long as in the table")
    return slowed(table, speed), speed


def _sent(
    setting: Setting, action: ServeAction, endpoint: Endpoint, spare: SpareSettings | None, runs: int
) -> list[list[Record]]:
    """What became of so many days that no trial sends, under one action."""
    sent = {TRAINING_SEED + day: setting.traffic(TRAINING_SEED + day) for day in range(runs)}
    with LiveEnv(endpoint, setting.problem.params, lambda day: sent[day], spare=spare) as env:
        return [run_policy(env, static(action), day, sent[day])[0] for day in sent]
