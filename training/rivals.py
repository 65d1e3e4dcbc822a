"""Who a learned policy is measured against: settings of the load-following controller, searched on training seeds.

``problem, training seeds -> settings drawn, the best ones refined -> plan``. The rules at the defaults that autoscalers
ship with stand here too, and the true load to come, which the same controller may be given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.models import EPISODE_LENGTH, KNOBS, TRAFFIC_DAY, TRAFFIC_FITTED, TRAFFIC_TRACE
from inferencegym_jax.physics.capacity import work_ms
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.policies.load_following import NEVER, LoadPlan
from inferencegym_jax.policies.reactive_control import ReactivePlan
from inferencegym_jax.policies.reactive_control import act as follow_queue
from inferencegym_jax.policies.reactive_plans import plan_for
from inferencegym_jax.tasks.draws import drawn
from inferencegym_jax.traffic.days import SEED_STRIDE, rates_at
from inferencegym_jax.traffic.fitted import log_modulation
from inferencegym_jax.traffic.requests import replay
from training.lanes import WIDTH, of_plans, scores_of

SETTINGS = 256  # drawn at random, and as many again around the best of those
KEPT = 8  # that are refined
TRAINING_SEEDS = 1 << 31
AHEAD_S = 60  # that a forecast looks ahead

DEFAULTS: dict[str, LoadPlan] = {
    "HPA at 80 % utilisation": LoadPlan(average_s=15.0, up_load=0.8, down_share=0.9, hold_s=300.0, every_s=15.0),
    "Knative, 70 running": LoadPlan(
        average_s=60.0, up_load=NEVER, up_running=70.0, down_share=1.0, hold_s=60.0, every_s=2.0
    ),
    "KEDA, 5 waiting": LoadPlan(up_load=NEVER, up_waiting=5.0, down_share=1.0, hold_s=300.0, every_s=30.0),
}
"""Rules as they ship: Kubernetes' horizontal autoscaler (target 80 %, tolerance 10 %, scale-down stabilisation 300 s, a
look every 15 s), Knative (100 requests at a target of 70 %, window 60 s, a look every 2 s), KEDA (cool-down 300 s, a
look
every 30 s) on 5 waiting requests as in vLLM's production stack. Drafts as vLLM's dynamic speculation: to 64 running 4
(it has 3), to 128 one, beyond none. All else at the engine's defaults."""


def training_seeds(count: int) -> np.ndarray:
    """uint32[count], none of which is an evaluation's, nor its day."""
    return (TRAINING_SEEDS + SEED_STRIDE * np.arange(count, dtype=np.uint64)).astype(np.uint32)


def test_seeds(count: int) -> np.ndarray:
    """uint32[count] held-out episodes: of traffic by day, windows of days apart."""
    return (SEED_STRIDE * np.arange(count, dtype=np.uint64)).astype(np.uint32)


def true_load(problem: Problem, seeds: np.ndarray, ahead: int = AHEAD_S) -> np.ndarray:
    """float32[seeds, steps]: the load that comes in the next ``ahead`` seconds, as a share of one GPU's capacity.

    By the rates that requests are drawn from, not by the draws; of a log by its counts.

    Args:
        problem: of an open-loop task whose traffic has rates.
        seeds: episodes.
        ahead: seconds.
    """
    params, length, draws = problem.params, int(problem.params.episode_length), problem.env.draws
    engine, grid = params.engine, iterations_of(problem.table)
    kind = int(engine.traffic)
    trace = None if problem.trace is None else jnp.asarray(problem.trace.rows)

    def load(seed: jax.Array, step: jax.Array) -> jax.Array:
        if draws is not None:
            choice, day = draws.choice(seed), drawn(draws, params, seed).engine.day
            work = draws.pick(draws.pick(draws.work_ms, choice.engine), choice.pool)
            return (rates_at(seed, step, day) * work).sum() / 1000.0
        if kind == TRAFFIC_DAY:
            work = work_ms(grid, engine, engine.day.prompt_mean, engine.day.output_mean)
            return (rates_at(seed, step, engine.day) * work).sum() / 1000.0
        if kind == TRAFFIC_TRACE and trace is not None:
            requests = replay(seed, step, trace, EPISODE_LENGTH)
            return requests.arrivals * work_ms(grid, engine, requests.prompt, requests.output) / 1000.0
        rate = engine.rate * jnp.exp(log_modulation(seed, step, engine)) if kind == TRAFFIC_FITTED else params.rate
        return rate * work_ms(grid, engine, engine.prompt_mean, engine.output_mean) / 1000.0

    steps = jnp.arange(length + ahead)
    by_second = np.asarray(
        jax.jit(jax.vmap(jax.vmap(load, (None, 0)), (0, None)))(jnp.asarray(seeds), steps), np.float64
    )
    total = np.cumsum(by_second, axis=1)
    return ((total[:, ahead:] - total[:, :-ahead]) / ahead).astype(np.float32)


def draw_plans(problem: Problem, count: int, rng: np.random.Generator) -> list[LoadPlan]:
    """Settings drawn over the ranges that engineers try, those that stand for never and always among them."""
    best = problem.best_static
    active = problem.spec.active_knobs
    lengths = [int(x) for x in problem.table.axes["spec_length"]] if "spec_length" in active else [0]

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    held = LoadPlan(batch_size=best.batch_size, kv_budget=best.kv_budget, long_drafts=best.spec_length)
    held = held.replace(short_drafts=best.spec_length, few=NEVER)
    plans = [held.replace(up_load=NEVER), held.replace(up_load=1e-6, hold_s=NEVER)]
    plans[1] = plans[1].replace(average_s=15.0, up_running=1e-6, up_waiting=1e-6)
    later = np.random.default_rng(1)  # of settings that came later: those before stay as they were drawn
    while len(plans) < count:
        few = between(2.0, 128.0)
        drafted = rng.random() < 0.8
        order = sorted(rng.choice(lengths, 2), reverse=True)
        plans.append(
            LoadPlan(
                average_s=between(15.0, 120.0),
                up_load=rng.uniform(0.25, 1.1),
                down_share=rng.uniform(0.5, 0.98),
                up_waiting=between(2.0, 200.0) if rng.random() < 0.7 else NEVER,
                up_running=between(10.0, 400.0) if rng.random() < 0.5 else NEVER,
                hold_s=between(5.0, 180.0),
                few=few if drafted else NEVER,
                many=few * between(1.0, 8.0) if drafted else NEVER,
                long_drafts=int(order[0]) if drafted else int(best.spec_length),
                short_drafts=int(order[1]) if drafted else int(best.spec_length),
                draft_average_s=between(2.0, 30.0),
                margin=rng.uniform(0.0, 0.5),
                batch_size=int(best.batch_size if rng.random() < 0.5 else rng.choice([32, 64, 128, 256, 512])),
                kv_budget=float(best.kv_budget if rng.random() < 0.5 else rng.choice([0.1, 0.175, 0.25, 0.5, 1.0])),
                # one batch size suits no two GPUs, a share of those that run within the objective may
                slots_share=between(0.5, 3.0) if problem.env.draws is not None and rng.random() < 0.6 else 0.0,
                least_slots=float(later.choice([1.0, 8.0, 16.0, 32.0, 64.0])),
                first_s=float(later.random() < 0.5),
            )
        )
    return plans


NUDGED = ("average_s", "up_load", "up_waiting", "up_running", "hold_s", "few", "many", "draft_average_s")
BORROWED = ("batch_size", "slots_share", "least_slots", "first_s", "kv_budget", "long_drafts", "short_drafts")


def refine(plans: list[LoadPlan], count: int, rng: np.random.Generator) -> list[LoadPlan]:
    """Plans near the given ones: thresholds and spans times up to 1.5."""
    near_plans = []
    for i in range(count):
        plan = plans[i % len(plans)]
        changes: dict[str, Any] = {
            name: float(getattr(plan, name) * np.exp(rng.normal(0.0, 0.2)))
            for name in NUDGED
            if getattr(plan, name) < NEVER and rng.random() < 0.6
        }
        changes["down_share"] = float(np.clip(plan.down_share + rng.normal(0.0, 0.06), 0.3, 0.99))
        if plans and rng.random() < 0.3:
            other = plans[rng.integers(len(plans))]
            changes |= {name: getattr(other, name) for name in BORROWED}
        near_plans.append(plan.replace(**changes))
    return near_plans


def mean_scores(
    problem: Problem, plans: list[LoadPlan], seeds: np.ndarray, forecast: np.ndarray | None = None
) -> np.ndarray:
    """float64[plans]: mean score of every plan over the episodes, vmapped."""
    steps, episodes = int(problem.params.episode_length), len(seeds)
    each = max(WIDTH // episodes, 1)
    told = np.full((episodes, steps), np.nan, np.float32) if forecast is None else forecast
    means: list[float] = []
    for start in range(0, len(plans), each):
        part = [plan for plan in plans[start : start + each] for _ in range(episodes)]
        copies = len(part) // episodes
        lanes = of_plans(part, steps, np.tile(told, (copies, 1)))
        scores = scores_of(problem, lanes, np.tile(seeds, copies))
        means.extend(scores.reshape(copies, episodes).mean(axis=1))
    return np.asarray(means)


def begun_otherwise(plan: LoadPlan) -> list[LoadPlan]:
    """A plan, and the same with the second GPU from the first second, and with no fewer slots than some."""
    return [
        plan.replace(first_s=first_s, least_slots=least)
        for first_s in (float(plan.first_s), 1.0)
        for least in (float(plan.least_slots), 16.0, 64.0)
    ]


def search_plans(
    problem: Problem,
    seeds: np.ndarray,
    forecast: np.ndarray | None = None,
    settings: int = SETTINGS,
    known: Sequence[LoadPlan] = (),
) -> tuple[list[LoadPlan], np.ndarray]:
    """Plans by mean score on training seeds, best first.

    Args:
        problem: an open-loop task.
        seeds: training episodes.
        forecast: the load to come on them, see ``true_load``.
        settings: how many are drawn; as many again are tried around the best.
        known: plans that are tried besides.

    Returns:
        (plans, their mean scores float64[plans]).
    """
    rng = np.random.default_rng(0)
    plans = [*draw_plans(problem, settings, rng), *known]
    scores = mean_scores(problem, plans, seeds, forecast)
    best = [plans[i] for i in np.argsort(-scores, kind="stable")[:KEPT]]
    near = refine(best, settings, rng)
    plans = plans + near
    scores = np.concatenate([scores, mean_scores(problem, near, seeds, forecast)])
    order = np.argsort(-scores, kind="stable")
    return [plans[i] for i in order], scores[order]


def follow_planned_queue(key: jax.Array, observation: Any, carry: Any) -> Any:
    """The closed loop's reactive controller with the plan in its carry."""
    return follow_queue(carry, key, observation), carry


def search_queue_plans(problem: Problem, seeds: np.ndarray, settings: int = SETTINGS) -> tuple[ReactivePlan, float]:
    """The reactive controller of a closed-loop task, its bounds and weights searched around the planned ones.

    Returns:
        (the best plan, its mean score).
    """
    rng, planned = np.random.default_rng(0), plan_for(problem.table, problem.params)
    base = jax.tree.map(np.asarray, planned)
    plans: list[ReactivePlan] = [base]
    while len(plans) < settings:
        most = np.float32(np.clip(base.most_batch * np.exp(rng.uniform(-2.0, 0.3)), 1, KNOBS["batch_size"].high))
        plans.append(
            dataclasses.replace(
                base,
                least_batch=np.float32(min(base.least_batch * np.exp(rng.uniform(-1.5, 2.0)), most)),
                most_batch=most,
                queue_weight=np.float32(base.queue_weight * np.exp(rng.uniform(-2.0, 1.5))),
                kv_budget=np.maximum(base.kv_budget * np.float32(rng.uniform(0.3, 1.0)), np.float32(0.1)),
            )
        )
    carry = jax.tree.map(lambda *xs: np.repeat(np.stack(xs), len(seeds), axis=0), *plans)
    statistics = ig.evaluate(
        problem.env, problem.params, follow_planned_queue, np.tile(seeds, len(plans)), carry=carry, carry_axis=0
    )
    scores = problem.score(statistics).reshape(len(plans), len(seeds)).mean(axis=1)
    best = int(np.argmax(scores))
    return plans[best], float(scores[best])


def as_shipped(problem: Problem, plan: LoadPlan) -> LoadPlan:
    """A rule's plan with the engine's own defaults for what it does not touch."""
    drafting = "spec_length" in problem.spec.active_knobs
    defaults: Mapping[str, Any] = problem.table.knob_defaults
    return plan.replace(
        few=64.0,
        many=128.0,
        long_drafts=4 if drafting else 0,
        short_drafts=1 if drafting else 0,
        draft_average_s=1.0,
        margin=0.0,
        batch_size=256,
        kv_budget=float(defaults["kv_budget"]),
    )
