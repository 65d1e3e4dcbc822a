"""What an agent sees of a second: the one place where observations are built, for the simulator and for live servers.

``metrics, workload -> observe -> ServeObservation``. A new field is an entry of ``models.OBSERVATION`` and a line in
``observe``.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from inferencegym_jax.models import OBSERVATION, MetricsSnapshot, Scalar, ServeObservation, WorkloadState
from inferencegym_jax.physics.metrics import violation_rate


def observe(
    metrics: MetricsSnapshot,
    workload: WorkloadState,
    *,
    kv_cache_occupancy: Scalar,
    timestep: Scalar,
    cost_so_far: Scalar,
    slo_violation_rate: Scalar | None = None,
) -> ServeObservation:
    """The observation after a second, each field clipped to its range in ``OBSERVATION``.

    Args:
        metrics: of the second; scalars or batched.
        workload: of the second.
        kv_cache_occupancy: share of the available KV cache in use.
        timestep: steps taken in this episode, with this one.
        cost_so_far: sum of ``cost_per_1k`` over the episode.
        slo_violation_rate: share; default: violations over requests waiting, as the closed loop counts them.

    Returns:
        float32 fields.
    """
    rate = violation_rate(metrics, workload.queue_depth) if slo_violation_rate is None else slo_violation_rate
    values: dict[str, Any] = {
        "queue_depth": workload.queue_depth,
        "mean_prompt_len": workload.mean_prompt_len,
        "arrival_rate": workload.arrival_rate,
        "kv_cache_occupancy": kv_cache_occupancy,
        "ttft_p50": metrics.ttft_p50_ms,
        "tpot_p50": metrics.tpot_ms,
        "slo_violation_rate": rate,
        "gpu_memory_used_gb": metrics.gpu_memory_gb,
        "spec_accept_rate": metrics.spec_accept_rate,
        "priority_distribution": workload.priority_distribution,
        "timestep": timestep,
        "cost_so_far": cost_so_far,
    }
    clipped = {
        name: jnp.clip(jnp.asarray(values[name], jnp.float32), field.low, field.high)
        for name, field in OBSERVATION.items()
    }
    return ServeObservation(**clipped)


def initial_observation(class_shares: Any = (1.0, 0.0, 0.0)) -> ServeObservation:
    """What an agent sees before any request: every field at its lowest, class shares as the task has them.

    Args:
        class_shares: float32[..., 3]; its leading shape is that of every field. Default: a task without classes.
    """
    class_shares = jnp.asarray(class_shares, jnp.float32)
    shape = jnp.shape(class_shares)[:-1]
    lowest: dict[str, Any] = {
        name: jnp.full(shape if field.size == 1 else (*shape, field.size), field.low, jnp.float32)
        for name, field in OBSERVATION.items()
    }
    return ServeObservation(**{**lowest, "priority_distribution": class_shares})
