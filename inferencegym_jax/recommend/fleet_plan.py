"""How many GPUs for one's own log: every fixed size and rule replayed on it, the cheapest that keep the share on time.

``log, table, objectives -> rules and sizes -> contest on the log -> FleetPlan``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from inferencegym_jax.episodes.policy import Policy, init_carry, with_carry
from inferencegym_jax.fleet.action import FLEET_KNOBS, GPUS, FleetAction
from inferencegym_jax.fleet.contest import contest
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.failures import named_failures
from inferencegym_jax.fleet.making import ANYWHERE
from inferencegym_jax.fleet.observation import FleetObservation
from inferencegym_jax.fleet.rules import DEFAULTS, HPA, IN_FLIGHT, QUEUE, REACTIVE, RulePlan, fixed
from inferencegym_jax.fleet.spec import FleetSpec, fleet_params
from inferencegym_jax.fleet.statistics import FleetStatistics, evaluate_fleet
from inferencegym_jax.hardware.table_metadata import doubts
from inferencegym_jax.models import check_knob, finite_number, shown
from inferencegym_jax.policies.fleet_names import fleet_policy_of
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from inferencegym_jax.traffic.request_log import RequestLog, load_trace

DAY_S, LEAST_S = 86400, 300
UTILISATIONS = (0.8, 0.7, 0.6, 0.5, 0.4)
IN_FLIGHTS = (100.0, 70.0, 50.0, 35.0, 25.0, 15.0, 10.0)
QUEUES = (5.0, 3.0, 1.0, 0.5)
PLANNERS = (1.0, 0.8, 0.65, 0.5)
GENERAL = "general policy"


@dataclass(frozen=True)
class PlanRow:
    """One way to size the fleet, replayed on the log.

    Attributes:
        name: of the rule or the size.
        kind: "fixed", "split", "rule at its defaults", "rule" or "learned".
        plan: its settings; of the learned policy those of the rule that it corrects.
        on_time_share: of the requests.
        gpu_seconds, mean_gpus: paid for.
        changes_an_hour: GPUs asked for more or less.
        meets: whether the share on time is at least the one asked for.
    """

    name: str
    kind: str
    plan: RulePlan
    on_time_share: float
    gpu_seconds: float
    mean_gpus: float
    changes_an_hour: float
    meets: bool


@dataclass(frozen=True)
class FleetPlan:
    """The answer of ``plan_fleet``.

    Attributes:
        rows: every size and rule, cheapest first among those that meet the share, then by share.
        best: the cheapest that meets the share, or the one that comes closest.
        best_of: the same of each kind: "fixed" (every GPU computes its own prompts), "split", "rule at its defaults",
            "rule", and "learned" where a general policy ships; a fleet of one GPU has no split.
        meets: whether any does.
        settings: what to write into a Kubernetes HPA, KEDA and the Dynamo planner, each with what its replay came to.
        failures: rules and the scenarios that they fail (``fleet.failures``), on this task's objectives.
        notices: what the log does not show, one sentence each.
        traffic: requests, seconds and mean lengths of the log.
        batch_size: most requests that ran on a GPU.
    """

    rows: tuple[PlanRow, ...]
    best: PlanRow
    best_of: dict[str, PlanRow]
    meets: bool
    settings: dict[str, str]
    failures: dict[str, tuple[str, ...]]
    notices: tuple[str, ...]
    traffic: dict[str, float]
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        report = dataclasses.asdict(self)
        for row in (*report["rows"], report["best"], *report["best_of"].values()):
            row["plan"] = {name: float(value) for name, value in row["plan"].items()}
        return report


def plan_fleet(
    trace: str | Path | RequestLog,
    *,
    table: str | Path | LatencyTable | None = None,
    gpus: int = GPUS,
    slo_ttft_ms: float = 1000.0,
    slo_tpot_ms: float = 50.0,
    share: float = 0.99,
    start_s: float = 100.0,
    batch_size: int = 128,
    with_failures: bool = True,
) -> FleetPlan:
    """Replay a log on fleets of 1 to ``gpus`` engines, on every split of them, under every rule and under the general
    policy.

    Args:
        trace: a request log.
        table: of one engine; default: the shipped one.
        gpus: that there are, 1 to 8.
        slo_ttft_ms: objective on the time to first token, ms.
        slo_tpot_ms: objective on the time per output token, ms.
        share: of the requests that must be within both.
        start_s: seconds from asking for a GPU until it serves.
        batch_size: most requests running on a GPU.
        with_failures: whether the rules are also played through the named failures.

    Raises:
        ValueError: a number out of its range, or a log shorter than five minutes, which says nothing of a fleet.
        FileNotFoundError, TraceError, TableError: the log or the table cannot be used, or the KV pool does not hold one
            mean request of the log.
    """
    wanted = finite_number(share)
    if wanted is None or not 0.5 <= wanted < 1.0:
        raise ValueError(f"share = {shown(share)}: must be a number from 0.5 to below 1")
    check_knob("batch_size", FLEET_KNOBS["batch_size"], batch_size)
    log, loaded = load_trace(trace), load_table(table)
    if log.seconds < LEAST_S:
        raise ValueError(
            f"trace {log.name!r}: {log.seconds} s long; a fleet is sized on at least {LEAST_S} s, better on whole days"
        )
    spec = FleetSpec(
        name="plan",
        id=1,
        slo_ttft_ms=slo_ttft_ms,
        slo_tpot_ms=slo_tpot_ms,
        gpus=gpus,
        clock=1.0,
        start_s=start_s,
        busiest=0.0,
        active_knobs=("gpus", "prefill_gpus", "batch_size", "spec_length"),
    )
    params = fleet_params(spec, loaded, log)
    ways = _ways(gpus)
    plans = [plan.replace(batch_size=batch_size) for _, _, plan in ways]
    env = FleetEnvironment(loaded, params, log)
    statistics = contest(env, params, plans, [0])
    rows = [
        _row(name, kind, plan, statistics, (i, 0), wanted)
        for i, ((name, kind, _), plan) in enumerate(zip(ways, plans, strict=True))
    ]
    learned = _general(batch_size)
    policies: dict[str, Policy] = {}
    if learned is not None:
        policies[GENERAL] = learned
        played = evaluate_fleet(env, params, learned, [0])
        rows.append(_row(GENERAL, "learned", REACTIVE.replace(batch_size=batch_size), played, (0,), wanted))
    rows.sort(key=lambda row: (not row.meets, row.gpu_seconds if row.meets else -row.on_time_share))
    failures: Mapping[str, Any] = {}
    if with_failures:
        rules = {row.name: row.plan for row in rows if row.kind.startswith("rule")}
        failures = named_failures(rules, dataclasses.replace(spec, busiest=0.0), loaded, policies)
    return FleetPlan(
        rows=tuple(rows),
        best=rows[0],
        best_of={kind: next(row for row in rows if row.kind == kind) for kind in sorted({row.kind for row in rows})},
        meets=rows[0].meets,
        settings=_settings(rows, gpus, spec),
        failures={name: row.failed for name, row in failures.items()},
        notices=(*_notices(log), *doubts(loaded.metadata, int(loaded.knob_defaults["quant_tier"]))),
        traffic={
            "requests": float(log.requests),
            "seconds": float(log.seconds),
            "mean_prompt": log.mean_prompt,
            "mean_output": log.mean_output,
            "mean_gpus_busy": float(statistics.mean_load[0, 0]),
        },
        batch_size=batch_size,
    )


def _general(batch_size: int) -> Policy | None:
    """The learned policy that ships for every fleet, with so many slots on each GPU; None where none ships."""
    try:
        return with_batch_size(fleet_policy_of("general", ANYWHERE), batch_size)
    except FileNotFoundError:
        return None


def _held_start(policy: Policy, batch_size: jax.Array) -> Any:
    del batch_size
    return init_carry(policy)


@with_carry(_held_start)
def _held(
    policy: Policy, batch_size: jax.Array, key: jax.Array, seen: FleetObservation, carry: Any
) -> tuple[FleetAction, Any]:
    action, carry = policy(key, seen, carry)
    return action.replace(batch_size=batch_size), carry


def with_batch_size(policy: Policy, batch_size: int) -> Policy:
    """A learned policy of fleets, but that so many requests may run on a GPU whatever it asks for.

    Args:
        policy: a ``Partial`` that gives (action, carry), as ``fleet_playable`` makes it.
        batch_size: most requests running on a GPU.
    """
    return Partial(_held, policy, jnp.int32(batch_size))


def _row(
    name: str, kind: str, plan: RulePlan, statistics: FleetStatistics, at: tuple[int, ...], wanted: float
) -> PlanRow:
    share = float(statistics.on_time_share[at])
    return PlanRow(
        name=name,
        kind=kind,
        plan=plan,
        on_time_share=share,
        gpu_seconds=float(statistics.gpu_seconds[at]),
        mean_gpus=float(statistics.mean_gpus[at]),
        changes_an_hour=float(statistics.changes_an_hour[at]),
        meets=share >= wanted,
    )


def _ways(gpus: int) -> list[tuple[str, str, RulePlan]]:
    """(name, kind, plan) of all that is tried."""
    ways = [(f"{size} GPUs", "fixed", fixed(size)) for size in range(1, gpus + 1)]
    for size in range(2, gpus + 1):
        for prefill in range(1, size):
            name = f"{prefill} prefill and {size - prefill} decode GPUs"
            ways.append((name, "split", fixed(size).replace(prefill_gpus=prefill)))
    ways += [(name, "rule at its defaults", plan) for name, plan in DEFAULTS.items()]
    ways += [(f"reactive, utilisation {x:g}", "rule", REACTIVE.replace(target=x)) for x in UTILISATIONS]
    ways += [(f"HPA, {x:g} requests in flight", "rule", HPA.replace(metric=IN_FLIGHT, target=x)) for x in IN_FLIGHTS]
    ways += [(f"KEDA, {x:g} waiting", "rule", HPA.replace(metric=QUEUE, target=x)) for x in QUEUES]
    planner = DEFAULTS["Dynamo planner"]
    ways += [(f"Dynamo planner, load {x:g}", "rule", planner.replace(target=x)) for x in PLANNERS]
    return ways


def _settings(rows: list[PlanRow], gpus: int, spec: FleetSpec) -> dict[str, str]:
    """What to write into each autoscaler: of its rows the first, which is the cheapest that meets the share or the
    closest."""

    def first(word: str) -> PlanRow:
        return next(row for row in rows if row.name.startswith(word) and row.kind == "rule")

    def replay(row: PlanRow) -> str:
        return f"replayed: {row.on_time_share:.2%} on time, {row.mean_gpus:.2f} GPUs on average"

    hpa, keda, planner = first("HPA"), first("KEDA"), first("Dynamo")
    return {
        "Kubernetes HPA": f"minReplicas: 1, maxReplicas: {gpus}, metric vllm:num_requests_running + "
        f"vllm:num_requests_waiting, AverageValue {float(hpa.plan.target):g}, scaleDown.stabilizationWindowSeconds: "
        f"300 ({replay(hpa)})",
        "KEDA": f"minReplicaCount: 1, maxReplicaCount: {gpus}, pollingInterval: 15, query "
        f"sum(vllm:num_requests_waiting), threshold: {float(keda.plan.target):g} ({replay(keda)})",
        "Dynamo planner": f"optimization_target: sla, ttft_ms: {spec.slo_ttft_ms:g}, itl_ms: {spec.slo_tpot_ms:g}, "
        f"max_gpu_budget: {gpus}, throughput_adjustment_interval_seconds: 180, load_adjustment_interval_seconds: 5, "
        f"throughput of the profile times {float(planner.plan.target):g} ({replay(planner)})",
    }


def _notices(log: RequestLog) -> tuple[str, ...]:
    notices = list(log.notices)
    if log.seconds < DAY_S:
        notices.append(
            f"the log is {log.seconds / 3600.0:.1f} h long: what other hours of the day need is not in it, and it is "
            "not repeated"
        )
    return tuple(notices)
