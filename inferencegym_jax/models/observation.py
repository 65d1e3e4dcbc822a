"""What the agent sees: range, unit and meaning of each field, written once in ``OBSERVATION``.

A new field is an entry of ``OBSERVATION`` and a field of ``ServeObservation``, in the same order, and a line in
``physics/observation.py`` that says what it is read from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax.models.checks import plain
from inferencegym_jax.models.engine import Scalar
from inferencegym_jax.models.metrics import COST_UNIT
from inferencegym_jax.models.quantity import Quantity


@dataclass(frozen=True, kw_only=True)
class ObservationField(Quantity):
    """One field of an observation: what a ``Quantity`` says, and its range.

    Attributes:
        low, high: bounds; what lies beyond is clipped (the metrics hold it whole).
        unit_at: the value that is 1 when normalised, and from which on it stays 1; default: ``high``.
    """

    low: float
    high: float
    unit_at: float = math.nan

    @property
    def full(self) -> float:
        """The value that is 1 when normalised."""
        return self.high if math.isnan(self.unit_at) else self.unit_at


EPISODE_LENGTH = 200
"""Steps of an episode where a task states none."""
LONGEST_EPISODE = 86400
"""Steps that an episode may have: a day."""


QUEUE_CAPACITY = 512


COST_BOUND = 1e6  # of an episode


OBSERVATION: dict[str, ObservationField] = {
    "queue_depth": ObservationField(
        low=0,
        high=QUEUE_CAPACITY,
        unit="requests",
        scale="log",
        description="requests left waiting after this step's service",
    ),
    "mean_prompt_len": ObservationField(
        low=32, high=8192, unit="tokens", scale="log", description="mean prompt length of this step's requests"
    ),
    "arrival_rate": ObservationField(
        low=0,
        high=400,
        unit="requests/s",
        scale="log",
        description="10-step exponential moving average of the arrivals",
    ),
    "kv_cache_occupancy": ObservationField(
        low=0, high=1, unit="share", digits=2, description="share of the available KV cache in use"
    ),
    "ttft_p50": ObservationField(
        low=0, high=5000, unit="ms", scale="log", description="median time to first token, clipped"
    ),
    "tpot_p50": ObservationField(
        low=0, high=500, unit="ms", scale="log", digits=1, description="median time per output token, clipped"
    ),
    "slo_violation_rate": ObservationField(
        low=0,
        high=1,
        unit="share",
        digits=2,
        description="violations over the requests that wait (tasks 1 to 3) or that were asked for (open loop), clipped",
    ),
    "gpu_memory_used_gb": ObservationField(
        low=0, high=80, unit="GB", digits=1, description="GPU memory in use (1 GB = 1e9 bytes)"
    ),
    "spec_accept_rate": ObservationField(
        low=0, high=1, unit="share", digits=2, description="accepted share of the drafted tokens; 0 when drafts are off"
    ),
    "priority_distribution": ObservationField(
        low=0,
        high=1,
        unit="share",
        size=3,
        digits=2,
        description="interactive, batch, best-effort shares of the last 50 steps' arrivals",
    ),
    "timestep": ObservationField(
        low=0,
        high=LONGEST_EPISODE,
        unit_at=EPISODE_LENGTH,
        unit="s",
        description="steps taken in this episode, at most its length; 1 when normalised from 200 on",
    ),
    "cost_so_far": ObservationField(
        low=0,
        high=COST_BOUND,
        unit_at=99,
        unit=COST_UNIT,
        scale="log",
        digits=2,
        description="sum of cost_per_1k over the episode; 1 when normalised from 99 on",
    ),
}


FLAT_OBSERVATION_SIZE = sum(field.size for field in OBSERVATION.values())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ServeObservation:
    """What the agent sees, in natural units; each float32 or a short vector. Ranges: ``OBSERVATION``."""

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
        """Flatten to float32[..., FLAT_OBSERVATION_SIZE] in field order; a vector takes a place for each number."""
        columns = []
        for name, spec in OBSERVATION.items():
            value = jnp.asarray(getattr(self, name), jnp.float32)
            columns.append(value if spec.size > 1 else value[..., None])
        return jnp.concatenate(columns, axis=-1)

    @classmethod
    def from_array(cls, array: Any) -> ServeObservation:
        """The observation that ``to_array`` flattened, float32[..., FLAT_OBSERVATION_SIZE] in natural units.

        Raises:
            ValueError: another number of numbers.
        """
        array = jnp.asarray(array, jnp.float32)
        if array.ndim < 1 or array.shape[-1] != FLAT_OBSERVATION_SIZE:
            raise ValueError(f"observation: shape {array.shape}; must end in {FLAT_OBSERVATION_SIZE} numbers")
        values: dict[str, jax.Array] = {}
        start = 0
        for name, spec in OBSERVATION.items():
            values[name] = array[..., start : start + spec.size] if spec.size > 1 else array[..., start]
            start += spec.size
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The observation of one environment as plain Python numbers (JSON-ready)."""
        return plain(self)
