"""InferenceGym JAX: the first vectorised RL environment for LLM inference control on measured GPU kernels.

    import inferencegym_jax as ig
    env, params = ig.make(2)
    obs, state = env.reset_seed(7, params)
    obs, state, reward, terminated, truncated, info = env.step(None, state, ig.ServeAction(batch_size=64), params)

Data flows one way through the rooms (folders); ``docs/architecture.md`` draws them, ``tests/test_rooms.py`` holds the
order.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from inferencegym_jax import moved_modules, policies
from inferencegym_jax._version import __version__
from inferencegym_jax.adapters import wrappers
from inferencegym_jax.adapters.stateful import GraderModule, InferenceEnv, TraceSimulator, WorkloadGenerator
from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.jit import jit
from inferencegym_jax.episodes.rollout import evaluate, fold, rollout, stack_params
from inferencegym_jax.episodes.single_step import SingleStep
from inferencegym_jax.fleet.action import FleetAction
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.making import make_fleet
from inferencegym_jax.fleet.spec import FleetSpec
from inferencegym_jax.fleet.state import FleetParams
from inferencegym_jax.fleet.statistics import evaluate_fleet
from inferencegym_jax.models import (
    EnvParams,
    EnvState,
    MetricsSnapshot,
    Phase,
    QuantTier,
    RequestOutcome,
    ServeAction,
    ServeObservation,
    Trajectory,
    WorkloadState,
)
from inferencegym_jax.registry import Problem, make, problem, register, register_file, unregister
from inferencegym_jax.scoring import grader
from inferencegym_jax.scoring.aggregates import EpisodeStatistics
from inferencegym_jax.scoring.grader import grade
from inferencegym_jax.table.latency_table import LatencyTable, TableError, load_table
from inferencegym_jax.tasks import TaskSpec, get_task, task_specs
from inferencegym_jax.traffic.request_log import RequestLog, TraceError, load_trace
from inferencegym_jax.verification import verify

__all__ = [
    "EnvParams",
    "EnvState",
    "Environment",
    "EpisodeStatistics",
    "FleetAction",
    "FleetEnvironment",
    "FleetParams",
    "FleetSpec",
    "GraderModule",
    "InferenceEnv",
    "LatencyTable",
    "RequestLog",
    "RequestOutcome",
    "MetricsSnapshot",
    "Phase",
    "Problem",
    "QuantTier",
    "ServeAction",
    "ServeObservation",
    "SingleStep",
    "TableError",
    "TaskSpec",
    "TraceError",
    "TraceSimulator",
    "Trajectory",
    "WorkloadGenerator",
    "WorkloadState",
    "__version__",
    "evaluate",
    "evaluate_fleet",
    "fold",
    "get_task",
    "grade",
    "grader",
    "jit",
    "load_table",
    "load_trace",
    "make",
    "make_fleet",
    "policies",
    "problem",
    "register",
    "register_file",
    "rollout",
    "stack_params",
    "task_specs",
    "unregister",
    "verify",
    "wrappers",
]

RENAMED = {"PackedStep": "SingleStep"}
"""Public names of version 0.1 -> today's."""

moved_modules.install()


def __getattr__(name: str) -> Any:
    """``ig.client`` on first use, as it needs httpx (extra ``client``), which the library itself does not; and old
    names, with a warning."""
    if name == "client":
        return importlib.import_module("inferencegym_jax.adapters.client")
    if name in RENAMED:
        warnings.warn(
            f"{__name__}.{name} is now {__name__}.{RENAMED[name]}; the old name goes in version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return globals()[RENAMED[name]]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
