"""The reward of one second: throughput wanted, latency, violations and cost not.

SPEC section 4, step 5. Pure function of metrics and params; replace it by passing another to ``Environment``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EnvParams, MetricsSnapshot


def violation_rate(metrics: MetricsSnapshot, queue_depth: jax.Array) -> jax.Array:
    """Violations over requests waiting, in [0, 1]."""
    return jnp.clip(metrics.slo_violations / jnp.maximum(queue_depth, 1), 0.0, 1.0)


def reward(metrics: MetricsSnapshot, queue_depth: jax.Array, params: EnvParams) -> jax.Array:
    """``alpha T - beta L - gamma V - delta C``, clipped to [-1, 1]; float32.

    T = tokens_per_sec / the task's optimal, L = ttft_p50 / SLO of the strictest class, V = violation rate,
    C = cost_per_1k / its normaliser.
    """
    throughput = metrics.tokens_per_sec / params.optimal_tps
    latency = metrics.ttft_p50_ms / params.slo_ms[..., 0]
    cost = metrics.cost_per_1k / params.cost_normaliser
    value = (
        params.alpha * throughput
        - params.beta * latency
        - params.gamma * violation_rate(metrics, queue_depth)
        - params.delta * cost
    )
    return jnp.clip(value, -1.0, 1.0)
