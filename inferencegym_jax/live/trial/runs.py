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
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.outcome import Objective, summarise
from inferencegym_jax.live.trial.prediction import replay
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
    """

    repeats: int = 2
    warmup_s: float = 10.0
    seed: int = 0
    step_seconds: float = 1.0
    max_num_seqs: int = 10**9
    pause_s: float = 1.0

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
    """

    measured: dict[str, list[list[Record]]]
    predicted: dict[str, list[list[Record]]]
    scores: dict[str, list[float]]
    order: list[str] = field(default_factory=list)


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
) -> Trial:
    """Run every policy on the live server.

    Args:
        endpoint: the server.
        policies: by name.
        problem: the task on the table that was measured on this server, which gives the predictions.
        traffic: of a seed.
        settings: repeats, warm-up.
        report: told what runs.

    Raises:
        EngineError: the server cannot be used.
    """
    trial = Trial({name: [] for name in policies}, {name: [] for name in policies}, {name: [] for name in policies})
    by_seed = {settings.seed + repeat: traffic(settings.seed + repeat) for repeat in range(settings.repeats)}
    for name, policy in policies.items():
        report(f"predicting {name}")
        trial.predicted[name] = [
            predict(problem.table, by_seed[settings.seed + repeat], policy, problem.params, settings)
            for repeat in range(settings.repeats)
        ]
    with LiveEnv(endpoint, problem.params, lambda seed: by_seed[seed], step_seconds=settings.step_seconds) as env:
        records: dict[tuple[int, str], list[Record]] = {}
        plan = schedule(list(policies), settings.repeats)
        for number, (repeat, name) in enumerate(plan):
            report(f"run {number + 1} of {len(plan)}: {name}")
            seed = settings.seed + repeat
            records[(repeat, name)], log = run_policy(env, policies[name], seed, by_seed[seed])
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
    first, _ = initial(jnp.uint32(0), jnp.int32(0), params)
    runner = PolicyRunner(policy, settings.seed)
    locked = {
        name: knob.default
        for active, (name, knob) in zip(np.asarray(params.active), KNOBS.items(), strict=True)
        if not active
    }
    return replay(
        table,
        traffic,
        lambda observation: dataclasses.replace(runner.ask(observation), **locked),
        params.slo_ms,
        first,
        max_num_seqs=settings.max_num_seqs,
        step_seconds=settings.step_seconds,
    )


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
        "requests": {name: sum(map(len, repeats)) for name, repeats in trial.measured.items()},
    }
