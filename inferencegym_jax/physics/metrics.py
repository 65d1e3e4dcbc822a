"""What both dynamics report alike: latency noise, violations, the share of the KV cache in use."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EnvParams, MetricsSnapshot, WorkloadState
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.table.lookup import TableGrid

LATENCY_FLOOR_MS = 1.0


@compile_unit
def latency_noise(seed: jax.Array, step: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two independent factors N(1, sigma): one for both TTFT percentiles of the second (so that p99 stays above p50),
    one for TPOT."""
    first, second, _, _ = random.hash4(seed, step, random.NOISE)
    return 1.0 + sigma * random.normal(first), 1.0 + sigma * random.normal(second)


@compile_unit
def count_violations(
    ttft_p50: jax.Array, workload: WorkloadState, batch_size: jax.Array, oom: jax.Array, slo_ms: jax.Array
) -> jax.Array:
    """int32 requests of classes whose SLO is missed, and rejected ones; out of memory the whole batch at least."""
    shares = workload.priority_distribution
    over = [jnp.where(ttft_p50 > slo_ms[..., i], shares[..., i], 0.0) for i in range(3)]
    over_share = over[0] + over[1] + over[2]
    # an ulp below a whole number must not lose a request
    late = jnp.floor(workload.queue_depth * over_share + 1e-3).astype(jnp.int32) + workload.rejected
    return jnp.where(oom, jnp.maximum(batch_size, 5 * late), late)


def violation_rate(metrics: MetricsSnapshot, queue_depth: jax.Array) -> jax.Array:
    """Violations over requests waiting, in [0, 1]; float32."""
    return jnp.clip(metrics.slo_violations / jnp.maximum(queue_depth, 1), 0.0, 1.0)


def kv_occupancy(grid: TableGrid, memory_gb: jax.Array, quant_tier: jax.Array, params: EnvParams) -> jax.Array:
    """Share of the memory left beside weights and runtime that is in use, in [0, 1]."""
    base = jnp.zeros_like(memory_gb)
    for node, memory in zip(grid.table.axes["quant_tier"], grid.table.base_memory_gb, strict=True):
        base = jnp.where(quant_tier >= node, jnp.float32(memory), base)
    return jnp.clip((memory_gb - base) / jnp.maximum(params.oom_limit_gb - base, 1e-3), 0.0, 1.0)
