"""The same traffic for each policy on the live server, beside what the measured table predicted for each.

Repeat r sends the traffic of seed + r to every policy, in an order that is reversed in every second repeat (A B C, C
B A, ...), so that a server that slowly gets faster or slower favours nobody. The first seconds of every run are not
counted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import initial
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.outcome import Objective, summarise
from inferencegym_jax.live.trial.prediction import replay_and_bill
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import Traffic
from inferencegym_jax.models import KNOBS, EnvParams
from inferencegym_jax.policies.policy_runner import PolicyRunner
from inferencegym_jax.registry import Problem
from inferencegym_jax.scoring.grader import grade
from inferencegym_jax.table.latency_table import LatencyTable


@dataclass(frozen=True)
class TrialSettings:
    """How a trial is run.

    Attributes:
        repeats: runs of each policy.
        warmup_s: seconds of each run that are not counted.
        seed: of the first repeat's traffic.
        step_seconds: 1; shorter in tests only.
        max_num_seqs: the engine's own limit, for the prediction.
        pause_s: between runs.
        spare: times of the spare engine, for the prediction; None: there is none.
    """

    repeats: int = 2
    warmup_s: float = 10.0
    seed: int = 0
    step_seconds: float = 1.0
    max_num_seqs: int = 10**9
    pause_s: float = 1.0
    spare: SpareTimes | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats = {self.repeats}: must be at least 1")
        if self.warmup_s < 0:
            raise ValueError(f"warmup = {self.warmup_s}: must be at least 0 seconds")


@dataclass
class Trial:
    """What was measured and predicted.

    Attributes:
        measured: policy -> repeats -> records.
        predicted: the same from the table.
        scores: policy -> score of each repeat's log by the task's grader.
        order: policies in the order in which they ran.
        instance_s: policy -> seconds of engines that each repeat was billed.
        predicted_instance_s: the same foretold.
    """

    measured: dict[str, list[list[Record]]]
    predicted: dict[str, list[list[Record]]]
    scores: dict[str, list[float]]
    order: list[str] = field(default_factory=list)
    instance_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    predicted_instance_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


def schedule(policies: list[str], repeats: int) -> list[tuple[int, str]]:
    """(repeat, policy) in the order of the runs: forwards, backwards, forwards, ..."""
    result = []
    for repeat in range(repeats):
        names = policies if repeat % 2 == 0 else policies[::-1]
        result += [(repeat, name) for name in names]
    return result


def run_trial(
    endpoint: Endpoint,
    policies: dict[str, Policy],
    problem: Problem,
    traffic: Callable[[int], Traffic],
    settings: TrialSettings,
    report: Callable[[str], None] = lambda _: None,
    spare: SpareSettings | None = None,
) -> Trial:
    """Run every policy on the live server.

    Args:
        endpoint: the server.
        policies: by name.
        problem: the task on the table that was measured on this server, which gives the predictions.
        traffic: of a seed.
        settings: repeats, warm-up.
        report: told what runs.
        spare: the engine that the policies' second GPU asks for; every run begins without it.

    Raises:
        EngineError: the server cannot be used.
    """
    trial = Trial({name: [] for name in policies}, {name: [] for name in policies}, {name: [] for name in policies})
    by_seed = {settings.seed + repeat: traffic(settings.seed + repeat) for repeat in range(settings.repeats)}
    for name, policy in policies.items():
        report(f"predicting {name}")
        foretold = [
            predict_and_bill(problem.table, by_seed[settings.seed + repeat], policy, problem.params, settings)
            for repeat in range(settings.repeats)
        ]
        trial.predicted[name] = [records for records, _ in foretold]
        trial.predicted_instance_s[name] = [seconds for _, seconds in foretold]
        trial.instance_s[name] = []
    with LiveEnv(
        endpoint, problem.params, lambda seed: by_seed[seed], step_seconds=settings.step_seconds, spare=spare
    ) as env:
        records: dict[tuple[int, str], list[Record]] = {}
        plan = schedule(list(policies), settings.repeats)
        for number, (repeat, name) in enumerate(plan):
            report(f"run {number + 1} of {len(plan)}: {name}")
            seed = settings.seed + repeat
            records[(repeat, name)], log = run_policy(env, policies[name], seed, by_seed[seed])
            trial.instance_s[name].append(sum(float(entry["outcome"]["gpu_seconds"]) for entry in log))
            log = log[int(settings.warmup_s) :]
            trial.scores[name].append(grade(problem.spec, log, problem.normalisers)["score"] if log else 0.0)
            trial.order.append(name)
            time.sleep(settings.pause_s * settings.step_seconds)
    for repeat in range(settings.repeats):
        for name in policies:
            trial.measured[name].append(records[(repeat, name)])
    return trial


def run_policy(env: LiveEnv, policy: Policy, seed: int, traffic: Traffic) -> tuple[list[Record], list[dict[str, Any]]]:
    """One run: as many steps as the traffic has seconds, then what is in flight may finish. Records and log."""
    runner = PolicyRunner(policy, seed)
    observation, state = env.reset_seed(seed)
    for _ in range(int(np.ceil(traffic.seconds))):
        observation, state, _, _, truncated, info = env.step(None, state, runner.ask(observation))
        if truncated:
            return info["records"], info["log"]
    return env.finish(), env.log


def predict(
    table: LatencyTable, traffic: Traffic, policy: Policy, params: EnvParams, settings: TrialSettings
) -> list[Record]:
    """The records that the table foretells for a policy on this traffic; knobs that params lock stand at their
    default, as on the live server."""
    return predict_and_bill(table, traffic, policy, params, settings)[0]


def predict_and_bill(
    table: LatencyTable, traffic: Traffic, policy: Policy, params: EnvParams, settings: TrialSettings
) -> tuple[list[Record], float]:
    """``predict``, and the seconds of engines that the traffic is foretold to be billed."""
    first, _ = initial(jnp.uint32(0), jnp.int32(0), params)
    runner = PolicyRunner(policy, settings.seed)
    locked = {
        name: knob.default
        for active, (name, knob) in zip(np.asarray(params.active), KNOBS.items(), strict=True)
        if not active
    }
    records, spare_s = replay_and_bill(
        table,
        traffic,
        lambda observation: dataclasses.replace(runner.ask(observation), **locked),
        params.slo_ms,
        first,
        max_num_seqs=settings.max_num_seqs,
        step_seconds=settings.step_seconds,
        spare=settings.spare,
    )
    return records, float(np.ceil(traffic.seconds)) * settings.step_seconds + spare_s


def results(
    trial: Trial, seconds: float, settings: TrialSettings, objective: Objective, reference: str
) -> dict[str, Any]:
    """Measured and predicted summaries, JSON-ready: {"measured": ..., "predicted": ..., "order": ..., "score": ...}."""

    def summary(runs: dict[str, list[list[Record]]]) -> dict[str, Any]:
        return summarise(runs, settings.warmup_s, seconds, objective, reference) if runs else {}

    return {
        "measured": summary(trial.measured),
        "predicted": summary(trial.predicted),
        "score": {name: float(np.mean(values)) for name, values in trial.scores.items()},
        "order": trial.order,
        "instance_seconds": {
            name: {
                "measured": float(np.mean(values)),
                "predicted": float(np.mean(trial.predicted_instance_s[name])),
            }
            for name, values in trial.instance_s.items()
        },
        "requests": {name: sum(map(len, repeats)) for name, repeats in trial.measured.items()},
    }
