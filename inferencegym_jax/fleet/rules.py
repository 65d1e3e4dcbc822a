"""The rules by which engineers size fleets, as data: a metric, a target, and when a change is made.

``observation, plan, what was recommended before -> FleetAction``. All are the Horizontal Pod Autoscaler's loop with
another metric: GPUs wanted = those asked for times metric over target, rounded up; no change within a tolerance; down
only to the most that was recommended during a stabilisation window. One function plays them all, so plans stack and a
search is a batch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from inferencegym_jax.episodes.policy import with_carry
from inferencegym_jax.fleet.action import FLEET_KNOBS, GPUS, FleetAction
from inferencegym_jax.fleet.observation import FleetObservation
from inferencegym_jax.models import Scalar, is_traced
from inferencegym_jax.table.latency_table import data_path

RING = 72  # decisions for which recommendations are kept: 360 s
METRICS = ("fixed", "token load", "in flight", "queue", "cache", "latency", "saturation", "planner")
FIXED, LOAD, IN_FLIGHT, QUEUE, CACHE, LATENCY, SATURATION, PLANNER = range(len(METRICS))
NEVER = 1e-4  # of a GPU: rounding up must not make one of a float's last bit


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RulePlan:
    """The settings of a rule; numbers, or arrays with one entry a rule."""

    metric: Scalar = LOAD  # int32, of METRICS
    target: Scalar = 0.7  # float32: a utilisation, requests a GPU, a share, times the objective; of "fixed" the GPUs
    fast: Scalar = 1.0  # float32, share of the 15 s average of the load; the rest is the 2 min average
    trend: Scalar = 0.0  # float32, times the 15 s average less the 2 min average that is added
    floor: Scalar = 0.0  # float32, times the 10 min average that the load counts for at least
    spare: Scalar = 0.0  # float32, GPUs more than the load needs at the target; of the token load
    tolerance: Scalar = 0.0  # float32, of metric over target around 1 within which nothing changes
    period: Scalar = 1  # int32, decisions from one evaluation to the next
    hold: Scalar = 1  # int32, decisions of the stabilisation window, at most RING
    most_up: Scalar = GPUS  # int32, GPUs more in an evaluation, at most
    most_down: Scalar = GPUS  # int32, GPUs fewer
    slow_period: Scalar = 36  # int32, decisions of the planner's slow loop
    batch_size: Scalar = FLEET_KNOBS["batch_size"].default  # int32
    prefill_gpus: Scalar = 0  # int32

    def replace(self, **changes: Any) -> RulePlan:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_arrays(self) -> RulePlan:
        """The same plan as float32 and int32 arrays."""
        whole = {f.name for f in dataclasses.fields(self) if isinstance(f.default, int)}
        asarray = jnp.asarray if is_traced(self) else np.asarray
        return RulePlan(
            **{
                f.name: asarray(getattr(self, f.name), np.int32 if f.name in whole else np.float32)
                for f in dataclasses.fields(self)
            }
        )


def stack_plans(plans: list[RulePlan]) -> RulePlan:
    """One plan of arrays, an entry a plan."""
    return jax.tree.map(lambda *x: np.stack(x), *(plan.as_arrays() for plan in plans))


HPA = RulePlan(tolerance=0.1, period=3, hold=60)
"""Kubernetes' defaults: evaluated every 15 s, tolerance 0.1, stabilisation of 300 s downwards; up at once to twice the
replicas or 4 more, which with 8 GPUs bounds nothing (kubernetes.io, "Horizontal Pod Autoscaling")."""

DEFAULTS: dict[str, RulePlan] = {
    "HPA, requests in flight": HPA.replace(metric=IN_FLIGHT, target=70.0),
    "HPA, queue": HPA.replace(metric=QUEUE, target=3.0),
    "KEDA, queue": HPA.replace(metric=QUEUE, target=5.0),
    "HPA, KV cache": HPA.replace(metric=CACHE, target=0.8),
    "HPA, latency": HPA.replace(metric=LATENCY, target=1.0),
    "llm-d, saturation": RulePlan(metric=SATURATION, target=0.8, period=6, hold=1, most_up=1, most_down=1),
    "Dynamo planner": RulePlan(metric=PLANNER, target=1.0, period=1, hold=1, slow_period=36, most_up=1, most_down=1),
}
"""Rules at the defaults that their projects publish:

- in flight: Knative's and KServe's target of 100 concurrent requests at 70 % (knative.dev, "Configuring concurrency")
- queue: GKE's guide to LLM autoscaling begins with a queue of 3 to 5 requests a server; HPA
- KEDA: the vLLM production stack's example, 5 waiting requests, polled every 15 s (docs.vllm.ai, "Autoscaling with
  KEDA"); KEDA scales by an HPA
- KV cache: 80 % of the cache, llm-d's kvCacheThreshold, as an HPA's target
- latency: the worse of TTFT and TPOT over its objective
- llm-d: one GPU more where the mean spare cache is below 0.1 under 0.8 or the spare queue below 3 under 5, one fewer
  where both would still be spared (llm-d-workload-variant-autoscaler v0.7.0, configmap-saturation-scaling.yaml);
  evaluated every 30 s, which is assumed
- Dynamo: `optimization_target: sla`: every 180 s the replicas that the last interval's load needs at the profiled
  throughput within the objectives, every 5 s one more while an objective is missed and one fewer while latencies are
  below 80 % of it, never below the slow loop's (docs.nvidia.com/dynamo, "Planner Guide";
  load_scaling_down_sensitivity 80); last value in place of ARIMA
"""

REACTIVE = RulePlan(metric=LOAD, target=0.77, fast=0.9, trend=0.3, floor=0.7, period=1, hold=36)
"""The fleet's reactive controller: utilisation by tokens in units of one GPU's capacity, tuned once on the draws of
fleet-anywhere's training days (``python -m training fleet-search``)."""


@functools.cache
def _tuned() -> Mapping[str, Any]:
    return json.loads(data_path("fleet_rules.json").read_text())


def tuned_rule(task: str) -> RulePlan:
    """The rule by tokens tuned on a fleet task's own training days (``data/fleet_rules.json``, made by ``python -m
    training fleet-search``); of every other task ``REACTIVE``.

    Args:
        task: its name.
    """
    rule = _tuned().get(task)
    return REACTIVE if rule is None else REACTIVE.replace(**rule["plan"])


def calm_rule(task: str) -> RulePlan:
    """The cheapest of the searched rules that show none of the named failures on a fleet task's units
    (``fleet/failures.py``; ``python -m training fleet-search --calm``); of tasks without one ``REACTIVE``.

    Args:
        task: its name.
    """
    calm = _tuned().get(task, {}).get("calm")
    return REACTIVE if calm is None else REACTIVE.replace(**calm["plan"])


def rule_start(plan: RulePlan, *_: Any) -> dict[str, jax.Array]:
    """What a rule remembers before an episode: nothing recommended."""
    del plan
    return {
        "recommended": jnp.zeros(RING, jnp.int32),
        "time": jnp.int32(0),
        "asked": jnp.int32(0),
        "slow": jnp.int32(0),
        "mean": jnp.float32(0.0),
    }


def load_of(plan: RulePlan, seen: FleetObservation) -> jax.Array:
    """The load that a rule by tokens counts with, GPUs."""
    quick = seen.prompt_load_15s + seen.output_load_15s
    middle = seen.prompt_load_2min + seen.output_load_2min
    slow = seen.prompt_load_10min + seen.output_load_10min
    load = plan.fast * quick + (1.0 - plan.fast) * middle
    return jnp.maximum(load + plan.trend * jnp.maximum(quick - middle, 0.0), plan.floor * slow)


@with_carry(rule_start)
def act_by_rule(
    plan: RulePlan, key: jax.Array, seen: FleetObservation, carry: dict[str, jax.Array]
) -> tuple[FleetAction, dict[str, jax.Array]]:
    """A rule's action for one fleet; ``Partial(act_by_rule, plan)`` is a policy.

    An episode begins with what the load needs at the target, or where the metric is no load at 70 % utilisation.
    """
    del key
    time, asked = carry["time"], carry["asked"]
    first = time == 0
    now = jnp.maximum(asked, 1).astype(jnp.float32)
    load = load_of(plan, seen)
    usages = jnp.stack(
        [
            plan.target / now,
            load / (plan.target * now) + plan.spare / now,
            (seen.running + seen.queue) / (plan.target * now),
            seen.queue / (plan.target * now),
            seen.kv_use / plan.target,
            jnp.maximum(seen.ttft, seen.tpot) / plan.target,
            _saturation(plan, seen, now),
            _planner(plan, seen, carry, now),
        ]
    )
    usage = usages[plan.metric]
    wanted = jnp.where(jnp.abs(usage - 1.0) <= plan.tolerance, now, jnp.ceil(usage * now - NEVER))
    wanted = jnp.clip(wanted, now - plan.most_down, now + plan.most_up)
    loads = (plan.metric == LOAD) | (plan.metric == FIXED)
    begin = jnp.where(loads, usages[plan.metric] * now, load / 0.7)
    wanted = jnp.where(first, jnp.ceil(begin - NEVER), wanted)
    wanted = jnp.clip(wanted, 1, GPUS).astype(jnp.int32)
    due = first | (time % plan.period == 0)
    ring = jnp.concatenate([jnp.where(due, wanted, 0)[None], carry["recommended"][:-1]])
    most_in_hold = jnp.max(jnp.where(jnp.arange(RING) < plan.hold, ring, 0))
    asked = jnp.where(due, jnp.where(first, wanted, jnp.maximum(wanted, jnp.minimum(most_in_hold, asked))), asked)
    slow_due = (time + 1) % plan.slow_period == 0
    mean = jnp.where(first, seen.load, carry["mean"] + (seen.load - carry["mean"]) / _since(time, plan))
    slow = jnp.where(first | slow_due, jnp.ceil(mean / plan.target - NEVER).astype(jnp.int32), carry["slow"])
    after = {"recommended": ring, "time": time + 1, "asked": asked, "slow": slow, "mean": mean}
    return FleetAction(gpus=asked, prefill_gpus=plan.prefill_gpus, batch_size=plan.batch_size), after


def _since(time: jax.Array, plan: RulePlan) -> jax.Array:
    """Decisions of the slow loop's interval so far."""
    return (time % plan.slow_period + 1).astype(jnp.float32)


def _saturation(plan: RulePlan, seen: FleetObservation, now: jax.Array) -> jax.Array:
    queue = seen.queue / now
    short = (plan.target - seen.kv_use < 0.1) | (5.0 - queue < 3.0)
    fewer = jnp.maximum(now - 1.0, 1.0)
    spared = (plan.target - seen.kv_use * now / fewer >= 0.1) & (5.0 - seen.queue / fewer >= 3.0)
    return jnp.where(short, (now + 1.0) / now, jnp.where(spared, (now - 1.0) / now, 1.0))


def _planner(plan: RulePlan, seen: FleetObservation, carry: dict[str, jax.Array], now: jax.Array) -> jax.Array:
    worse = jnp.maximum(seen.ttft, seen.tpot)
    step = jnp.where(worse > 1.0, 1.0, jnp.where(worse < 0.8, -1.0, 0.0))
    return jnp.maximum(now + step, carry["slow"].astype(jnp.float32)) / now


def rule(plan: RulePlan) -> Partial:
    """The policy of a plan."""
    return Partial(act_by_rule, plan.as_arrays())


def fixed(gpus: int) -> RulePlan:
    """The plan that always asks for so many GPUs."""
    return RulePlan(metric=FIXED, target=float(gpus))
