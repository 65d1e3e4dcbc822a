"""A live scenario from its name to its figures: the same traffic for every rival on the engine, beside what the table
foretold for each.

``ScenarioRequest -> Setting, Rivals -> run_trial -> figures, timeline``. Traffic, objectives and rivals are those that
were written down (``described``); lengths and repeats may be others, and are said.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.live.capacity.settings import SpareSettings, check_apart
from inferencegym_jax.live.measure.beside import BESIDE_S, check_beside, load_of
from inferencegym_jax.live.scenarios.calibration import CALIBRATION_RUNS, at_speed, under_load
from inferencegym_jax.live.scenarios.described import Drift, LiveScenario, SecondInstance, scenario_of
from inferencegym_jax.live.scenarios.drift import LONG, SHORT, drift
from inferencegym_jax.live.scenarios.judged import Segments, latencies, segments_of, static_reference, summaries
from inferencegym_jax.live.scenarios.rivals import Rivals, drift_rivals, second_instance_rivals
from inferencegym_jax.live.scenarios.second_instance import Setting, second_instance
from inferencegym_jax.live.scenarios.unsent_days import Foretold
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import SpareTimes, measure_spare
from inferencegym_jax.live.trial.outcome import Objective, ranking
from inferencegym_jax.live.trial.runs import Run, Trial, TrialSettings, run_trial
from inferencegym_jax.table.latency_table import load_table

DRAIN_TTFT = 2.0  # TTFT objectives for which requests in flight are waited for at a run's end
LEAST_DRAIN_S = 5.0


@dataclass(frozen=True)
class ScenarioRequest:
    """What a user asks of a live scenario; None stands for what was written down.

    Attributes:
        name: of the scenario.
        endpoint: the engine.
        table: that ``measure`` made of it.
        spare: how the second instance is started and stopped; "second-instance" needs one.
        policies: the rivals.
        seconds: length of a run.
        repeats: runs of each.
        warmup_s: of each run, not counted.
        max_num_seqs: the engine's own limit.
        seed: of the first repeat's traffic.
        step_seconds: 1; shorter in tests only.
        pause_s: between runs.
        beside_s: of each slice in which what two instances cost each other is measured; 0: they share nothing.
        calibration_runs: before anything is foretold, so many peaks of days that are not sent go to both engines, or of
            drift so many turns of both kinds to the one; 0: none.
    """

    name: str
    endpoint: Endpoint
    table: Path
    spare: SpareSettings | None = None
    policies: tuple[str, ...] | None = None
    seconds: int | None = None
    repeats: int | None = None
    warmup_s: float | None = None
    max_num_seqs: int = 256
    seed: int = 0
    step_seconds: float = 1.0
    pause_s: float = 1.0
    beside_s: float = BESIDE_S
    calibration_runs: int = CALIBRATION_RUNS

    def __post_init__(self) -> None:
        scenario = self.scenario
        if isinstance(scenario, SecondInstance) and self.spare is None:
            raise ValueError(f"spare = None: scenario {self.name!r} needs a second instance; name one with --spare")
        if isinstance(scenario, Drift) and self.spare is not None:
            raise ValueError(f"spare = {self.spare.url!r}: scenario {self.name!r} has one instance")
        if self.spare is not None:
            check_apart(self.endpoint.base_url, self.spare.url)
        check_beside(self.beside_s)
        if self.calibration_runs < 0:
            raise ValueError(f"calibration-runs = {self.calibration_runs}: must be at least 0 (0: none)")
        if self.run_seconds <= self.warmup:
            raise ValueError(f"seconds = {self.run_seconds}: must be more than the warm-up of {self.warmup:g}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"policies = {','.join(self.names)}: a name is there twice")
        if scenario.reference not in self.names:
            raise ValueError(f"policies = {','.join(self.names)}: must hold {scenario.reference!r}, the reference")

    @property
    def scenario(self) -> LiveScenario:
        """As it was written down."""
        return scenario_of(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The rivals."""
        return self.scenario.policies if self.policies is None else self.policies

    @property
    def run_seconds(self) -> int:
        """Length of a run."""
        return self.scenario.seconds if self.seconds is None else self.seconds

    @property
    def warmup(self) -> float:
        """Seconds of a run that are not counted."""
        return self.scenario.warmup_s if self.warmup_s is None else self.warmup_s

    def settings(self, spare: SpareTimes | None) -> TrialSettings:
        """Of the trial."""
        return TrialSettings(
            repeats=self.scenario.repeats if self.repeats is None else self.repeats,
            warmup_s=self.warmup,
            seed=self.seed,
            step_seconds=self.step_seconds,
            max_num_seqs=self.max_num_seqs,
            pause_s=self.pause_s,
            spare=spare,
        )


def run_scenario(
    request: ScenarioRequest,
    report: Callable[[str], None] = lambda _: None,
    keep: Callable[[dict[str, Any], Trial], None] = lambda *_: None,
) -> dict[str, Any]:
    """Run a live scenario.

    Args:
        request: what was asked for.
        report: told what runs.
        keep: called after every run with the figures so far, once the reference has run, and the runs: a trial that
            is cut still says what it found.

    Returns:
        {"scenario", "measured", "predicted" (policy -> figures, see ``judged.summaries``), "gap" (policy -> foretold
        less measured share on time), "ranking", "latencies", "order", "timeline", "choices", "how"}, JSON-ready.

    Raises:
        ValueError, TableError, FileNotFoundError: naming what cannot be used.
        EngineError: a server cannot be used, or the spare does not start.
    """
    times, alone = None, []
    table, scenario = load_table(request.table), request.scenario
    if request.spare is not None:
        report("starting and stopping the second instance once, for its times and for what the two cost each other")
        load = load_of(table, request.beside_s) if request.beside_s else None
        times = asyncio.run(measure_spare(request.spare, request.endpoint, load))
        assert isinstance(scenario, SecondInstance)
        times = under_load(scenario, table, times, request.endpoint, request.spare, request.calibration_runs, report)
    settings, seconds = request.settings(times), request.run_seconds
    report("fitting the scenario to the measured engine")
    if isinstance(scenario, SecondInstance):
        assert times is not None
        seeds = [settings.seed + repeat for repeat in range(settings.repeats)]
        setting = second_instance(scenario, table, times, seconds, seeds)
    else:
        report("sending both kinds of requests, for how fast the engine is")
        table, speed = at_speed(scenario, table, request.endpoint, request.calibration_runs, report)
        setting = drift(scenario, table, seconds)
        setting.how["calibration"] = None if speed is None else dataclasses.asdict(speed)
        alone = [drift(scenario, table, seconds, kind) for kind in (LONG, SHORT)]
    drain_s = max(DRAIN_TTFT * setting.objective.ttft_ms / 1000.0, LEAST_DRAIN_S)
    settings = dataclasses.replace(settings, drain_s=drain_s)
    if isinstance(scenario, SecondInstance):
        rivals = second_instance_rivals(scenario, setting, settings, seconds, request.names, report)
    else:
        limit = request.max_num_seqs
        rivals = drift_rivals(scenario, setting, alone, settings, seconds, limit, request.names, report)
    problem = dataclasses.replace(setting.problem, normalisers=_normalisers(setting, rivals, settings, seconds))

    def found(trial: Trial) -> dict[str, Any]:
        repeats = len(trial.measured[scenario.reference])
        fixed = [name for name in rivals.fixed if name in trial.measured]
        figures = judge(
            trial, setting, fixed, dataclasses.replace(settings, repeats=repeats), seconds, scenario.reference
        )
        short_of = (scenario.seconds, scenario.repeats) != (seconds, repeats)
        how = {
            **setting.how,
            "seconds": seconds,
            "repeats": repeats,
            "warmup_s": settings.warmup_s,
            "written_down": {"seconds": scenario.seconds, "repeats": scenario.repeats} if short_of else None,
            "not_run": [name for name in request.names if name not in trial.measured],
            "reference": scenario.reference,
            "fixed": fixed,
        }
        return {"scenario": request.name, **figures, "choices": rivals.choices, "how": how}

    def after(trial: Trial) -> None:
        so_far = trial.finished()
        if scenario.reference in so_far.measured:
            keep(found(so_far), so_far)

    trial = run_trial(
        request.endpoint, rivals.policies, problem, setting.traffic, settings, report, request.spare, after
    )
    return found(trial)


def _normalisers(setting: Setting, rivals: Rivals, settings: TrialSettings, seconds: int) -> dict[str, float]:
    """What the live log's grader divides by: the best fixed policy, foretold."""
    foretold = Foretold(setting, settings, seconds)
    totals = {name: foretold.totals(rivals.policies[name]) for name in rivals.fixed}
    return setting.problem.normalisers | static_reference(setting.problem.spec, totals)


def judge(
    trial: Trial, setting: Setting, fixed: Sequence[str], settings: TrialSettings, seconds: int, reference: str
) -> dict[str, Any]:
    """The figures of a trial, measured and foretold; JSON-ready."""
    objective = Objective((setting.objective.ttft_ms,) * 3, setting.objective.tpot_ms)
    spec = setting.problem.spec
    sides = {"measured": (trial.measured, trial.logs), "predicted": (trial.predicted, trial.predicted_logs)}
    figures: dict[str, Any] = {"ranking": {}, "latencies": {}}
    for side, (records, logs) in sides.items():
        runs = {name: [Run(one, log) for one, log in zip(records[name], logs[name], strict=True)] for name in records}
        parts = {name: segments_of(each, spec, objective, settings.warmup_s, seconds) for name, each in runs.items()}
        figures[side] = summaries(spec, parts, fixed, reference)
        figures["ranking"][side] = ranking({name: row["score"]["mean"] for name, row in figures[side].items()})
        everyone = {name: [record for one in repeats for record in one] for name, repeats in records.items()}
        figures["latencies"][side] = {
            name: {key: _json(x) for key, x in latencies(all_of, settings.warmup_s).items()}
            for name, all_of in everyone.items()
        }
    figures["gap"] = {
        name: figures["predicted"][name]["on_time_share"]["mean"] - row["on_time_share"]["mean"]
        for name, row in figures["measured"].items()
    }
    figures["order"] = trial.order
    figures["timeline"] = timeline(trial, setting, objective, settings, seconds)
    return figures


def timeline(
    trial: Trial, setting: Setting, objective: Objective, settings: TrialSettings, seconds: int
) -> list[dict[str, Any]]:
    """Second by second, a repeat each: load that arrives, and for every policy instances paid, requests that arrived
    and how many of them were on time; measured. Beside them what was foretold of the repeat without its warm-up: mean
    instances paid and share on time."""
    result: list[dict[str, Any]] = []
    for repeat in range(settings.repeats):
        load = setting.load(setting.traffic(settings.seed + repeat))
        policies = {}
        for name, repeats in trial.measured.items():
            second = np.array([min(int(record.arrival_s), seconds - 1) for record in repeats[repeat]], int)
            met = np.array([objective.met(record) for record in repeats[repeat]], float)
            paid = [float(entry["outcome"]["gpu_seconds"]) for entry in trial.logs[name][repeat]]
            foretold = Run(trial.predicted[name][repeat], trial.predicted_logs[name][repeat])
            policies[name] = {
                "instances": [round(x, 3) for x in paid],
                "asked": np.bincount(second, minlength=seconds).tolist(),
                "on_time": np.bincount(second, met, minlength=seconds).astype(int).tolist(),
                "foretold": _foretold(
                    segments_of([foretold], setting.problem.spec, objective, settings.warmup_s, seconds)
                ),
            }
        result.append({"load": [round(float(x), 3) for x in load], "policies": policies})
    return result


def _foretold(segments: Segments) -> dict[str, float | None]:
    asked, on_time = segments.asked.sum(), segments.on_time.sum()
    return {
        "instances": round(float(segments.instance_s.sum() / segments.steps.sum()), 4),
        "on_time_share": round(float(on_time / asked), 5) if asked else None,
    }


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
