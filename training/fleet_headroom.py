"""What control of a fleet is worth: GPU-seconds at 99 % of requests on time, rule by rule, with intervals by day.

``task -> frontiers of rules over their settings, fixed sizes, perfect rates, clairvoyant -> rows``.
A rule's frontier is its GPU-seconds over the share on time, interpolated to 99 %; an interval resamples the days.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.fleet.action import FLEET_KNOBS, GPUS
from inferencegym_jax.fleet.contest import contest
from inferencegym_jax.fleet.failures import named_failures
from inferencegym_jax.fleet.rules import (
    DEFAULTS,
    HPA,
    IN_FLIGHT,
    LATENCY,
    QUEUE,
    REACTIVE,
    RulePlan,
    act_by_rule,
    calm_rule,
    fixed,
    rule_start,
    tuned_rule,
)
from inferencegym_jax.fleet.spec import FleetSpec, get_fleet
from inferencegym_jax.fleet.state import DECISION_S
from inferencegym_jax.fleet.statistics import FleetStatistics, evaluate_fleet
from inferencegym_jax.fleet.traffic import coming
from inferencegym_jax.models import check_whole
from inferencegym_jax.policies.policy_file import fleet_playable, load_network
from inferencegym_jax.traffic.fitted import log_modulation
from training import fleet_beam
from training.fleet_learned import SHIFTS
from training.fleet_learned import learned as by_policy_file
from training.fleet_points import SETTINGS, Points, seeds_of, setting_of
from training.fleet_search import WANTED

DAYS, WINDOWS = 24, 36
LATE_PRICES = (12, 40, 130, 400)
"""Of the clairvoyant's late requests, times a request's GPU time: the two in the middle, and where the share asked for
is not between theirs the one beyond."""
TARGETS: dict[str, tuple[RulePlan, tuple[float, ...]]] = {
    "fixed size": (fixed(1), tuple(float(size) for size in range(1, GPUS + 1))),
    "reactive": (REACTIVE, (0.85, 0.75, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.26)),
    "requests in flight": (HPA.replace(metric=IN_FLIGHT), (70, 40, 25, 15, 10)),
    "queue": (HPA.replace(metric=QUEUE), (5.0, 2.0, 1.0, 0.5, 0.2)),
    "latency": (HPA.replace(metric=LATENCY), (1.0, 0.8, 0.65, 0.5, 0.4)),
    "two-loop planner": (DEFAULTS["Dynamo planner"], (1.0, 0.8, 0.65, 0.5, 0.4)),
}
"""Rules and the targets over which their frontier runs, from cheap to dear."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def expected_load(env: ig.FleetEnvironment, steps: int, params: ig.FleetParams, seeds: jax.Array) -> jax.Array:
    """float32[days, steps]: GPUs that each decision's rates keep busy, counts and lengths at their means."""

    def at(seed: jax.Array, scale: jax.Array, step: jax.Array) -> jax.Array:
        mix = coming(seed, step, scale, params, None).mix
        swing = jnp.exp(log_modulation(seed, DECISION_S * step + DECISION_S // 2, params.engine))
        return mix.rate * swing * (mix.prompt * params.prompt_gpus + mix.output * params.output_gpus)

    scale = jax.vmap(lambda seed: env.reset_seed(seed, params)[1].scale)(seeds)
    return jax.vmap(lambda seed, own: jax.vmap(lambda step: at(seed, own, step))(jnp.arange(steps)))(seeds, scale)


def act_by_true_rates(key: jax.Array, seen: Any, carry: Any) -> tuple[Any, Any]:
    """The rule by tokens, told the true rates: their mean from now until a GPU asked for now has served 15 s."""
    plan, ahead, memory = carry
    now = ahead[jnp.minimum(memory["time"], len(ahead) - 1)]
    zero = jnp.zeros_like(now)
    told = dataclasses.replace(
        seen, prompt_load_15s=now, output_load_15s=zero, prompt_load_2min=now, output_load_2min=zero
    )
    action, memory = act_by_rule(plan, key, told, memory)
    return action, (plan, ahead, memory)


def by_true_rates(
    env: ig.FleetEnvironment, params: ig.FleetParams, targets: Sequence[float], seeds: np.ndarray
) -> list[FleetStatistics]:
    """Statistics of the rule that knows the rates, a target each."""
    steps = int(params.episode_length)
    load = np.asarray(expected_load(env, steps, params, jnp.asarray(seeds, jnp.uint32)), np.float64)
    until = max(1, round((float(params.start_s) + 15.0) / DECISION_S))
    sums = np.concatenate([np.zeros((len(seeds), 1)), np.cumsum(load, axis=1)], axis=1)
    last = np.minimum(np.arange(steps) + until, steps)
    ahead = ((sums[:, last] - sums[:, :-1]) / (last - np.arange(steps))).astype(np.float32)
    plan = REACTIVE.replace(fast=1.0, trend=0.0, floor=0.0)
    statistics = []
    for target in targets:
        own = jax.tree.map(lambda x: np.broadcast_to(x, len(seeds)), plan.replace(target=target).as_arrays())
        memory = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (len(seeds), *np.shape(x))), rule_start(plan))
        carry = own, ahead, memory
        statistics.append(evaluate_fleet(env, params, act_by_true_rates, seeds, carry=carry, carry_axis=0))
    return statistics


def measure(
    task: str | FleetSpec,
    days: int = DAYS,
    *,
    changes: Mapping[str, Any] | None = None,
    clairvoyant: bool = True,
    failures: bool = True,
    learned: Sequence[str | Path] = (),
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that ``python -m training fleet-headroom`` prints of one setting.

    Args:
        task: a fleet task.
        days: held-out ones, at least 2; of a task with several windows a day as many windows, of days apart.
        changes: fields of the task that differ.
        clairvoyant: whether to search for it.
        failures: whether the rules are played through the named failures.
        learned: policy files.
        report: told what runs.

    Returns:
        ``{"task", "days", "rows": [{"rule", "gpus": {"mean", "low", "high"} or None, "over_fixed", "settings"}],
        "defaults", "failures", "seconds"}``; GPUs are mean GPUs at 99 % of requests on time.

    Raises:
        ValueError: fewer than two days, or no such task.
    """
    check_whole("days", days, 2)
    began = time.perf_counter()
    spec = get_fleet(task).replace(**(changes or {}))
    env, params = ig.make_fleet(spec)
    seeds = seeds_of(spec, days)
    plans: list[RulePlan] = []
    labels: list[tuple[str, Any]] = []
    targets = TARGETS["reactive"][1]
    own_rules = {"tuned on the pool": tuned_rule(spec.name), "calm": calm_rule(spec.name)}
    families = {**TARGETS, **{name: (plan, targets) for name, plan in own_rules.items()}}
    for name, (plan, own_targets) in families.items():
        for target in own_targets:
            plans.append(plan.replace(target=target))
            labels.append((name, target))
    report("rules")
    all_rules = contest(env, params, [*plans, *DEFAULTS.values()], seeds)
    points = Points(days)
    for i, (name, target) in enumerate(labels):
        points.add_statistics(name, target, all_rules, i)
    report("fixed splits")
    free = params.replace(active=np.asarray([knob in ("gpus", "prefill_gpus") for knob in FLEET_KNOBS]))
    pairs = [(size, prefill) for size in range(2, spec.gpus + 1) for prefill in range(1, size)]
    by_split = contest(env, free, [fixed(size).replace(prefill_gpus=prefill) for size, prefill in pairs], seeds)
    for i, (size, prefill) in enumerate(pairs):
        points.add_statistics("fixed split", f"{prefill} + {size - prefill}", by_split, i)
    report("perfect rates")
    for target, statistics in zip(targets, by_true_rates(env, params, targets, seeds), strict=True):
        points.add_statistics("reactive, true rates", target, statistics)
    _add_learned(points, env, params, seeds, learned, report)
    if clairvoyant:
        _add_clairvoyant(points, env, params, seeds, report)
    rows = points.rows()
    statistics_of = (all_rules.mean_gpus, all_rules.on_time, all_rules.judged, all_rules.changes_an_hour)
    defaults = [
        {"rule": name, **setting_of(float(DEFAULTS[name].target), *(column[i] for column in statistics_of))}
        for i, name in enumerate(DEFAULTS, len(labels))
    ]
    shown: dict[str, Any] = {}
    if failures:
        report("named failures")
        by_rule = named_failures({"reactive": REACTIVE, **own_rules, **DEFAULTS}, spec, env.table, _policies(learned))
        shown = {name: row.to_dict() for name, row in by_rule.items()}
    return {
        "task": spec.name,
        "clock": spec.clock,
        "start_s": spec.start_s,
        "version": ig.__version__,
        "days": days,
        "hours": spec.decisions * DECISION_S * spec.clock / 3600.0,
        "rows": rows,
        "defaults": defaults,
        "failures": shown,
        "seconds": time.perf_counter() - began,
    }


def _policies(files: Sequence[str | Path]) -> dict[str, Policy]:
    return {_name_of(file): fleet_playable(*load_network(file)) for file in files}


def _name_of(file: str | Path) -> str:
    return f"learned, {Path(file).stem}"


def _add_learned(
    points: Points,
    env: ig.FleetEnvironment,
    params: ig.FleetParams,
    seeds: np.ndarray,
    files: Sequence[str | Path],
    report: Callable[[str], None],
) -> None:
    for file in files:
        report(f"learned: {file}")
        statistics = by_policy_file(env, params, file, seeds, SHIFTS)
        for i, shift in enumerate(SHIFTS):
            points.add_statistics(_name_of(file), shift, statistics, i)


def _add_clairvoyant(
    points: Points,
    env: ig.FleetEnvironment,
    params: ig.FleetParams,
    seeds: np.ndarray,
    report: Callable[[str], None],
) -> None:
    hold = fleet_beam.block_of(params)
    seconds = int(params.episode_length) // hold * hold * DECISION_S

    def play(price: float) -> float:
        report(f"clairvoyant, a late request at {price:g}")
        best = fleet_beam.search(env, params, seeds, price * float(params.work_s))
        changed = np.abs(np.diff(best["sizes"], axis=1)).sum(axis=1) / seconds * 3600.0
        on_time, gpus = best["judged"] - best["late"], best["gpu_seconds"] / seconds
        return points.add("clairvoyant, at least", price, gpus, on_time, best["judged"], changed)["on_time_share"]

    least, low, high, most = LATE_PRICES
    share_low, share_high = play(low), play(high)
    if share_low >= WANTED:
        play(least)
    if share_high < WANTED:
        play(most)


def with_learned(
    measured: Mapping[str, Any], files: Sequence[str | Path], report: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """What was measured, with rows of policy files in place of those that stand there under the same name: only they
    are played, on the same days.

    Args:
        measured: of ``measure_both``.
        files: of learned policies.
        report: told what runs.

    Raises:
        ValueError, FileNotFoundError: a file cannot be used.
    """
    names = [_name_of(file) for file in files]
    parts = []
    for part in measured["parts"]:
        changes = next(x for x in SETTINGS if (x["clock"], x["start_s"]) == (part["clock"], part["start_s"]))
        spec = get_fleet(measured["task"]).replace(**changes)
        env, params = ig.make_fleet(spec)
        points = Points(part["days"])
        _add_learned(points, env, params, seeds_of(spec, part["days"]), files, report)
        fixed_row = next(row for row in part["rows"] if row["rule"] == "fixed size")
        rows = [row for row in part["rows"] if row["rule"] not in names] + points.rows(fixed_row)
        failures = {name: row for name, row in part["failures"].items() if name not in names}
        if part["failures"]:
            shown = named_failures({}, spec, env.table, _policies(files))
            failures |= {name: row.to_dict() for name, row in shown.items()}
        parts.append({**part, "rows": rows, "failures": failures})
    return {**measured, "parts": parts}


def measure_both(task: str | FleetSpec, days: int = DAYS, windows: int = WINDOWS, **options: Any) -> dict[str, Any]:
    """``measure`` with the fast clock and the usual start, and at real time with a slow one.

    Args:
        task: a fleet task.
        days: held-out ones at the fast clock.
        windows: of two hours at real time, each of another day.
        options: of ``measure``; the named failures are played once.

    Returns:
        ``{"task", "parts": [measure's, measure's]}``.
    """
    options = {**options}
    first = measure(task, days, changes=SETTINGS[0], **options)
    second = measure(task, windows, changes=SETTINGS[1], **{**options, "failures": False})
    return {"task": first["task"], "version": first["version"], "parts": [first, second]}
