"""Graders: pure functions of an episode log. Same log, same score, always; NumPy only, no jax needed to grade.

Formulas: ENVIRONMENT.md, section 7, for tasks 1 to 3; all others are scored alike, by goodput (DistServe, Zhong et al.
2024: what is served within both latency objectives), SLO attainment, cost and stability. Every component and the score
are clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.models import EPISODE_LENGTH, finite_number, shown
from inferencegym_jax.tasks import TaskSpec, calibration_of, get_task

LAST_OWN = 3  # tasks up to this one have graders of their own
LogEntry = Mapping[str, Any]
"""``{"action": {...}, "reward": r, "metrics": {...}}`` with the fields of ``ServeAction`` and ``MetricsSnapshot``."""

LATENCIES_READ = ("ttft_p99_ms", "tpot_ms")  # besides, by the general grader
METRICS_READ = ("tokens_per_sec", "ttft_p50_ms", "gpu_memory_gb", "slo_violations", "cost_per_1k")


@dataclass(frozen=True)
class Aggregates:
    """What the graders read of an episode; numbers, or arrays with one entry an episode."""

    mean_tps: Any
    mean_ttft_p50_ms: Any
    peak_memory_gb: Any
    mean_violations: Any
    total_cost: Any
    batch_jitter: Any  # standard deviation of the step-to-step change of batch_size
    kv_jitter: Any
    goodput: Any = 0.0  # tokens/s of the seconds whose median TTFT and TPOT meet the objectives
    slo_attainment: Any = 0.0  # share of seconds whose 99th percentile of TTFT and whose TPOT do
    steps: Any = EPISODE_LENGTH


def aggregate(episode_log: Sequence[LogEntry], spec: TaskSpec | None = None) -> Aggregates:
    """Aggregates of a non-empty log, in float64; with an open-loop task's spec also those of the general grader.

    Raises:
        ValueError: an entry lacks a field or holds something that is not a finite number; names entry and field.
    """
    metrics = {
        name: np.array([_number(log, "metrics", name, i) for i, log in enumerate(episode_log)])
        for name in METRICS_READ + (LATENCIES_READ if spec is not None and spec.id > LAST_OWN else ())
    }
    actions = {
        name: np.array([_number(log, "action", name, i) for i, log in enumerate(episode_log)])
        for name in ("batch_size", "kv_budget")
    }
    jitter = {name: float(np.std(np.diff(x))) if len(x) > 1 else 0.0 for name, x in actions.items()}
    good, attained = 0.0, 0.0
    if spec is not None and spec.id > LAST_OWN:
        median, tail = objectives_met(spec, *(metrics[name] for name in ("ttft_p50_ms", *LATENCIES_READ)))
        good = float(np.where(median, metrics["tokens_per_sec"], 0.0).mean())
        attained = float(tail.mean())
    return Aggregates(
        goodput=good,
        slo_attainment=attained,
        steps=len(episode_log),
        mean_tps=float(metrics["tokens_per_sec"].mean()),
        mean_ttft_p50_ms=float(metrics["ttft_p50_ms"].mean()),
        peak_memory_gb=float(metrics["gpu_memory_gb"].max()),
        mean_violations=float(metrics["slo_violations"].mean()),
        total_cost=float(metrics["cost_per_1k"].sum()),
        batch_jitter=jitter["batch_size"],
        kv_jitter=jitter["kv_budget"],
    )


def objectives_met(spec: TaskSpec, ttft_p50_ms: Any, ttft_p99_ms: Any, tpot_ms: Any) -> tuple[Any, Any]:
    """Whether a second's median TTFT, and its 99th percentile, meet the objective, each together with TPOT; bool
    arrays."""
    slo, quick = spec.slo_ttft_ms[0], np.asarray(tpot_ms) <= spec.slo_tpot_ms
    return quick & (np.asarray(ttft_p50_ms) <= slo), quick & (np.asarray(ttft_p99_ms) <= slo)


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


def stability(found: Any) -> Any:
    """How steadily the knobs were held, in [0, 1]: 1 - clip((std(diff batch) / 512 + std(diff kv)) / 0.5)."""
    unrest = np.asarray(found.batch_jitter) / 512.0 + np.asarray(found.kv_jitter)
    return 1.0 - np.clip(unrest / 0.5, 0.0, 1.0)


def score_aggregates(
    task: int | str | TaskSpec, found: Any, normalisers: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Components and score from aggregates.

    Args:
        task: id, name or spec.
        found: ``Aggregates`` or ``rollout.EpisodeStatistics``; arrays give arrays.
        normalisers: ``optimal_tps`` and ``throughput_floor`` (tokens/s); default: the task's on the shipped table.

    Returns:
        Component name -> value in [0, 1], and "score".
    """
    spec = get_task(task)
    norms = calibration_of(spec) if normalisers is None else normalisers
    optimal, floor = norms["optimal_tps"], norms.get("throughput_floor", 0.0)

    def clip(value: Any) -> Any:
        return np.clip(np.asarray(value, np.float64), 0.0, 1.0)

    if spec.id == 1:
        parts = {"throughput": (1.0, clip((np.asarray(found.mean_tps) - floor) / (optimal - floor)))}
    elif spec.id == 2:
        over = np.asarray(found.peak_memory_gb, np.float64) - spec.memory_limit_gb
        parts = {
            "latency": (0.5, clip(1.0 - np.asarray(found.mean_ttft_p50_ms) / spec.slo_ttft_ms[0])),
            "memory": (0.5, np.where(over < 0, 1.0, clip(1.0 - over / 10.0))),
        }
    elif spec.id > LAST_OWN:
        steps = getattr(found, "steps", EPISODE_LENGTH)
        mean_cost = np.asarray(found.total_cost) / steps
        parts = {
            "goodput": (0.40, clip(np.asarray(found.goodput) / optimal)),
            "slo": (0.30, clip(found.slo_attainment)),
            "cost": (0.20, clip(1.0 - mean_cost / (2.0 * norms["cost_normaliser"]))),
            "stability": (0.10, stability(found)),
        }
    else:
        budget = spec.cost_budget or 5.0
        parts = {
            "throughput": (0.40, clip(np.asarray(found.mean_tps) / optimal)),
            "slo": (0.30, clip(1.0 - np.asarray(found.mean_violations) / 100.0)),
            "cost": (0.20, clip(1.0 - np.asarray(found.total_cost) / budget)),
            "stability": (0.10, stability(found)),
        }
    score = clip(sum(weight * value for weight, value in parts.values()))
    return {name: value for name, (_, value) in parts.items()} | {"score": score}


def grade(
    task: int | str, episode_log: Sequence[LogEntry], normalisers: Mapping[str, float] | None = None
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
        name: float(value) for name, value in score_aggregates(spec, aggregate(episode_log, spec), normalisers).items()
    }
    score = parts.pop("score")
    weakest = min(parts, key=lambda name: parts[name])
    feedback = (
        f"{spec.title}: score {score:.3f} over {len(episode_log)} steps;"
        f" weakest component {weakest} at {parts[weakest]:.3f}."
    )
    return {"score": score, "breakdown": parts, "feedback": feedback}
