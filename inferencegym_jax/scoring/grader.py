"""Graders: pure functions of an episode log. Same log, same score, always; no jax computation needed to grade.

Tasks 1 to 3 have a formula each (ENVIRONMENT.md, section 7). An open-loop task is scored by request: what share of the
tokens asked and of the requests came on time, what GPUs that took, how steadily the knobs were held. A closed-loop task
of one's own is scored as task 3. Every component and the score are clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import KNOBS, EnvParams, MetricsSnapshot, RequestOutcome, ServeAction
from inferencegym_jax.scoring.aggregates import Aggregates, aggregate, graded_terms
from inferencegym_jax.scoring.episode_log import BY_CLASS, IN_ALL, LogEntry, is_scored_by_request, read_log
from inferencegym_jax.scoring.formula import (
    COST_BUDGET,
    COST_OF_STATIC,
    JITTER,
    MEMORY_GB,
    ON_TIME_SLACK,
    VIOLATIONS,
    formula,
    stability_weight,
)
from inferencegym_jax.scoring.reasons import reason
from inferencegym_jax.tasks import TaskSpec, calibration_of, get_task


def stability(aggregates: Any) -> Any:
    """How steadily batch_size and kv_budget were held, at most 1: 1 - (std(diff batch) / 512 + std(diff kv)) / 0.5."""
    return 1.0 - (aggregates.batch_jitter / 512.0 + aggregates.kv_jitter) / JITTER


def stability_of_all(aggregates: Any) -> Any:
    """The same of every knob that the task leaves to the agent, each over its highest value; at most 1."""
    return 1.0 - aggregates.knob_jitter / JITTER


def cost_component(aggregates: Any, static_gpus: Any, static_on_time_share: Any) -> Any:
    """1.5 - GPU-seconds / (the best static action's GPUs x seconds); at most 0.5 where more than 0.02 fewer of the
    requests are on time than under the best static action. Late requests buy no GPUs."""
    cost = 1.0 + COST_OF_STATIC - aggregates.gpu_seconds / (static_gpus * aggregates.steps)
    late = aggregates.on_time_share < static_on_time_share - ON_TIME_SLACK
    return cost - (cost - COST_OF_STATIC) * (late & (cost > COST_OF_STATIC))


def components(spec: TaskSpec, aggregates: Any, normalisers: Mapping[str, Any]) -> dict[str, tuple[float, Any]]:
    """What a task's score is made of: component -> (weight, value before it is clipped to [0, 1]).

    Args:
        spec: the task.
        aggregates: ``Aggregates`` of numbers, NumPy or JAX arrays.
        normalisers: see ``score_aggregates``.
    """
    values = _values(spec, aggregates, normalisers)
    return {name: (part.weight, values[name]) for name, part in formula(spec).items()}


def weighted_score(parts: Mapping[str, tuple[float, Any]], clip: Callable[[Any, float, float], Any]) -> Any:
    """The score of ``components``: the weighted sum of the components, each clipped to [0, 1], and clipped itself.

    Args:
        parts: component -> (weight, value).
        clip: ``np.clip``, or ``jnp.clip`` for values that are traced.
    """
    return clip(sum(weight * clip(value, 0.0, 1.0) for weight, value in parts.values()), 0.0, 1.0)


def _values(spec: TaskSpec, aggregates: Any, normalisers: Mapping[str, Any]) -> dict[str, Any]:
    if is_scored_by_request(spec):
        static = normalisers["static_gpus"], normalisers["static_on_time_share"]
        return {
            "goodput_share": aggregates.goodput_share,
            "on_time_share": aggregates.on_time_share,
            "cost": cost_component(aggregates, *static),
            "stability": stability_of_all(aggregates),
            "quality_lost": 1.0 - aggregates.quality,
        }
    optimal, floor = normalisers["optimal_tps"], normalisers.get("throughput_floor", 0.0)
    if spec.id == 1:
        return {"throughput": (aggregates.mean_tps - floor) / (optimal - floor)}
    if spec.id == 2:
        return {
            "latency": 1.0 - aggregates.mean_ttft_p50_ms / spec.slo_ttft_ms[0],
            "memory": 1.0 - (aggregates.peak_memory_gb - spec.memory_limit_gb) / MEMORY_GB,
        }
    return {
        "throughput": aggregates.mean_tps / optimal,
        "slo": 1.0 - aggregates.mean_violations / VIOLATIONS,
        "cost": 1.0 - aggregates.total_cost / (spec.cost_budget or COST_BUDGET),
        "stability": stability(aggregates),
    }


def score_aggregates(
    task: int | str | TaskSpec, aggregates: Any, normalisers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Components and score from what was counted of an episode.

    Args:
        task: id, name or spec.
        aggregates: ``Aggregates`` or ``EpisodeStatistics``; arrays give arrays.
        normalisers: ``optimal_tps`` and ``throughput_floor`` (tokens/s); of an open-loop task ``static_gpus`` (GPUs of
            the best static action) and ``static_on_time_share``; default: the task's on the shipped table.

    Returns:
        Component name -> value in [0, 1], and "score"; NumPy float64.
    """
    spec = get_task(task)
    norms = calibration_of(spec) if normalisers is None else normalisers
    exact = Aggregates(**{f.name: np.asarray(getattr(aggregates, f.name), np.float64) for f in fields(Aggregates)})
    parts = components(spec, exact, norms)
    breakdown = {name: np.clip(value, 0.0, 1.0) for name, (_, value) in parts.items()}
    return breakdown | {"score": weighted_score(parts, np.clip)}


def score_rate(spec: TaskSpec, params: EnvParams, metrics: MetricsSnapshot, outcome: RequestOutcome) -> jax.Array:
    """One second's share in the score, for training and search; float32[...], clipped to [-1, 1].

    The score of an episode whose seconds are all like this one, of ``components`` that are not clipped. Its mean over
    an episode is the score as long as no component of the score is clipped, less those that no second has alone: task
    2's peak memory counts as kept to (1), stability as 0. Requests and tokens on time are measured by the mean second's
    demand, so a quiet second counts little, and the mean is the score where the episode's demand is the mean one.

    Args:
        spec: the task.
        params: the task's, with its normalisers.
        metrics: of the second; JAX arrays of any shape.
        outcome: of the second.
    """
    engine = params.engine
    terms = graded_terms(metrics, outcome, dict.fromkeys(KNOBS, 0.0), engine.class_weights)
    weight = (jnp.asarray(params.class_shares) * engine.class_weights).sum(-1)  # of the mean request
    second = Aggregates(
        steps=spec.episode_length,
        mean_tps=terms["tps"],
        mean_ttft_p50_ms=terms["ttft_p50"],
        peak_memory_gb=spec.memory_limit_gb,
        mean_violations=terms["violations"],
        total_cost=terms["cost"] * spec.episode_length,
        batch_jitter=0.0,
        kv_jitter=0.0,
        knob_jitter=0.0,
        asked=terms["asked"] * spec.episode_length,
        judged=terms["judged"] * spec.episode_length,
        on_time=terms["on_time"] * spec.episode_length,
        on_time_share=terms["weighted_on_time"] / (engine.demand_rps * weight),
        tokens_asked=terms["tokens_asked"] * spec.episode_length,
        goodput=terms["on_time_tokens"],
        goodput_share=terms["on_time_tokens"] / engine.demand_tps,
        gpu_seconds=terms["gpu_seconds"] * spec.episode_length,
        quality=terms["quality"],
    )
    normalisers = {
        "optimal_tps": params.optimal_tps,
        "static_gpus": engine.static_gpus,
        "static_on_time_share": 0.0,  # a second alone may save GPUs
    }
    parts = components(spec, second, normalisers)
    return jnp.clip(sum(weight * value for name, (weight, value) in parts.items() if name != "stability"), -1.0, 1.0)


def unrest(spec: TaskSpec, action: ServeAction, before: ServeAction) -> jax.Array:
    """What a change of knobs costs in a score's stability, as a mean of absolute changes instead of their standard
    deviation; float32[...]. A lone jump costs an episode more by the score than by this.

    Args:
        spec: the task: task 3 and its like are graded on batch_size and kv_budget, an open-loop task on every knob
            that it leaves to the agent.
        action: knobs as arrays.
        before: those of the second before, of the same shape.
    """
    names = spec.active_knobs if is_scored_by_request(spec) else ("batch_size", "kv_budget")
    change = jnp.float32(0.0)
    for name in names:
        now, then = (jnp.asarray(getattr(knobs, name), jnp.float32) for knobs in (action, before))
        change = change + jnp.abs(now - then) / KNOBS[name].most
    return stability_weight(spec) * change / JITTER


def second_score(
    spec: TaskSpec,
    params: EnvParams,
    metrics: MetricsSnapshot,
    outcome: RequestOutcome,
    action: ServeAction,
    before: ServeAction,
    is_first: jax.Array,
) -> jax.Array:
    """The grader's score of one second: ``score_rate`` and, where the task's score counts it, stability; float32[...].

    Its mean over an episode is about the score: the two parts that no second has alone, stability and the cap on the
    cost component, are an approximation (``unrest``) and left out.

    Args:
        spec: see ``score_rate``.
        params: see ``score_rate``.
        metrics: see ``score_rate``.
        outcome: see ``score_rate``.
        action: of the second.
        before: of the one before it.
        is_first: bool, an episode's first second, which has none before it.
    """
    rate = score_rate(spec, params, metrics, outcome)
    weight = stability_weight(spec)
    return rate + weight - jnp.where(is_first, 0.0, unrest(spec, action, before)) if weight else rate


def grade(
    task: int | str | TaskSpec, episode_log: Sequence[LogEntry], normalisers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Score an episode log.

    Args:
        task: id, name or spec.
        episode_log: see ``LogEntry``; an empty log scores 0.
        normalisers: see ``score_aggregates``.

    Returns:
        ``{"score": float, "breakdown": {component: float}, "feedback": str, "complete": bool}``, complete where the log
        holds a whole episode; of an open-loop task also ``"outcome"``: what became of the episode's requests, with
        ``gpu_seconds`` and the mean ``quality``.

    Raises:
        ValueError: unknown task, or an entry that cannot be read (entry and field are named).
    """
    spec = get_task(task)
    if isinstance(episode_log, str | bytes | Mapping) or not isinstance(episode_log, Sequence):
        raise ValueError(f"episode_log: got {type(episode_log).__name__}; must be a list of log entries")
    complete = len(episode_log) == spec.episode_length
    if not episode_log:
        feedback = "The episode log is empty: nothing to score."
        return {"score": 0.0, "breakdown": {}, "feedback": feedback, "complete": complete}
    norms = calibration_of(spec) if normalisers is None else normalisers
    metrics, action, outcome = read_log(episode_log, spec)
    aggregates = aggregate(spec, metrics, action, outcome)
    parts = {name: float(value) for name, value in score_aggregates(spec, aggregates, norms).items()}
    score = parts.pop("score")
    weights = {name: weight for name, (weight, _) in components(spec, aggregates, norms).items()}
    sentences = [f"{spec.title}: score {score:.3f} over {len(episode_log)} steps"]
    sentences += [_on_time(aggregates)] if outcome is not None else []
    sentences += [_missing(parts, weights, lambda name: reason(spec, name, aggregates, norms))]
    if not complete:
        sentences.append(f"Not a whole episode: {len(episode_log)} of {spec.episode_length} steps")
    result = {"score": score, "breakdown": parts, "feedback": ". ".join(sentences) + ".", "complete": complete}
    return result if outcome is None else result | {"outcome": totals(outcome)}


def totals(outcome: RequestOutcome) -> dict[str, float]:
    """An episode's requests and tokens by what became of them, over all classes, its GPU-seconds and mean quality.

    Args:
        outcome: NumPy columns (steps,) and (steps, 3).
    """
    sums = {name: float(np.sum(getattr(outcome, name))) for name in (*BY_CLASS, *IN_ALL)}
    return sums | {"quality": float(np.mean(outcome.quality))}


def _on_time(aggregates: Aggregates) -> str:
    return (
        f"Of {aggregates.judged:,.0f} requests {100 * aggregates.on_time_share:.1f} % were on time, with"
        f" {100 * aggregates.goodput_share:.1f} % of the tokens asked, for {aggregates.gpu_seconds:,.0f} GPU-seconds"
    )


def _missing(parts: Mapping[str, float], weights: Mapping[str, float], why: Callable[[str], str]) -> str:
    """What the component that costs the score most is worth, and why it is no more."""
    lost = {
        name: weight * (1.0 - parts[name]) if weight > 0 else -weight * parts[name] for name, weight in weights.items()
    }
    most = max(lost, key=lambda name: lost[name])
    name, missing = most.replace("_", " "), lost[most]
    if missing <= 0:
        return "Every component is at its best"
    if weights[most] < 0:
        return f"Most is lost to {name}: {missing:.3f} of the score: {why(most)}"
    worth = f"{parts[most]:.3f} of 1, worth {weights[most]:.2f} of the score"
    return f"Most is lost on {name}: {worth}, so {missing:.3f} is missing: {why(most)}"
