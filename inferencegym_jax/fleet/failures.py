"""The failures that shipped autoscalers show, each as a scenario and a column.

``plans, task -> a log of five scenarios -> decisions -> Failures``. Half an hour each: a constant load; a burst of long
prompts; a step in the load; a constant load under an objective that nobody can meet; a high load of short contexts,
which leaves the KV cache empty. What is needed is the least fixed size that keeps 99 % on time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.fleet.contest import decisions, decisions_of
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.rules import RulePlan, fixed
from inferencegym_jax.fleet.spec import FleetSpec, fleet_params
from inferencegym_jax.fleet.state import DECISION_S, FleetParams
from inferencegym_jax.fleet.statistics import share_on_time
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.traffic.request_log import RequestLog

SCENARIOS = ("constant load", "long prompts", "step in the load", "objective out of reach", "empty cache")
LENGTH_S = 1800
BEGIN_S, BURST_S = 600, 120
WARM = 60  # decisions that are not counted: a rule finds its size
CHANGES, OVER, REACTION_S, HOPELESS, ON_TIME = 6.0, 1.0, 60.0, 1.0, 0.95
OUT_OF_REACH_MS = 5.0  # a time per output token below that of an idle engine
WANTED = 0.99
SEED = 2026


@dataclass(frozen=True)
class Failures:
    """What one rule did in the five scenarios, and whether it passes.

    Attributes:
        changes_an_hour: GPUs asked for more or less in an hour of constant load; at most 6.
        burst_over: most GPUs asked for in and after a burst of long prompts, less those needed; at most 1.
        reaction_s: from a step in the load until enough is asked for; at most the start's time and 60 s, with 95 % on
            time after the step. Infinite: never.
        step_on_time: share on time after the step.
        hopeless_over: mean GPUs under an objective that nobody can meet, less those that the load needs; at most 1.
        empty_cache_on_time: share on time under a high load that leaves the cache empty; at least 0.95.
        failed: names of the scenarios that it does not pass.
    """

    changes_an_hour: float
    burst_over: float
    reaction_s: float
    step_on_time: float
    hopeless_over: float
    empty_cache_on_time: float
    failed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def _requests(rng: np.random.Generator, rate: np.ndarray, prompt: float, output: float) -> Any:
    """(times, prompts, outputs) of Poisson arrivals at ``rate`` requests/s in each second."""
    count = rng.poisson(rate)
    second = np.repeat(np.arange(len(rate)), count)
    total = len(second)
    lengths = [
        np.maximum(np.rint(mean * np.exp(0.6 * rng.normal(size=total) - 0.18)), 1).astype(int)
        for mean in (prompt, output)
    ]
    return second + rng.random(total), np.minimum(lengths[0], 8192), lengths[1]


@functools.lru_cache(maxsize=4)
def scenario_log(spec: FleetSpec, table: LatencyTable) -> RequestLog:
    """The five scenarios one after the other, loads in GPUs of this task and table; seeds 0 to 4 begin with each."""
    params = fleet_params(spec, table)
    rng = np.random.default_rng(SEED)
    seconds = np.arange(LENGTH_S)

    def rate(load: Any, prompt: float, output: float) -> np.ndarray:
        work = prompt * float(params.prompt_gpus) + output * float(params.output_gpus)
        return np.broadcast_to(np.asarray(load, np.float64) / work, LENGTH_S)

    burst = np.where((seconds >= BEGIN_S) & (seconds < BEGIN_S + BURST_S), 1.0, 0.0)
    usual = 800.0, 200.0
    parts = [
        [_requests(rng, rate(1.8, *usual), *usual)],
        [_requests(rng, rate(1.0, *usual), *usual), _requests(rng, rate(burst, 6000.0, 100.0), 6000.0, 100.0)],
        [_requests(rng, rate(np.where(seconds < BEGIN_S, 0.8, 2.4), *usual), *usual)],
        [_requests(rng, rate(1.8, *usual), *usual)],
        [_requests(rng, rate(2.4, 100.0, 150.0), 100.0, 150.0)],
    ]
    times, prompts, outputs = [], [], []
    for i, part in enumerate(parts):
        for time, prompt, output in part:
            times.append(time + i * LENGTH_S)
            prompts.append(prompt)
            outputs.append(output)
    order = np.argsort(np.concatenate(times), kind="stable")
    columns = [np.concatenate(x)[order] for x in (times, prompts, outputs)]
    end = len(parts) * LENGTH_S - 0.5
    columns[0] = np.minimum(columns[0], end)
    columns[0][0], columns[0][-1] = 0.0, end  # as long as the scenarios together
    return RequestLog.from_arrays(*columns, name="failures")


def _params(spec: FleetSpec, table: LatencyTable, log: RequestLog) -> FleetParams:
    """Params of the scenarios, a batch: units are those of the task, not of the log."""
    own, usual = fleet_params(spec, table, log), fleet_params(spec, table)
    units = ("prompt_gpus", "output_gpus", "bare_ttft", "bare_tpot", "work_s")
    one = own.replace(
        episode_length=np.int32(LENGTH_S // DECISION_S),
        active=np.asarray((True, True, True, True)),
        **{name: getattr(usual, name) for name in units},
    )
    rows = [one] * len(SCENARIOS)
    tight = np.full(3, OUT_OF_REACH_MS, np.float32)
    ratio = np.float32(float(one.bare_tpot) * spec.slo_tpot_ms / OUT_OF_REACH_MS)
    rows[3] = one.replace(engine=one.engine.replace(slo_tpot_ms=tight), bare_tpot=ratio)
    return jax.tree.map(lambda *x: np.stack([np.asarray(leaf) for leaf in x]), *rows)


def named_failures(
    plans: Mapping[str, RulePlan], spec: FleetSpec, table: LatencyTable, policies: Mapping[str, Policy] | None = None
) -> dict[str, Failures]:
    """What each rule does in the scenarios.

    Args:
        plans: rules by name.
        spec: the task, whose objectives, start and number of GPUs count.
        table: of one engine.
        policies: others by name, learned ones say.
    """
    log = scenario_log(spec, table)
    env, params = FleetEnvironment(table, fleet_params(spec, table, log), log), _params(spec, table, log)
    sizes = [fixed(size) for size in range(1, spec.gpus + 1)]
    rows = decisions(env, params, [*sizes, *plans.values()], np.arange(len(SCENARIOS)))
    others = policies or {}
    for policy in others.values():
        own = decisions_of(env, params, policy, np.arange(len(SCENARIOS)))
        rows = {name: np.concatenate([value, own[name]]) for name, value in rows.items()}
    begin = BEGIN_S // DECISION_S

    def share(which: Any, scenario: int, since: int = WARM) -> Any:
        return share_on_time(*(rows[name][which, scenario, since:] for name in ("on_time", "judged")))

    def needed(scenario: int, since: int = WARM) -> int:
        enough = share(slice(0, spec.gpus), scenario, since) >= WANTED
        return int(np.argmax(enough)) + 1 if enough.any() else spec.gpus

    constant, burst, step = needed(0), needed(1), needed(2, begin + 24)
    failures_of = {}
    for i, name in enumerate([*plans, *others], len(sizes)):
        asked = rows["asked"][i]
        after = asked[2, begin:]
        reached = np.flatnonzero(after >= step)
        reaction = float(reached[0] * DECISION_S) if len(reached) else float("inf")
        changes = np.abs(np.diff(asked[0, WARM:])).sum() / ((asked.shape[-1] - WARM) * DECISION_S / 3600.0)
        row = Failures(
            changes_an_hour=float(changes),
            burst_over=float(asked[1, begin:].max() - burst),
            reaction_s=reaction,
            step_on_time=float(share(i, 2, begin)),
            hopeless_over=float(asked[3, WARM:].mean() - constant),
            empty_cache_on_time=float(share(i, 4)),
            failed=(),
        )
        passed = (
            row.changes_an_hour <= CHANGES,
            row.burst_over <= OVER,
            row.reaction_s <= spec.start_s + REACTION_S and row.step_on_time >= ON_TIME,
            row.hopeless_over <= HOPELESS,
            row.empty_cache_on_time >= ON_TIME,
        )
        failed = tuple(scenario for scenario, good in zip(SCENARIOS, passed, strict=True) if not good)
        failures_of[name] = dataclasses.replace(row, failed=failed)
    return failures_of
