"""Graders: pure functions of an episode log. Same log, same score, always; no jax computation needed to grade.

Tasks 1 to 3 have a formula each; all others are scored alike, by goodput (DistServe, Zhong et al. 2024: what is served
within both latency objectives), SLO attainment, cost and stability (ENVIRONMENT.md, section 7). Every component and
the score are clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import (
    EPISODE_LENGTH,
    EnvParams,
    MetricsSnapshot,
    ServeAction,
    finite_number,
    shown,
)
from inferencegym_jax.scoring.aggregates import JITTER_KNOBS, Aggregates, aggregate, graded_terms
from inferencegym_jax.tasks import TaskSpec, calibration_of, get_task

LAST_OWN = 3  # tasks up to this one have graders of their own
LogEntry: TypeAlias = Mapping[str, Any]
"""``{"action": {...}, "reward": r, "metrics": {...}}`` with the fields of ``ServeAction`` and ``MetricsSnapshot``."""

METRICS_READ = ("tokens_per_sec", "ttft_p50_ms", "gpu_memory_gb", "slo_violations", "cost_per_1k")
LATENCIES_READ = ("ttft_p99_ms", "tpot_ms")  # besides, of the tasks after LAST_OWN


def read_log(episode_log: Sequence[LogEntry], spec: TaskSpec) -> Aggregates:
    """Aggregates of a non-empty log, in float64.

    Raises:
        ValueError: an entry lacks a field or holds something that is not a finite number; names entry and field.
    """
    read = METRICS_READ + (LATENCIES_READ if spec.id > LAST_OWN else ())
    unread = np.full(len(episode_log), np.nan)  # meets no objective
    metrics = {field.name: unread for field in fields(MetricsSnapshot)} | _columns(episode_log, "metrics", read)
    action = ServeAction(**_columns(episode_log, "action", JITTER_KNOBS))
    return aggregate(MetricsSnapshot(**metrics), action, spec.slo_ttft_ms[0], spec.slo_tpot_ms)


def _columns(episode_log: Sequence[LogEntry], part: str, names: Sequence[str]) -> dict[str, Any]:
    return {name: np.array([_number(log, part, name, i) for i, log in enumerate(episode_log)]) for name in names}


def _number(entry: Any, part: str, name: str, i: int) -> float:
    where = f"episode_log[{i}].{part}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get(part), Mapping):
        raise ValueError(f"{where}: missing; a log entry is {{'action': {{...}}, 'reward': r, 'metrics': {{...}}}}")
    if name not in entry[part]:
        raise ValueError(f"{where}.{name}: missing")
    value = entry[part][name]
    number = finite_number(value)
    if number is None or abs(number) > 1e12:
        raise ValueError(f"{where}.{name} = {shown(value)}: must be a finite number (at most 1e12)")
    return number


def stability(aggregates: Any) -> Any:
    """How steadily the knobs were held, at most 1: 1 - (std(diff batch) / 512 + std(diff kv)) / 0.5."""
    return 1.0 - (aggregates.batch_jitter / 512.0 + aggregates.kv_jitter) / 0.5


def components(spec: TaskSpec, aggregates: Any, normalisers: Mapping[str, Any]) -> dict[str, tuple[float, Any]]:
    """What a task's score is made of: component -> (weight, value before it is clipped to [0, 1]).

    Args:
        spec: the task.
        aggregates: ``Aggregates`` of numbers, NumPy or JAX arrays.
        normalisers: see ``score_aggregates``.
    """
    optimal, floor = normalisers["optimal_tps"], normalisers.get("throughput_floor", 0.0)
    if spec.id == 1:
        return {"throughput": (1.0, (aggregates.mean_tps - floor) / (optimal - floor))}
    if spec.id == 2:
        return {
            "latency": (0.5, 1.0 - aggregates.mean_ttft_p50_ms / spec.slo_ttft_ms[0]),
            "memory": (0.5, 1.0 - (aggregates.peak_memory_gb - spec.memory_limit_gb) / 10.0),
        }
    if spec.id > LAST_OWN:
        mean_cost = aggregates.total_cost / aggregates.steps
        return {
            "goodput": (0.40, aggregates.goodput / optimal),
            "slo": (0.30, aggregates.slo_attainment),
            "cost": (0.20, 1.0 - mean_cost / (2.0 * normalisers["cost_normaliser"])),
            "stability": (0.10, stability(aggregates)),
        }
    return {
        "throughput": (0.40, aggregates.mean_tps / optimal),
        "slo": (0.30, 1.0 - aggregates.mean_violations / 100.0),
        "cost": (0.20, 1.0 - aggregates.total_cost / (spec.cost_budget or 5.0)),
        "stability": (0.10, stability(aggregates)),
    }


def score_aggregates(
    task: int | str | TaskSpec, aggregates: Any, normalisers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Components and score from what was counted of an episode.

    Args:
        task: id, name or spec.
        aggregates: ``Aggregates`` or ``EpisodeStatistics``; arrays give arrays.
        normalisers: ``optimal_tps`` and ``throughput_floor`` (tokens/s), ``cost_normaliser``; default: the task's
            on the shipped table.

    Returns:
        Component name -> value in [0, 1], and "score"; NumPy float64.
    """
    spec = get_task(task)
    norms = calibration_of(spec) if normalisers is None else normalisers
    exact = Aggregates(**{f.name: np.asarray(getattr(aggregates, f.name), np.float64) for f in fields(Aggregates)})
    parts = {name: (weight, np.clip(x, 0.0, 1.0)) for name, (weight, x) in components(spec, exact, norms).items()}
    score = np.clip(sum(weight * value for weight, value in parts.values()), 0.0, 1.0)
    return {name: value for name, (_, value) in parts.items()} | {"score": score}


def score_rate(spec: TaskSpec, params: EnvParams, metrics: MetricsSnapshot) -> jax.Array:
    """One second's share in the score, for training and search; float32[...], clipped to [-1, 1].

    The score of an episode whose seconds are all like this one, of ``components`` that are not clipped. Its mean over
    an episode is the score as long as no component of the score is clipped, less the two that no second has alone:
    task 2's peak memory counts as kept to (1), stability as 0.

    Args:
        spec: the task.
        params: the task's, with its normalisers and objectives.
        metrics: of the second; JAX arrays of any shape.
    """
    change = dict.fromkeys(JITTER_KNOBS, 0.0)
    terms = graded_terms(metrics, change, params.slo_ms[..., 0], params.engine.slo_tpot_ms[..., 0])
    second = Aggregates(
        mean_tps=terms["tps"],
        mean_ttft_p50_ms=terms["ttft_p50"],
        peak_memory_gb=spec.memory_limit_gb,
        mean_violations=terms["violations"],
        total_cost=terms["cost"] * EPISODE_LENGTH,
        batch_jitter=0.0,
        kv_jitter=0.0,
        goodput=terms["good"],
        slo_attainment=terms["attained"],
        steps=EPISODE_LENGTH,
    )
    normalisers = {"optimal_tps": params.optimal_tps, "cost_normaliser": params.cost_normaliser}
    parts = components(spec, second, normalisers)
    return jnp.clip(sum(weight * value for name, (weight, value) in parts.items() if name != "stability"), -1.0, 1.0)


def grade(
    task: int | str, episode_log: Sequence[LogEntry], normalisers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Score an episode log.

    Args:
        task: id or name.
        episode_log: entries ``{"action": {...}, "reward": r, "metrics": {...}}``; an empty log scores 0.
        normalisers: see ``score_aggregates``.

    Returns:
        ``{"score": float, "breakdown": {component: float}, "feedback": str}``.

    Raises:
        ValueError: unknown task, or an entry that cannot be read (entry and field are named).
    """
    spec = get_task(task)
    if isinstance(episode_log, str | bytes | Mapping) or not isinstance(episode_log, Sequence):
        raise ValueError(f"episode_log: got {type(episode_log).__name__}; must be a list of log entries")
    if not episode_log:
        return {"score": 0.0, "breakdown": {}, "feedback": "The episode log is empty: nothing to score."}
    parts = {
        name: float(value) for name, value in score_aggregates(spec, read_log(episode_log, spec), normalisers).items()
    }
    score = parts.pop("score")
    weakest = min(parts, key=lambda name: parts[name])
    feedback = (
        f"{spec.title}: score {score:.3f} over {len(episode_log)} steps;"
        f" weakest component {weakest} at {parts[weakest]:.3f}."
    )
    return {"score": score, "breakdown": parts, "feedback": feedback}
