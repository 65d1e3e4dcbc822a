"""What is foretold of the requests that a scenario has sent, on an engine that is as fast as it was while it served
them, or slower than its table.

``table, what the stage kept, records -> share on time of each policy``, and of ``second-instance`` the instances paid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.live.kept import traffic_of
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.scenarios.described import Drift, SecondInstance, scenario_of
from inferencegym_jax.live.scenarios.drift import drift, switching
from inferencegym_jax.live.scenarios.judged import segments_of
from inferencegym_jax.live.scenarios.rivals import BEST, NEXT, OPEN, SWITCHING, rival_of
from inferencegym_jax.live.scenarios.second_instance import second_instance
from inferencegym_jax.live.trial.engine_speed import Speed, longer_by, slowed, speed_of
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.runs import TrialSettings, foretell
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.models import ServeAction
from inferencegym_jax.table.latency_table import LatencyTable

SLOWDOWNS = (1.0, 1.05, 1.1, 1.15, 1.2)
PARTS = 5  # of a run, whose speeds are told apart


def foretold_on(table: LatencyTable, how: dict[str, Any]) -> LatencyTable:
    """The table that a scenario's prediction had: the measured one, as fast as the engine was just before it.

    Args:
        table: measured.
        how: of what the stage kept.
    """
    seen = how.get("calibration")
    return table if seen is None else slowed(table, Speed(**seen))


def drift_at_speeds(
    table: LatencyTable, found: dict[str, Any], sent: dict[str, list[list[Record]]], max_num_seqs: int
) -> dict[str, dict[Speed, float]]:
    """Share on time foretold of drift's policies, as they were chosen, for the requests that were sent.

    Args:
        table: measured.
        found: what the stage ``drift`` kept.
        sent: by policy, the records of each of its runs.
        max_num_seqs: the engine's own limit.

    Returns:
        By policy a share for an engine of each of the ``SLOWDOWNS``, over what the prediction had, and last one for
        the engine's speed in the policy's own runs, where their tokens tell it.
    """
    scenario, how, choices = scenario_of("drift"), found["how"], found["choices"]
    assert isinstance(scenario, Drift)
    table = foretold_on(table, how)
    params = drift(scenario, table, how["seconds"]).problem.params
    objective = _objective(how)
    settings = TrialSettings(warmup_s=how["warmup_s"], max_num_seqs=max_num_seqs)
    kinds = choices[SWITCHING]
    policies: dict[str, Policy | ServeAction] = {
        BEST: _pair(choices[BEST]),
        NEXT: _pair(choices[NEXT]),
        SWITCHING: switching(_pair(kinds["long prompts"]), _pair(kinds["short prompts"]), how["switch_at_prompt"]),
        OPEN: ServeAction(batch_size=choices[OPEN]),
    }
    shares: dict[str, dict[Speed, float]] = {}
    for name, repeats in sent.items():
        traffics = [traffic_of(records, how["seconds"]) for records in repeats]
        then = speed_of(repeats, table)
        shares[name] = {}
        for speed in [*(Speed(factor, factor) for factor in SLOWDOWNS), *([] if then is None else [then])]:
            slower = slowed(table, speed)
            runs = [foretell(slower, traffic, policies[name], params, settings).records for traffic in traffics]
            counted = [record for run in runs for record in run if record.arrival_s >= how["warmup_s"]]
            shares[name][speed] = round(sum(map(objective.met, counted)) / len(counted), 5)
    return shares


@dataclass(frozen=True)
class AtSpeed:
    """A policy's runs of ``second-instance``, foretold again.

    Attributes:
        speeds: of the engines in each run, over what the prediction had; None where its tokens do not tell it.
        parts: by what all iterations took longer than foretold in each of ``PARTS`` equal parts of it.
        on_time_share: foretold at these speeds, over all runs.
        instances: the same, mean number paid for.
    """

    speeds: list[Speed | None]
    parts: list[list[float | None]]
    on_time_share: float
    instances: float


def second_at_speed(
    table: LatencyTable,
    found: dict[str, Any],
    sent: dict[str, list[list[Record]]],
    max_num_seqs: int,
    files: Mapping[str, str] | None = None,
) -> dict[str, AtSpeed]:
    """What is foretold of the policies of ``second-instance``, as they were chosen, for the requests that were sent, at
    the speed of the engines in each run.

    Args:
        table: measured.
        found: what the stage ``second-instance`` kept.
        sent: by policy, the records of each of its runs.
        max_num_seqs: the engine's own limit.
        files: of rivals that are policy files, by their names in ``sent``.
    """
    scenario, how = scenario_of("second-instance"), found["how"]
    assert isinstance(scenario, SecondInstance)
    spare, seconds, warmup_s = SpareTimes(**how["spare"]), how["seconds"], how["warmup_s"]
    setting = second_instance(scenario, table, spare, seconds, [])
    settings = TrialSettings(warmup_s=warmup_s, max_num_seqs=max_num_seqs, spare=spare)
    problem, files = setting.problem, files or {}
    edges = np.linspace(0.0, seconds, PARTS + 1).tolist()
    result: dict[str, AtSpeed] = {}
    for name, repeats in sent.items():
        policy = rival_of(files.get(name, name), found["choices"], problem)
        speeds = [speed_of([records], table, spare.slowdown) for records in repeats]
        runs = [
            foretell(
                table if speed is None else slowed(table, speed),
                traffic_of(records, seconds),
                policy,
                problem.params,
                settings,
            )
            for speed, records in zip(speeds, repeats, strict=True)
        ]
        totals = segments_of(runs, problem.spec, _objective(how), warmup_s, seconds).total()
        parts = [longer_by([records], table, spare.slowdown, edges) for records in repeats]
        result[name] = AtSpeed(speeds, parts, float(totals.on_time_share[0]), float(totals.gpus[0]))
    return result


def _objective(how: dict[str, Any]) -> Objective:
    return Objective((how["ttft_objective_ms"],) * 3, how["tpot_objective_ms"])


def _pair(pair: Sequence[float]) -> ServeAction:
    return ServeAction(batch_size=int(pair[0]), kv_budget=float(pair[1]))
