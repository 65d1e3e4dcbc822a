"""What the agent sees: range, unit and meaning of each field, written once in ``OBSERVATION``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax.models.checks import plain
from inferencegym_jax.models.engine import Scalar


@dataclass(frozen=True)
class ObservationField:
    """One field of an observation: range, unit and meaning."""

    low: float
    high: float
    unit: str
    description: str
    size: int = 1


EPISODE_LENGTH = 200


QUEUE_CAPACITY = 512


OBSERVATION: dict[str, ObservationField] = {
    "queue_depth": ObservationField(0, QUEUE_CAPACITY, "requests", "requests left waiting after this step's service"),
    "mean_prompt_len": ObservationField(32, 8192, "tokens", "mean prompt length of this step's requests"),
    "arrival_rate": ObservationField(0, 400, "requests/s", "10-step exponential moving average of the arrivals"),
    "kv_cache_occupancy": ObservationField(0, 1, "share", "share of the available KV cache in use"),
    "ttft_p50": ObservationField(0, 5000, "ms", "median time to first token, clipped"),
    "tpot_p50": ObservationField(0, 500, "ms", "median time per output token, clipped"),
    "slo_violation_rate": ObservationField(0, 1, "share", "violations / max(queue_depth, 1), clipped"),
    "gpu_memory_used_gb": ObservationField(0, 80, "GB", "GPU memory in use (1 GB = 1e9 bytes)"),
    "spec_accept_rate": ObservationField(0, 1, "share", "accepted share of the drafted tokens; 0 when drafts are off"),
    "priority_distribution": ObservationField(
        0, 1, "share", "interactive, batch, best-effort shares of the last 50 steps' arrivals", 3
    ),
    "timestep": ObservationField(0, EPISODE_LENGTH, "s", "steps taken in this episode"),
    "cost_so_far": ObservationField(0, math.inf, "cost", "sum of cost_per_1k over the episode"),
}


FLAT_OBSERVATION_SIZE = sum(f.size for f in OBSERVATION.values())  # 14


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ServeObservation:
    """What the agent sees, in natural units; 12 fields, 14 numbers when flattened. Ranges: ``OBSERVATION``."""

    queue_depth: Scalar
    mean_prompt_len: Scalar
    arrival_rate: Scalar
    kv_cache_occupancy: Scalar
    ttft_p50: Scalar
    tpot_p50: Scalar
    slo_violation_rate: Scalar
    gpu_memory_used_gb: Scalar
    spec_accept_rate: Scalar
    priority_distribution: Scalar
    timestep: Scalar
    cost_so_far: Scalar

    def to_array(self) -> jax.Array:
        """Flatten to float32[..., 14] in field order (priority_distribution takes three places)."""
        columns = []
        for name, spec in OBSERVATION.items():
            value = jnp.asarray(getattr(self, name), jnp.float32)
            columns.append(value if spec.size > 1 else value[..., None])
        return jnp.concatenate(columns, axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """The observation of one environment as plain Python numbers (JSON-ready)."""
        return plain(self)
