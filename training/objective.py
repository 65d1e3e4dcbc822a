"""What training maximises: the environment's reward, and with weights above 0 what the grader scores besides.

The reward says nothing of a task's memory limit, which the grader of task 2 asks for, so a policy trained on return alone may score less
than a static action. The environment's reward itself is never changed: returns that are reported are the environment's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax import EnvParams, MetricsSnapshot, TaskSpec
from inferencegym_jax.models import EPISODE_LENGTH


def score_rate(spec: TaskSpec, params: EnvParams, metrics: MetricsSnapshot) -> jax.Array:
    """One second's share in the grader's score (SPEC 6), float32[...], clipped to [-1, 1].

    Its mean over an episode is the score where no component of the grader is clipped, with two differences: task 2's peak memory counts
    in every second above the limit instead of once, and task 3's stability (0.10 of the score, a property of two seconds) is left out.
    """
    if spec.id == 1:
        value = metrics.tokens_per_sec / params.optimal_tps
    elif spec.id == 2:
        value = 1.0 - 0.5 * metrics.ttft_p50_ms / params.slo_ms[0] - 0.5 * memory_excess(params, metrics)
    else:
        value = (
            0.40 * metrics.tokens_per_sec / params.optimal_tps
            + 0.30 * (1.0 - metrics.slo_violations / 100.0)
            + 0.20 * (1.0 - metrics.cost_per_1k * EPISODE_LENGTH / (spec.cost_budget or 5.0))
        )
    return jnp.clip(value, -1.0, 1.0)


def memory_excess(params: EnvParams, metrics: MetricsSnapshot) -> jax.Array:
    """GPU memory above the task's limit in units of 10 GB, the grader's scale; float32[...], at least 0."""
    return jnp.maximum(metrics.gpu_memory_gb - params.memory_limit_gb, 0.0) / 10.0
