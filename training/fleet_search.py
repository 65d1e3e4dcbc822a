"""Settings of the fleet's rule by tokens, searched: once on fleet-anywhere's draws, or on one task's training days.

``settings drawn -> contest on training seeds -> best first``. On fleet-anywhere the price decides, on one task the mean
GPUs at which 99 % of requests are on time.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.fleet.contest import contest
from inferencegym_jax.fleet.failures import named_failures
from inferencegym_jax.fleet.making import TRAINING_SEEDS, anywhere_params
from inferencegym_jax.fleet.rules import REACTIVE, RulePlan
from inferencegym_jax.fleet.spec import FleetSpec, get_fleet
from inferencegym_jax.fleet.statistics import share_on_time
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.traffic.days import SEED_STRIDE

WANTED = 0.99
TUNED_TARGETS = (0.75, 0.65, 0.55, 0.47, 0.4, 0.34)
SETTINGS = ("target", "fast", "trend", "floor", "period", "hold")
CALM_TARGETS = (0.85, 0.77, 0.7, 0.62, 0.55, 0.48)
CALM_HOLDS = (24, 36, 48, 60, 72)
TOLERANCES = (0.0, 0.05, 0.1, 0.15)
CALM_LATE_PRICE = 90.0
"""What a late request costs in the search of a calm rule, in a mean request's GPU time: as in the training of
corrections, which put right what the rule leaves late."""


def frontier(gpus: np.ndarray, share: np.ndarray, wanted: float = WANTED) -> float:
    """Mean GPUs at the wanted share on time: least of the settings that reach it and of straight lines between pairs.

    Args:
        gpus, share: float64[settings].
        wanted: share on time.

    Returns:
        GPUs, NaN where no setting reaches it.
    """
    best = np.inf
    for i in range(len(gpus)):
        if share[i] >= wanted:
            best = min(best, gpus[i])
        for j in range(len(gpus)):
            if share[i] < wanted <= share[j]:
                place = (wanted - share[i]) / (share[j] - share[i])
                best = min(best, gpus[i] + place * (gpus[j] - gpus[i]))
    return float(best) if np.isfinite(best) else float("nan")


def _drawn(rng: np.random.Generator) -> RulePlan:
    return REACTIVE.replace(
        target=float(rng.uniform(0.4, 0.9)),
        fast=float(rng.uniform(0.0, 1.0)),
        trend=float(rng.uniform(0.0, 2.0)),
        floor=float(rng.uniform(0.0, 1.0)),
        period=int(rng.choice((1, 2, 3))),
        hold=int(rng.choice((1, 6, 12, 24, 36, 60))),
    )


def _near(rng: np.random.Generator, plan: RulePlan) -> RulePlan:
    return plan.replace(
        target=float(np.clip(plan.target * rng.uniform(0.92, 1.08), 0.3, 1.0)),
        fast=float(np.clip(plan.fast + rng.normal(0, 0.15), 0, 1)),
        trend=float(np.clip(plan.trend + rng.normal(0, 0.25), 0, 3)),
        floor=float(np.clip(plan.floor + rng.normal(0, 0.15), 0, 1)),
        hold=int(np.clip(round(float(plan.hold) * rng.uniform(0.7, 1.4)), 1, 72)),
    )


def search_rule(settings: int = 200, conditions: int = 16, seed: int = 0) -> list[tuple[RulePlan, float, float]]:
    """Settings of the rule by tokens, searched on fleet-anywhere's training draws.

    Args:
        settings: drawn; a quarter as many again are tried around the best.
        conditions: training conditions, drawn by seeds from 2^31.
        seed: of the settings.

    Returns:
        (plan, mean price over conditions, mean share on time), best first; the price is mean GPUs, and late requests
        at the task's price.
    """
    rng = np.random.default_rng(seed)
    seeds = np.arange(TRAINING_SEEDS, TRAINING_SEEDS + conditions, dtype=np.uint32)
    env, _ = ig.make_fleet("fleet-anywhere")
    params = anywhere_params(seeds.tolist(), env.table)

    def judge(plans: list[RulePlan]) -> list[tuple[RulePlan, float, float]]:
        statistics = contest(env, params, plans, seeds)
        return [
            (plan, float(np.mean(price)), float(np.mean(share)))
            for plan, price, share in zip(plans, statistics.price, statistics.on_time_share, strict=True)
        ]

    rows = sorted(judge([_drawn(rng) for _ in range(settings)]), key=lambda row: row[1])
    best = [row[0] for row in rows[:10]]
    more = judge([_near(rng, best[i % len(best)]) for i in range(settings // 4)])
    return sorted(rows + more, key=lambda row: row[1])


def tune_rule(
    task: str | FleetSpec, shapes: int = 48, days: int = 8, seed: int = 0
) -> list[tuple[RulePlan, float, float]]:
    """Settings of the rule by tokens, searched on a task's training days: each shape (averages, trend, floor, period,
    hold) at every target of ``TUNED_TARGETS``; half as many shapes again are tried around the best.

    Args:
        task: a fleet task.
        shapes: drawn; with the targets six times as many settings.
        days: training days.
        seed: of the shapes.

    Returns:
        (plan, at its target that comes first within 99 %; mean GPUs at 99 % of requests on time; share on time), best
        first; shapes that reach 99 % at no target are left out.
    """
    rng = np.random.default_rng(seed)
    seeds = (TRAINING_SEEDS + SEED_STRIDE * np.arange(days)).astype(np.uint32)
    env, params = ig.make_fleet(get_fleet(task))

    def judge(plans: list[RulePlan]) -> list[tuple[RulePlan, float, float]]:
        crossed = [plan.replace(target=target) for plan in plans for target in TUNED_TARGETS]
        statistics = contest(env, params, crossed, seeds)
        many = len(plans), len(TUNED_TARGETS)
        gpus = statistics.mean_gpus.mean(axis=-1).reshape(many)
        share = share_on_time(statistics.on_time, statistics.judged).reshape(many)
        rows = []
        for i, plan in enumerate(plans):
            if share[i].max() < WANTED:
                continue
            # where the line between two targets reaches the share
            target = float(np.interp(WANTED, np.maximum.accumulate(share[i]), TUNED_TARGETS))
            rows.append((plan.replace(target=target), frontier(gpus[i], share[i]), float(share[i].max())))
        return rows

    rows = sorted(judge([REACTIVE, *(_drawn(rng) for _ in range(shapes - 1))]), key=lambda row: row[1])
    best = [row[0] for row in rows[:6]]
    more = judge([_near(rng, best[i % len(best)]) for i in range(shapes // 2)])
    return sorted(rows + more, key=lambda row: row[1])


def calm_rules(
    task: str | FleetSpec, shapes: int = 48, days: int = 8, seed: int = 0
) -> list[tuple[RulePlan, float, float]]:
    """Settings of the rule by tokens that show none of the named failures on a task's units, searched on its training
    days: each shape, with a long window and a tolerance, at every target of ``CALM_TARGETS``.

    Args:
        task: a fleet task.
        shapes: drawn; with the targets six times as many settings.
        days: training days.
        seed: of the shapes.

    Returns:
        (plan, mean price with late requests at ``CALM_LATE_PRICE``, share on time), best first; settings that show a
        failure are left out.
    """
    rng = np.random.default_rng(seed)
    spec = get_fleet(task)
    env, params = ig.make_fleet(spec)
    seeds = (TRAINING_SEEDS + SEED_STRIDE * np.arange(days)).astype(np.uint32)
    drawn = [
        _drawn(rng).replace(hold=int(rng.choice(CALM_HOLDS)), tolerance=float(rng.choice(TOLERANCES)))
        for _ in range(shapes - 1)
    ]
    plans = [plan.replace(target=target) for plan in (REACTIVE, *drawn) for target in CALM_TARGETS]
    failures = named_failures({str(i): plan for i, plan in enumerate(plans)}, spec, env.table)
    calm = [plan for i, plan in enumerate(plans) if not failures[str(i)].failed]
    if not calm:
        return []
    statistics = contest(env, params.replace(late_price=np.float32(CALM_LATE_PRICE)), calm, seeds)
    share = share_on_time(statistics.on_time, statistics.judged)
    rows = zip(calm, statistics.price.mean(axis=-1).tolist(), share.tolist(), strict=True)
    return sorted(rows, key=lambda row: row[1])


def write_calm(task: str, plan: RulePlan, price: float, settings: int, days: int) -> None:
    """Keep a task's calm rule beside its tuned one in ``data/fleet_rules.json``."""
    path = data_path("fleet_rules.json")
    entries: dict[str, Any] = json.loads(path.read_text())
    values = _plain(plan) | {"tolerance": float(plan.tolerance)}
    entries[task]["calm"] = {"plan": values, "price": round(price, 4), "settings": settings, "training_days": days}
    path.write_text(json.dumps(entries, indent=1) + "\n")


def _plain(plan: RulePlan) -> dict[str, Any]:
    values = {name: float(getattr(plan, name)) for name in SETTINGS}
    return values | {name: int(values[name]) for name in ("period", "hold")}


def write_tuned(task: str, plan: RulePlan, gpus: float, settings: int, days: int) -> None:
    """Keep a task's tuned rule in ``data/fleet_rules.json``; a calm one that stands there stays."""
    path = data_path("fleet_rules.json")
    entries: dict[str, Any] = json.loads(path.read_text())
    entries[task] = entries.get(task, {}) | {
        "plan": _plain(plan),
        "gpus_at_99": round(gpus, 4),
        "settings": settings,
        "training_days": days,
    }
    path.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n")
