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
from typing import Any, Protocol, TypeAlias, cast

import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import initial
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.outcome import Objective, summarise
from inferencegym_jax.live.trial.prediction import replayed
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import Traffic
from inferencegym_jax.models import KNOBS, EnvParams, ServeAction, plain
from inferencegym_jax.policies.policy_runner import PolicyRunner
from inferencegym_jax.registry import Problem
from inferencegym_jax.scoring.grader import grade
from inferencegym_jax.table.latency_table import LatencyTable


class Asked(Protocol):
    """What turns an observation into an action, one episode after another: ``PolicyRunner``."""

    def reset(self, seed: int = 0) -> None:
        """Start an episode."""
        ...

    def ask(self, observation: Any) -> ServeAction:
        """The action of a second."""
        ...


Log: TypeAlias = list[dict[str, Any]]  # an entry a second: action, reward, metrics, outcome


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
        drain_s: seconds that requests in flight get at a run's end.
    """

    repeats: int = 2
    warmup_s: float = 10.0
    seed: int = 0
    step_seconds: float = 1.0
    max_num_seqs: int = 10**9
    pause_s: float = 1.0
    spare: SpareTimes | None = None
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats = {self.repeats}: must be at least 1")
        if self.warmup_s < 0:
            raise ValueError(f"warmup = {self.warmup_s}: must be at least 0 seconds")


@dataclass(frozen=True)
class Run:
    """One policy on one traffic, measured or foretold: what became of the requests, and the log of every second."""

    records: list[Record]
    log: Log

    @property
    def instance_s(self) -> float:
        """Seconds of engines that it was billed."""
        return sum(float(entry["outcome"]["gpu_seconds"]) for entry in self.log)


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
        logs: policy -> repeats -> the log of every second, as a grader takes it.
        predicted_logs: the same foretold.
    """

    measured: dict[str, list[list[Record]]]
    predicted: dict[str, list[list[Record]]]
    scores: dict[str, list[float]]
    order: list[str] = field(default_factory=list)
    instance_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    predicted_instance_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    logs: dict[str, list[Log]] = field(default_factory=dict[str, "list[Log]"])
    predicted_logs: dict[str, list[Log]] = field(default_factory=dict[str, "list[Log]"])

    def finished(self) -> Trial:
        """The repeats that every policy has run; while the first is under way, the policies that have run it."""
        whole = min(map(len, self.measured.values()))
        names = [name for name, runs in self.measured.items() if runs]
        parts = {
            part.name: {name: getattr(self, part.name)[name][: max(whole, 1)] for name in names}
            for part in dataclasses.fields(self)
            if part.name != "order"
        }
        return Trial(**parts, order=self.order[: len(names) * max(whole, 1)])


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
    after: Callable[[Trial], None] = lambda _: None,
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
        after: called after every run with what there is so far.

    Raises:
        EngineError: the server cannot be used.
    """
    trial = Trial({name: [] for name in policies}, {name: [] for name in policies}, {name: [] for name in policies})
    by_seed = {settings.seed + repeat: traffic(settings.seed + repeat) for repeat in range(settings.repeats)}
    for name, policy in policies.items():
        report(f"predicting {name}")
        foretold = [
            foretell(problem.table, by_seed[settings.seed + repeat], policy, problem.params, settings)
            for repeat in range(settings.repeats)
        ]
        trial.predicted[name] = [run.records for run in foretold]
        trial.predicted_instance_s[name] = [run.instance_s for run in foretold]
        trial.predicted_logs[name] = [run.log for run in foretold]
        trial.instance_s[name], trial.logs[name] = [], []
    with LiveEnv(
        endpoint,
        problem.params,
        lambda seed: by_seed[seed],
        step_seconds=settings.step_seconds,
        spare=spare,
        drain_s=settings.drain_s,
    ) as env:
        plan = schedule(list(policies), settings.repeats)
        for number, (repeat, name) in enumerate(plan):
            report(f"run {number + 1} of {len(plan)}: {name}")
            seed = settings.seed + repeat
            records, log = run_policy(env, policies[name], seed, by_seed[seed])
            trial.measured[name].append(records)
            trial.logs[name].append(log)
            trial.instance_s[name].append(Run(records, log).instance_s)
            log = log[int(settings.warmup_s) :]
            trial.scores[name].append(grade(problem.spec, log, problem.normalisers)["score"] if log else 0.0)
            trial.order.append(name)
            after(trial)
            time.sleep(settings.pause_s * settings.step_seconds)
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
    return foretell(table, traffic, policy, params, settings).records


def foretell(
    table: LatencyTable,
    traffic: Traffic,
    policy: Policy | ServeAction | Asked,
    params: EnvParams,
    settings: TrialSettings,
) -> Run:
    """The run that the table foretells for a policy, for one action, or for what is asked once a second, on this
    traffic; knobs that params lock stand at their default, as on the live server.

    Raises:
        TableError: the table says too little of the engine.
    """
    first, _ = initial(jnp.uint32(0), jnp.int32(0), params)
    locked = {
        name: knob.default
        for active, (name, knob) in zip(np.asarray(params.active), KNOBS.items(), strict=True)
        if not active
    }
    held = policy if isinstance(policy, ServeAction) else None
    runner: Asked | None = None
    if held is None:
        runner = cast(Asked, policy) if hasattr(policy, "ask") else PolicyRunner(cast(Policy, policy))
        runner.reset(settings.seed)

    def ask(observation: Any) -> ServeAction:
        action = held if runner is None else runner.ask(observation)
        return dataclasses.replace(cast(ServeAction, action), **locked)

    replay = replayed(
        table,
        traffic,
        ask,
        params.slo_ms,
        first,
        slo_tpot_ms=params.engine.slo_tpot_ms,
        max_num_seqs=settings.max_num_seqs,
        step_seconds=settings.step_seconds,
        spare=settings.spare,
    )
    log = [
        {"action": action.to_dict(), "reward": 0.0, "metrics": plain(second.metrics), "outcome": plain(second.outcome)}
        for action, second in zip(replay.actions, replay.seconds, strict=True)
    ]
    return Run(replay.records, log)


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
