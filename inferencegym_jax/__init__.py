"""InferenceGym JAX: a reinforcement-learning environment for LLM inference control, grounded in measured GPU data.

    import inferencegym_jax as ig
    env, params = ig.make(2)
    obs, state = env.reset_seed(7, params)
    obs, state, reward, terminated, truncated, info = env.step(None, state, ig.ServeAction(batch_size=64), params)

Data flows one way: table -> interpolation -> workload -> simulator -> reward -> environment -> rollout.
"""

from inferencegym_jax import grader, policies, wrappers
from inferencegym_jax._version import __version__
from inferencegym_jax.environment import Environment
from inferencegym_jax.episode_statistics import EpisodeStatistics, evaluate
from inferencegym_jax.grader import grade
from inferencegym_jax.models import (
    EnvParams,
    EnvState,
    MetricsSnapshot,
    Phase,
    QuantTier,
    ServeAction,
    ServeObservation,
    WorkloadState,
)
from inferencegym_jax.objects import GraderModule, InferenceEnv, TraceSimulator, WorkloadGenerator
from inferencegym_jax.packed import PackedStep
from inferencegym_jax.registry import make
from inferencegym_jax.rollout import Trajectory, fold, rollout, stack_params
from inferencegym_jax.table import LatencyTable, TableError, load_table
from inferencegym_jax.tasks import TaskSpec, get_task, task_specs
from inferencegym_jax.traces import RequestLog, TraceError, load_trace
from inferencegym_jax.verification import verify

__all__ = [
    "EnvParams",
    "EnvState",
    "Environment",
    "EpisodeStatistics",
    "GraderModule",
    "InferenceEnv",
    "LatencyTable",
    "RequestLog",
    "MetricsSnapshot",
    "PackedStep",
    "Phase",
    "QuantTier",
    "ServeAction",
    "ServeObservation",
    "TableError",
    "TaskSpec",
    "TraceError",
    "TraceSimulator",
    "Trajectory",
    "WorkloadGenerator",
    "WorkloadState",
    "__version__",
    "evaluate",
    "fold",
    "get_task",
    "grade",
    "grader",
    "load_table",
    "load_trace",
    "make",
    "policies",
    "rollout",
    "stack_params",
    "task_specs",
    "verify",
    "wrappers",
]
