"""What one second of serving measured, and its traffic."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import jax

from inferencegym_jax.models.engine import Scalar


class Phase(enum.IntEnum):
    """Where an episode stands in its burst calendar."""

    WARMUP = 0
    STEADY = 1
    BURST = 2
    COOLDOWN = 3


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MetricsSnapshot:
    """What one second of serving measured. Scalars for one environment, batched under vmap."""

    ttft_p50_ms: Scalar  # float32, ms
    ttft_p99_ms: Scalar  # float32, ms
    tpot_ms: Scalar  # float32, ms
    tokens_per_sec: Scalar  # float32, output tokens/s
    gpu_memory_gb: Scalar  # float32, GB, capped at 40
    cost_per_1k: Scalar  # float32, cost per 1,000 output tokens
    spec_accept_rate: Scalar  # float32, share
    eviction_events: Scalar  # int32
    slo_violations: Scalar  # int32, requests


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WorkloadState:
    """The traffic of one second. ``arrivals``, ``served`` and ``rejected`` account for every request of the step."""

    arrival_rate: Scalar  # float32, requests/s, 10-step exponential moving average
    mean_prompt_len: Scalar  # float32, tokens
    prompt_len_bucket: Scalar  # int32, 0 to 7
    queue_depth: Scalar  # int32, requests left waiting after service
    priority_distribution: Scalar  # float32[3], shares: interactive, batch, best effort
    is_burst: Scalar  # bool
    phase: Scalar  # int32, a Phase
    arrivals: Scalar  # int32, requests that arrived in this step
    served: Scalar  # int32, requests taken from the queue in this step
    rejected: Scalar  # int32, requests turned away because the queue was full, or lost when memory ran out
    running: Scalar = 0  # int32, open loop: requests in the decode batch after the step; there `served` has finished
