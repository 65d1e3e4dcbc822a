"""One step of an episode, or all of them stacked: what ``rollout`` returns and what scores read."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from inferencegym_jax.models.action import ServeAction
from inferencegym_jax.models.metrics import MetricsSnapshot, WorkloadState
from inferencegym_jax.models.observation import ServeObservation
from inferencegym_jax.models.outcome import RequestOutcome


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trajectory:
    """Every step of a batch of episodes; leading axes are (steps, environments)."""

    observation: ServeObservation  # before the action; under a wrapper, here and below, what the wrapper makes of it
    action: ServeAction  # as the policy gave it, or as the wrapper read it
    reward: jax.Array  # float32
    terminated: jax.Array  # bool
    truncated: jax.Array  # bool
    metrics: MetricsSnapshot
    workload: WorkloadState
    outcome: RequestOutcome  # of the second's requests; zeros of a closed-loop task
    oom: jax.Array  # bool
    next_observation: ServeObservation  # after the action; at an episode's end its final observation
    timestep: jax.Array  # int32, seconds of the episode with this one
    violation_rate: jax.Array  # float32, share of the second's requests that violate their objectives
