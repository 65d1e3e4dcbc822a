"""What control of a fleet is worth: GPU-seconds at 99 % of requests on time, rule by rule, with intervals by day.

``task -> frontiers of rules over their settings, fixed sizes, perfect rates, clairvoyant -> rows -> JSON, Markdown``.
A rule's frontier is its GPU-seconds over the share on time, interpolated to 99 %; an interval resamples the days.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
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
    fixed,
    rule_start,
    tuned_rule,
)
from inferencegym_jax.fleet.spec import FleetSpec, get_fleet
from inferencegym_jax.fleet.state import DECISION_S
from inferencegym_jax.fleet.statistics import FleetStatistics, evaluate_fleet
from inferencegym_jax.fleet.traffic import coming
from inferencegym_jax.policies.policy_file import fleet_playable, load_network
from inferencegym_jax.traffic.days import SEED_STRIDE
from inferencegym_jax.traffic.fitted import log_modulation
from training import fleet_beam
from training.fleet_learned import SHIFTS
from training.fleet_learned import learned as by_policy_file
from training.fleet_search import WANTED, frontier

DAYS, WINDOWS = 24, 36
RESAMPLES = 1000
SETTINGS: tuple[dict[str, Any], ...] = (
    {"clock": 12.0, "start_s": 30.0},
    {"clock": 1.0, "start_s": 100.0, "windows_a_day": 12},
)
"""What every row is measured under: a fast clock with the usual start, and real time, in windows of two hours, with a
slow one."""
LATE_PRICES = (30.0, 90.0, 300.0)  # of the clairvoyant's late requests, times a request's GPU time
TARGETS: dict[str, tuple[RulePlan, tuple[float, ...]]] = {
    "fixed size": (fixed(1), tuple(float(size) for size in range(1, GPUS + 1))),
    "reactive": (REACTIVE, (0.85, 0.75, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.26)),
    "requests in flight": (HPA.replace(metric=IN_FLIGHT), (70, 40, 25, 15, 10)),
    "queue": (HPA.replace(metric=QUEUE), (5.0, 2.0, 1.0, 0.5, 0.2)),
    "latency": (HPA.replace(metric=LATENCY), (1.0, 0.8, 0.65, 0.5, 0.4)),
    "two-loop planner": (DEFAULTS["Dynamo planner"], (1.0, 0.8, 0.65, 0.5, 0.4)),
}
"""Rules and the targets over which their frontier runs, from cheap to dear."""


def shares(on_time: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Share on time of all days' requests, over the last axis."""
    return on_time.sum(axis=-1) / np.maximum(judged.sum(axis=-1), 1e-9)


def resampled(gpus: np.ndarray, on_time: np.ndarray, judged: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """The frontier of each resample of the days: float64[resamples].

    Args:
        gpus, on_time, judged: float64[settings, days].
        picks: int[resamples, days].
    """
    frontiers = []
    for pick in picks:
        frontiers.append(frontier(gpus[:, pick].mean(axis=-1), shares(on_time[:, pick], judged[:, pick])))
    return np.asarray(frontiers)


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
    if isinstance(days, bool) or not isinstance(days, int) or days < 2:
        raise ValueError(f"days = {days!r}: must be a whole number of at least 2")
    began = time.perf_counter()
    spec = get_fleet(task).replace(**(changes or {}))
    env, params = ig.make_fleet(spec)
    stride = 1 if spec.windows_a_day == 1 else SEED_STRIDE
    seeds = (stride * np.arange(days)).astype(np.uint32)
    picks = np.random.default_rng(0).integers(days, size=(RESAMPLES, days))
    plans: list[RulePlan] = []
    labels: list[tuple[str, Any]] = []
    families = {**TARGETS, "tuned on the pool": (tuned_rule(spec.name), TARGETS["reactive"][1])}
    for name, (plan, targets) in families.items():
        for target in targets:
            plans.append(plan.replace(target=target))
            labels.append((name, target))
    report("rules")
    all_rules = contest(env, params, [*plans, *DEFAULTS.values()], seeds)
    settings: dict[str, list[dict[str, Any]]] = {}
    points: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}

    def add(name: str, label: Any, gpus: Any, on_time: Any, judged: Any, changed: Any) -> None:
        points.setdefault(name, []).append((np.asarray(gpus), np.asarray(on_time), np.asarray(judged)))
        settings.setdefault(name, []).append(
            {
                "setting": label,
                "on_time_share": float(shares(np.asarray(on_time), np.asarray(judged))),
                "worst_day": float((np.asarray(on_time) / np.maximum(judged, 1e-9)).min()),
                "gpus": float(np.mean(gpus)),
                "changes_an_hour": float(np.mean(changed)),
            }
        )

    def add_statistics(name: str, label: Any, statistics: FleetStatistics, i: Any = ...) -> None:
        on_time, judged = statistics.on_time[i], statistics.judged[i]
        add(name, label, statistics.mean_gpus[i], on_time, judged, statistics.changes_an_hour[i])

    for i, (name, target) in enumerate(labels):
        add_statistics(name, target, all_rules, i)
    report("fixed splits")
    free = params.replace(active=np.asarray([knob in ("gpus", "prefill_gpus") for knob in FLEET_KNOBS]))
    pairs = [(size, prefill) for size in range(2, spec.gpus + 1) for prefill in range(1, size)]
    by_split = contest(env, free, [fixed(size).replace(prefill_gpus=prefill) for size, prefill in pairs], seeds)
    for i, (size, prefill) in enumerate(pairs):
        add_statistics("fixed split", f"{prefill} + {size - prefill}", by_split, i)
    report("perfect rates")
    targets = TARGETS["reactive"][1]
    for target, statistics in zip(targets, by_true_rates(env, params, targets, seeds), strict=True):
        add_statistics("reactive, true rates", target, statistics)
    for file in learned:
        report(f"learned: {file}")
        statistics = by_policy_file(env, params, file, seeds, SHIFTS)
        for i, shift in enumerate(SHIFTS):
            add_statistics(f"learned, {Path(file).stem}", shift, statistics, i)
    if clairvoyant:
        report("clairvoyant")
        hold = fleet_beam.block_of(params)
        seconds = int(params.episode_length) // hold * hold * DECISION_S
        for price in LATE_PRICES:
            best = fleet_beam.search(env, params, seeds, price * float(params.work_s))
            changed = np.abs(np.diff(best["sizes"], axis=1)).sum(axis=1) / seconds * 3600.0
            on_time = best["judged"] - best["late"]
            add("clairvoyant, at least", price, best["gpu_seconds"] / seconds, on_time, best["judged"], changed)
    rows: list[dict[str, Any]] = []
    for name, by_setting in points.items():
        gpus, on_time, judged = (np.stack(x) for x in zip(*by_setting, strict=True))
        drawn = resampled(gpus, on_time, judged, picks)
        mean = frontier(gpus.mean(axis=-1), shares(on_time, judged))
        reached = np.isfinite(drawn)
        interval = None
        if np.isfinite(mean) and reached.mean() > 0.9:
            low, high = np.percentile(drawn[reached], (2.5, 97.5))
            interval = {"mean": mean, "low": float(low), "high": float(high)}
        rows.append({"rule": name, "gpus": interval, "settings": settings[name]})
    fixed_row = rows[0]["gpus"]
    for row in rows:
        known = row["gpus"] is not None
        row["over_fixed"] = row["gpus"]["mean"] / fixed_row["mean"] - 1.0 if known and fixed_row else None
    defaults = []
    for i, name in enumerate(DEFAULTS, len(labels)):
        add_statistics(name, float(DEFAULTS[name].target), all_rules, i)
        defaults.append({"rule": name, **settings[name][-1]})
    shown: dict[str, Any] = {}
    if failures:
        report("named failures")
        policies = {f"learned, {Path(file).stem}": fleet_playable(*load_network(file)) for file in learned}
        rules = {"reactive": REACTIVE, "tuned on the pool": tuned_rule(spec.name), **DEFAULTS}
        by_rule = named_failures(rules, spec, env.table, policies)
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


def _words(part: Mapping[str, Any]) -> str:
    unit = "days" if part["hours"] > 23.0 else f"windows of {part['hours']:g} h, of days apart"
    return f"x{part['clock']:g}, start {part['start_s']:g} s, {part['days']} {unit}"


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of a task: every row in every setting that was measured."""
    parts = found["parts"] if "parts" in found else [found]
    several = f" ({'; '.join(_words(part) for part in parts)})"
    lines = [
        f"{found['task']}: mean GPUs at 99 % of requests on time, held-out days, 95 % interval over days{several}",
        "",
        "| rule | "
        + " | ".join(f"GPUs at 99 %, {_words(part)} | over best fixed | best setting within 99 %" for part in parts)
        + " |",
        "|" + " --- |" * (1 + 3 * len(parts)),
    ]
    by_rule = [{row["rule"]: row for row in part["rows"]} for part in parts]
    for name in by_rule[0]:
        cells = [cell for rows in by_rule for cell in (_cells(rows[name]) if name in rows else ("", "", ""))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    head = " | ".join(f"on time, {_words(part)} | worst day | mean GPUs | changes an hour" for part in parts)
    lines += ["", f"| rule at its defaults | {head} |", "|" + " --- |" * (1 + 4 * len(parts))]
    for rows in zip(*(part["defaults"] for part in parts), strict=True):
        cells = [
            f"{row['on_time_share']:.2%} | {row['worst_day']:.2%} | {row['gpus']:.2f} | {row['changes_an_hour']:.1f}"
            for row in rows
        ]
        lines.append(f"| {rows[0]['rule']} | " + " | ".join(cells) + " |")
    failures = parts[0]["failures"]
    if not failures:
        return "\n".join(lines)
    lines += [
        "",
        "| rule | changes an hour at constant load (at most 6) | over need in a burst (at most 1) | s until a step is "
        "met | over need under a hopeless objective (at most 1) | on time with an empty cache (at least 95 %) | "
        "fails |",
        "|" + " --- |" * 7,
    ]
    for name, row in failures.items():
        lines.append(
            f"| {name} | {row['changes_an_hour']:.1f} | {row['burst_over']:+.0f} | {row['reaction_s']:.0f} "
            f"({row['step_on_time']:.1%}) | {row['hopeless_over']:+.1f} | {row['empty_cache_on_time']:.1%} | "
            f"{', '.join(row['failed']) or 'none'} |"
        )
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """GPUs at 99 %, what they are over the best fixed size, and the cheapest setting within 99 % (the closest where
    there is none)."""
    gpus, over = row["gpus"], row["over_fixed"]
    inside = [s for s in row["settings"] if s["on_time_share"] >= WANTED]
    best = min(inside, key=lambda s: s["gpus"]) if inside else max(row["settings"], key=lambda s: s["on_time_share"])
    label = best["setting"] if isinstance(best["setting"], str) else f"{best['setting']:g}"
    return (
        "not reached" if gpus is None else f"{gpus['mean']:.2f} [{gpus['low']:.2f}, {gpus['high']:.2f}]",
        "" if over is None else f"{over:+.1%}",
        f"{label}: {best['on_time_share']:.2%}, {best['changes_an_hour']:.1f} changes/h",
    )


def write(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """JSON and Markdown of a task; returns the files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(".json"), stem.with_suffix(".md")]
    paths[0].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(found) + "\n", encoding="utf-8")
    return paths
