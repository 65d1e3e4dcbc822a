"""The task registry: names, numbers and params of each task.

``data/workload_configs.json, data/calibration.json -> TaskSpec -> EnvParams``. Task differences are numbers in
params, so one compiled step serves every task.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.models import EPISODE_LENGTH, KNOBS, EnvParams, finite_number, shown
from inferencegym_jax.table import LatencyTable, data_path

OOM_LIMIT_GB = 40.0
NOISE_SIGMA = 0.05
REWARD_WEIGHTS = ("alpha", "beta", "gamma", "delta")
CONFIG_KEYS = (*REWARD_WEIGHTS, "slo_ttft_ms")


@dataclass(frozen=True)
class TaskSpec:
    """One entry of ``data/workload_configs.json``; see ENVIRONMENT.md for the meaning of each number."""

    name: str
    id: int
    title: str
    difficulty: str
    description: str
    arrivals: dict[str, float]
    prompts: dict[str, Any]
    slo_ttft_ms: tuple[float, ...]
    class_shares: tuple[float, ...]
    memory_limit_gb: float
    acceptance: float
    active_knobs: tuple[str, ...]
    reward: dict[str, float]
    cost_budget: float | None = None


@functools.cache
def task_specs() -> dict[str, TaskSpec]:
    """All tasks by name, in the order of their ids."""
    entries = json.loads(data_path("workload_configs.json").read_text())
    specs = {}
    for name, entry in entries.items():
        slo = tuple(math.inf if x is None else float(x) for x in entry.pop("slo_ttft_ms"))
        shares = tuple(entry.pop("class_shares", [1.0, 0.0, 0.0]))
        knobs = tuple(entry.pop("active_knobs"))
        slo = (slo + (math.inf,) * 3)[:3]
        specs[name] = TaskSpec(name=name, slo_ttft_ms=slo, class_shares=shares, active_knobs=knobs, **entry)
    return specs


def get_task(task: int | str) -> TaskSpec:
    """The task of an id or a name.

    Raises:
        ValueError: there is no such task; the message lists those there are.
    """
    for spec in task_specs().values():
        if task == spec.name or (not isinstance(task, bool | str) and task == spec.id):
            return spec
    known = ", ".join(f"{spec.id} ({spec.name!r})" for spec in task_specs().values())
    raise ValueError(f"task = {shown(task)}: no such task; there are {known}")


@functools.cache
def calibration() -> dict[str, Any]:
    """``data/calibration.json``: the normalisers of each task on the shipped table and how they were found."""
    return json.loads(data_path("calibration.json").read_text())


def check_config(config: Mapping[str, Any] | None) -> dict[str, float]:
    """The overrides of a task's reward weights and SLO, checked.

    Args:
        config: keys among alpha, beta, gamma, delta (weights >= 0) and slo_ttft_ms (> 0, the TTFT objective of the
            strictest class).

    Raises:
        ValueError: unknown key, not a number, not finite, or out of range; the message names key, value and what is
        allowed.
        TypeError: config is not a mapping.
    """
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise TypeError(f"config = {shown(config)}: must be a mapping with keys among {', '.join(CONFIG_KEYS)}")
    checked = {}
    for key, value in config.items():
        if key not in CONFIG_KEYS:
            raise ValueError(f"config key {shown(key)} is unknown; allowed are {', '.join(CONFIG_KEYS)}")
        allowed = "a finite number above 0" if key == "slo_ttft_ms" else "a finite number of at least 0"
        number = finite_number(value)
        if number is None or not 0 <= number <= 1e9 or (key == "slo_ttft_ms" and number == 0):
            raise ValueError(f"config {key} = {shown(value)}: must be {allowed} and at most 1e9")
        checked[key] = number
    return checked


def make_params(
    spec: TaskSpec, table: LatencyTable, normalisers: Mapping[str, float], config: Mapping[str, Any] | None = None
) -> EnvParams:
    """The params pytree of a task: float32, int32 and bool scalars and two vectors of three.

    Args:
        spec: the task.
        table: knobs that it lacks are locked.
        normalisers: ``optimal_tps`` (tokens/s) and ``cost_normaliser`` (cost_per_1k), from calibration.
        config: overrides, see ``check_config``.
    """
    overrides = check_config(config)
    weights = {key: overrides.get(key, spec.reward[key]) for key in REWARD_WEIGHTS}
    slo = np.asarray(spec.slo_ttft_ms, np.float32)
    if "slo_ttft_ms" in overrides:
        slo[0] = overrides["slo_ttft_ms"]
    arrivals, prompts = spec.arrivals, spec.prompts
    active = [name in spec.active_knobs and name not in table.locked_knobs for name in KNOBS]
    numbers: dict[str, float] = {
        "rate": arrivals["rate"],
        "burst_rate": arrivals.get("burst_rate", arrivals["rate"]),
        "short_low": prompts["low"],
        "short_high": prompts["high"],
        "long_low": prompts.get("long_low", prompts["low"]),
        "long_high": prompts.get("long_high", prompts["high"]),
        "long_share": prompts.get("long_share", 0.0),
        "log_mean": prompts.get("log_mean", 0.0),
        "log_sigma": prompts.get("log_sigma", 0.0),
        "memory_limit_gb": spec.memory_limit_gb,
        "oom_limit_gb": OOM_LIMIT_GB,
        "acceptance": spec.acceptance,
        "optimal_tps": normalisers["optimal_tps"],
        "cost_normaliser": normalisers["cost_normaliser"],
        "noise_sigma": NOISE_SIGMA,
        **weights,
    }
    return EnvParams(
        task_id=np.int32(spec.id),
        burst_period=np.int32(arrivals.get("burst_period", EPISODE_LENGTH)),
        burst_start=np.int32(arrivals.get("burst_start", 0)),
        burst_length=np.int32(arrivals.get("burst_length", 0)),
        lognormal=np.bool_(prompts["kind"] == "lognormal"),
        class_shares=np.asarray(spec.class_shares, np.float32),
        slo_ms=slo,
        active=np.asarray(active),
        episode_length=np.int32(EPISODE_LENGTH),
        **{key: np.float32(value) for key, value in numbers.items()},
    )
