"""A task as numbers: ``TaskSpec, table, normalisers -> EnvParams``.

Task differences are numbers in params, so one compiled step serves every task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
import numpy as np

from inferencegym_jax.models import (
    EPISODE_LENGTH,
    KNOBS,
    REPLICA,
    REWARD_WEIGHTS,
    TRAFFIC_DAY,
    TRAFFIC_FITTED,
    TRAFFIC_TRACE,
    DayTraffic,
    EngineParams,
    EnvParams,
    finite_number,
    shown,
)
from inferencegym_jax.table import LatencyTable, TableError, profile_of
from inferencegym_jax.tasks.checks import DYNAMICS, LEAST_OBJECTIVE_MS, MOST_CONFIG, SECOND_GPU
from inferencegym_jax.tasks.draws import base_engine
from inferencegym_jax.tasks.pools import day_traffic
from inferencegym_jax.tasks.spec import TaskSpec
from inferencegym_jax.traffic.days import mix_of
from inferencegym_jax.traffic.request_log import RequestLog

NOISE_SIGMA = 0.05
KIND = "chat"  # of the acceptance lengths, where a task or a log states none
OBJECTIVES = ("slo_ttft_ms", "slo_tpot_ms")
CONFIG_KEYS = (*REWARD_WEIGHTS, *OBJECTIVES)
NORMALISERS = ("optimal_tps", "cost_normaliser", "throughput_floor")
OPEN_LOOP_NORMALISERS = ("demand_tps", "demand_rps", "static_gpus", "static_on_time_share")
"""What rewards and graders divide by, of every task and of an open-loop one besides; from calibration or a search."""

NOT_NORMALISED: dict[str, float] = dict.fromkeys((*NORMALISERS, *OPEN_LOOP_NORMALISERS), 1.0)
"""For the search that finds them."""


def check_config(config: Mapping[str, Any] | None) -> dict[str, float]:
    """The overrides of a task's reward weights and objectives, checked.

    Args:
        config: keys among alpha, beta, gamma, delta (weights >= 0), slo_ttft_ms (ms, the TTFT objective of the
            strictest class) and slo_tpot_ms (ms, the objective on the time per output token; open-loop tasks only),
            both at least ``LEAST_OBJECTIVE_MS``; all at most ``MOST_CONFIG``.

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
        least = LEAST_OBJECTIVE_MS if key in OBJECTIVES else 0.0
        number = finite_number(value)
        if number is None or not least <= number <= MOST_CONFIG:
            raise ValueError(
                f"config {key} = {shown(value)}: must be a finite number from {least:g} to {MOST_CONFIG:g}"
            )
        checked[key] = number
    return checked


def dynamics_of(spec: TaskSpec, dynamics: str | None, trace: RequestLog | None) -> str:
    """The dynamics that serve a task: those asked for, else open-loop for a replayed log, else the task's own.

    Raises:
        ValueError: dynamics that there are not, or that the task cannot have.
    """
    own = spec.dynamics if trace is None else "open_loop"
    wanted = own if dynamics is None else dynamics
    if wanted not in DYNAMICS:
        raise ValueError(f"dynamics = {shown(wanted)}: must be one of {', '.join(DYNAMICS)}")
    if wanted == "closed_loop" and (trace is not None or spec.traffic is not None):
        what = "a replayed log" if trace is not None else f"task {spec.id}'s traffic, fitted to a log,"
        raise ValueError(f"dynamics = 'closed_loop': {what} is served open_loop only")
    return wanted


def engine_params(
    spec: TaskSpec, table: LatencyTable, dynamics: str | None = None, trace: RequestLog | None = None
) -> EngineParams:
    """The open-loop part of a task's params.

    Args:
        spec: the task.
        table: its metadata hold the engine's overhead and the mean output of tasks that state none.
        dynamics: "open_loop" makes any task one; default: the task's own.
        trace: a request log to replay instead of the task's traffic.

    Raises:
        ValueError: dynamics that there are not, or that the task cannot have.
    """
    wanted = dynamics_of(spec, dynamics, trace)
    if wanted == "closed_loop":
        return _engine({})
    profile = profile_of(table)
    engine: dict[str, Any] = {
        "open_loop": 1,
        "overhead_ms": profile.overhead_ms,
        "overhead_ms_per_sequence": profile.overhead_ms_per_sequence,
        "path_ms": profile.path_ms,
        "first_token_iterations": profile.first_token_extra_iterations,
        "token_budget": profile.tokens_per_iteration,
        "memory_gb": profile.memory_gb,
        "draft_share": profile.draft_share,
        "acceptance_lengths": profile.acceptance_lengths[KIND],
        "link_gb_s": profile.host_link_gb_s,
        "slo_tpot_ms": spec.tpot_objectives_ms,
        "output_mean": table.output_length,
    }
    engine |= {key: SECOND_GPU.index(value) if key == "second_gpu" else value for key, value in spec.switching.items()}
    if trace is not None:
        engine |= {
            "traffic": TRAFFIC_TRACE,
            "rate": trace.rate,
            "prompt_mean": trace.mean_prompt,
            "output_mean": trace.mean_output,
            "prompt_cv": trace.prompt_cv,
            "output_cv": trace.output_cv,
            "length_correlation": trace.length_correlation,
            "arrival_scv": trace.arrival_scv,
        }
    elif spec.has_kinds and spec.traffic is not None:
        day = day_traffic(spec.traffic, profile)
        with jax.ensure_compile_time_eval():  # params are made now, also where a caller is being traced
            mean = mix_of(day.rate, day)
        engine |= {
            "traffic": TRAFFIC_DAY,
            "day": day,
            "rate": mean.rate,
            "prompt_mean": mean.prompt,
            "prompt_cv": mean.prompt_cv,
            "output_mean": mean.output,
            "output_cv": mean.output_cv,
            "length_correlation": mean.correlation,
            "arrival_scv": mean.dispersion,
            "prefix_share": mean.prefix_share,
            "acceptance_lengths": mean.acceptance,
        }
    elif spec.traffic is not None:
        fitted = spec.traffic
        engine |= {
            "traffic": TRAFFIC_FITTED,
            "rate": fitted["rate"],
            "modulation": fitted["sigma"],
            "periods": fitted["periods"],
            "prompt_mean": fitted["prompt"]["mean"],
            "prompt_cv": fitted["prompt"]["cv"],
            "output_mean": fitted["output"]["mean"],
            "output_cv": fitted["output"]["cv"],
        }
    return _engine(engine)


def _engine(stated: Mapping[str, Any]) -> EngineParams:
    """``EngineParams`` as NumPy arrays; what is not found is its default."""
    values = {f.name: stated.get(f.name, f.default) for f in fields(EngineParams)}
    day: DayTraffic = values.pop("day")
    windows = {f.name: np.asarray(getattr(day, f.name), _engine_dtype(f.name)) for f in fields(DayTraffic)}
    numbers = {name: np.asarray(value, _engine_dtype(name)) for name, value in values.items()}
    return EngineParams(day=DayTraffic(**windows), **numbers)


def _engine_dtype(name: str) -> type:
    whole = ("open_loop", "table", "traffic", "periods", "queue_capacity", "second_gpu", "windows")
    return np.int32 if name in whole else np.float32


def gpu_memory_gb(spec: TaskSpec, table: LatencyTable, dynamics: str) -> float:
    """Memory (GB) of the GPU: of a closed-loop task what the task says, if it does, else what the table's engine
    profile says.

    Raises:
        ValueError: neither says it; the message names what to add.
    """
    if dynamics == "closed_loop" and spec.gpu_memory_gb is not None:
        return spec.gpu_memory_gb
    try:
        return profile_of(table).memory_gb
    except TableError as error:
        raise ValueError(
            f"task {spec.name!r}: neither the task's gpu_memory_gb nor an engine profile of table {table.name!r} says "
            f"how much memory the GPU has; add gpu_memory_gb to the task, or: {error}"
        ) from error


def make_params(
    spec: TaskSpec,
    table: LatencyTable,
    normalisers: Mapping[str, float],
    config: Mapping[str, Any] | None = None,
    dynamics: str | None = None,
    trace: RequestLog | None = None,
) -> EnvParams:
    """The params pytree of a task: float32, int32 and bool scalars and two vectors of three.

    Args:
        spec: the task.
        table: knobs that it lacks are locked.
        normalisers: see ``NORMALISERS``; ``optimal_tps`` in tokens/s, ``cost_normaliser`` in cost_per_1k; of open-loop
            dynamics also ``demand_tps`` (tokens/s), ``demand_rps`` (requests/s) and ``static_gpus``.
        config: overrides, see ``check_config``.
        dynamics: see ``engine_params``.
        trace: see ``engine_params``.

    Raises:
        ValueError: an override, or dynamics, that the task cannot have; see ``engine_params`` and ``gpu_memory_gb``.
    """
    overrides = check_config(config)
    weights = {key: overrides.get(key, spec.reward.get(key, weight.default)) for key, weight in REWARD_WEIGHTS.items()}
    slo = np.asarray(spec.slo_ttft_ms, np.float32)
    if "slo_ttft_ms" in overrides:
        slo[0] = overrides["slo_ttft_ms"]
    engine = engine_params(spec, table, dynamics, trace)
    if spec.draws is not None and trace is None:
        overridden = [name for name in OBJECTIVES if name in overrides]
        if overridden:
            raise ValueError(f"config {overridden[0]}: task {spec.id} draws its objectives for each episode")
        engine = base_engine(engine)
    if engine.open_loop:
        scales = {name: np.float32(normalisers[name]) for name in ("demand_tps", "demand_rps", "static_gpus")}
        own = (overrides["slo_tpot_ms"],) * 3 if "slo_tpot_ms" in overrides else spec.tpot_objectives_ms
        tpot = np.asarray(own, np.float32)
        engine = engine.replace(slo_tpot_ms=tpot, class_weights=np.asarray(spec.class_weights, np.float32), **scales)
    elif "slo_tpot_ms" in overrides:
        raise ValueError(f"config slo_tpot_ms: task {spec.id} has no objective on TPOT; only open-loop tasks have")
    arrivals, prompts = spec.arrivals, spec.prompts
    memory = gpu_memory_gb(spec, table, dynamics_of(spec, dynamics, trace))
    # the open loop's watermark is no column of a table, nor is a replica, which is the same engine once more
    free = {"kv_budget"} if engine.open_loop else set[str]()
    if engine.open_loop and int(engine.second_gpu) == REPLICA and table.axes["prefill_disagg"] == (0.0,):
        free.add("prefill_disagg")
    locked = [name for name in table.locked_knobs if name not in free]
    active = [name in spec.active_knobs and name not in locked for name in KNOBS]
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
        "memory_limit_gb": memory if spec.memory_limit_gb is None else spec.memory_limit_gb,
        "oom_limit_gb": memory,
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
        episode_length=np.int32(spec.episode_length),
        engine=engine,
        **{key: np.float32(value) for key, value in numbers.items()},
    )
