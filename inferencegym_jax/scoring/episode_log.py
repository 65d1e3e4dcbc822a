"""Episode logs: what an entry holds, and a log's columns as the arrays that are counted; NumPy only.

``step -> log_entry -> log -> read_log -> metrics, action, outcome``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np

from inferencegym_jax.models import KNOBS, MetricsSnapshot, RequestOutcome, ServeAction, finite_number, shown
from inferencegym_jax.tasks import TaskSpec

LogEntry: TypeAlias = Mapping[str, Any]
"""``{"action": {...}, "reward": r, "metrics": {...}}`` with the fields of ``ServeAction`` and ``MetricsSnapshot``; that
of an open-loop task also ``"outcome": {...}`` with those of ``RequestOutcome``."""

METRICS_READ = ("tokens_per_sec", "ttft_p50_ms", "gpu_memory_gb", "slo_violations", "cost_per_1k")
CLASSES = 3  # interactive, batch, best effort
BY_CLASS = ("asked", "on_time", "late", "rejected", "failed")
ROUNDING = 1e-3  # requests: what float32 may leave of none
IN_ALL = ("tokens_asked", "on_time_tokens", "gpu_seconds", "quality")


def is_scored_by_request(spec: TaskSpec) -> bool:
    """Whether a task's score counts requests, as that of an open-loop task does, or seconds."""
    return spec.dynamics == "open_loop"


def log_entry(
    spec: TaskSpec, action: Mapping[str, Any], reward: float, metrics: Mapping[str, Any], outcome: Mapping[str, Any]
) -> dict[str, Any]:
    """The entry of one second, of plain Python numbers; a task that is scored by seconds has no outcome in it."""
    entry = {"action": dict(action), "reward": reward, "metrics": dict(metrics)}
    return entry | {"outcome": dict(outcome)} if is_scored_by_request(spec) else entry


def read_log(
    episode_log: Sequence[LogEntry], spec: TaskSpec
) -> tuple[MetricsSnapshot, ServeAction, RequestOutcome | None]:
    """What the graders count in a non-empty log, as float64 columns (steps,), by class (steps, 3).

    What no grader reads is NaN. Knobs that the task locks, and an entry may therefore lack, stand at their
    default. The outcome is None for a task that is scored by seconds.

    Raises:
        ValueError: an entry lacks a field or holds something that is not a finite number; names entry and field.
    """
    unread = np.full(len(episode_log), np.nan)
    metrics = {f.name: unread for f in fields(MetricsSnapshot)} | {
        name: _column(episode_log, spec, "metrics", name) for name in METRICS_READ
    }
    counted = is_scored_by_request(spec)
    knobs = spec.active_knobs if counted else ("batch_size", "kv_budget")
    action = {name: np.full(len(episode_log), float(knob.default)) for name, knob in KNOBS.items()} | {
        name: _column(episode_log, spec, "action", name) for name in knobs
    }
    outcome = None
    if counted:
        columns = {name: _column(episode_log, spec, "outcome", name, CLASSES) for name in BY_CLASS}
        columns |= {name: _column(episode_log, spec, "outcome", name) for name in IN_ALL}
        outcome = RequestOutcome(present=np.full((len(episode_log), CLASSES), np.nan), **columns)
    return MetricsSnapshot(**metrics), ServeAction(**action), outcome


def _column(episode_log: Sequence[LogEntry], spec: TaskSpec, part: str, name: str, size: int = 1) -> np.ndarray:
    return np.array([_value(entry, spec, part, name, i, size) for i, entry in enumerate(episode_log)])


def _value(entry: Any, spec: TaskSpec, part: str, name: str, i: int, size: int) -> float | list[float]:
    place = f"episode_log[{i}].{part}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get(part), Mapping):
        outcome = ""
        if is_scored_by_request(spec):
            outcome = ", 'outcome': {...}"
        why = f" (task {spec.id} is scored by request)" if part == "outcome" else ""
        raise ValueError(
            f"{place}: missing{why}; a log entry is {{'action': {{...}}, 'reward': r, 'metrics': {{...}}{outcome}}}"
        )
    if name not in entry[part]:
        raise ValueError(f"{place}.{name}: missing")
    value = entry[part][name]
    if size == 1:
        if part == "action" and KNOBS[name].kind == "bool" and isinstance(value, bool | np.bool_):
            return float(value)
        return _number(value, f"{place}.{name}", part)
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or np.shape(value) != (size,):
        raise ValueError(f"{place}.{name} = {shown(value)}: must be {size} numbers, one a class")
    return [_number(one, f"{place}.{name}[{j}]", part) for j, one in enumerate(value)]


def _number(value: Any, place: str, part: str) -> float:
    number = finite_number(value)
    if number is None or abs(number) > 1e12:
        raise ValueError(f"{place} = {shown(value)}: must be a finite number (at most 1e12)")
    if part == "outcome" and number < -ROUNDING:
        raise ValueError(f"{place} = {shown(value)}: must be a finite number of at least 0")
    return number
