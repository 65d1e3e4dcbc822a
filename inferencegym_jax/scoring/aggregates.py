"""What a batch of episodes came to: ``evaluate`` runs them and keeps one number an environment of each kind."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EnvParams, Trajectory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EpisodeStatistics:
    """What a batch of episodes came to, one number an environment: all that the graders need, and the usual means."""

    total_reward: jax.Array  # float32, return of the episode
    mean_tps: jax.Array  # tokens/s
    mean_ttft_p50_ms: jax.Array
    mean_ttft_p99_ms: jax.Array
    mean_tpot_ms: jax.Array
    peak_memory_gb: jax.Array
    mean_violations: jax.Array  # requests a step
    mean_violation_rate: jax.Array  # share
    total_cost: jax.Array
    batch_jitter: jax.Array  # standard deviation of the step-to-step change of batch_size
    kv_jitter: jax.Array  # the same of kv_budget
    mean_queue: jax.Array  # requests
    rejected: jax.Array  # requests in the episode
    arrivals: jax.Array  # requests in the episode
    evictions: jax.Array  # events in the episode
    oom_share: jax.Array  # share of steps out of memory
    bound_share: jax.Array  # share of rewards at -1 or 1
    goodput: jax.Array  # tokens/s of the seconds whose median TTFT and TPOT meet the strictest class's objectives
    slo_attainment: jax.Array  # share of seconds whose 99th percentile of TTFT and whose TPOT do


SUMS = (
    "reward tps ttft_p50 ttft_p99 tpot violations violation_rate cost queue rejected arrivals evictions oom bound "
    "good attained batch batch_square kv kv_square"
).split()


def accumulate(total: Any, step: Trajectory, task: EnvParams) -> Any:
    """Sums, peak memory and the last continuous knobs after one more step."""
    sums, peak, before = total
    metrics, traffic = step.metrics, step.workload
    knobs = (step.action.batch_size.astype(jnp.float32), step.action.kv_budget)
    slo, quick = task.slo_ms[..., 0], metrics.tpot_ms <= task.engine.slo_tpot_ms[..., 0]
    first = step.observation.timestep == 0
    changes = tuple(jnp.where(first, 0.0, now - then) for now, then in zip(knobs, before, strict=True))
    terms = {
        "reward": step.reward,
        "tps": metrics.tokens_per_sec,
        "ttft_p50": metrics.ttft_p50_ms,
        "ttft_p99": metrics.ttft_p99_ms,
        "tpot": metrics.tpot_ms,
        "violations": metrics.slo_violations,
        "violation_rate": step.next_observation.slo_violation_rate,
        "cost": metrics.cost_per_1k,
        "queue": traffic.queue_depth,
        "rejected": traffic.rejected,
        "arrivals": traffic.arrivals,
        "evictions": metrics.eviction_events,
        "oom": step.oom,
        "bound": jnp.abs(step.reward) >= 1.0,
        "good": jnp.where(quick & (metrics.ttft_p50_ms <= slo), metrics.tokens_per_sec, 0.0),
        "attained": quick & (metrics.ttft_p99_ms <= slo),
        "batch": changes[0],
        "batch_square": changes[0] ** 2,
        "kv": changes[1],
        "kv_square": changes[1] ** 2,
    }
    return {name: sums[name] + terms[name] for name in SUMS}, jnp.maximum(peak, metrics.gpu_memory_gb), knobs


@functools.partial(jax.jit, static_argnums=0)
def summarise(length: int, sums: dict[str, jax.Array], peak: jax.Array) -> EpisodeStatistics:
    """The statistics of episodes of ``length`` steps, from ``accumulate``'s sums and peak memory (GB)."""

    def deviation(name: str) -> jax.Array:
        count = max(length - 1, 1)
        mean = sums[name] / count
        return jnp.sqrt(jnp.maximum(sums[f"{name}_square"] / count - mean * mean, 0.0))

    return EpisodeStatistics(
        total_reward=sums["reward"],
        mean_tps=sums["tps"] / length,
        mean_ttft_p50_ms=sums["ttft_p50"] / length,
        mean_ttft_p99_ms=sums["ttft_p99"] / length,
        mean_tpot_ms=sums["tpot"] / length,
        peak_memory_gb=peak,
        mean_violations=sums["violations"] / length,
        mean_violation_rate=sums["violation_rate"] / length,
        total_cost=sums["cost"],
        batch_jitter=deviation("batch"),
        kv_jitter=deviation("kv"),
        mean_queue=sums["queue"] / length,
        rejected=sums["rejected"],
        arrivals=sums["arrivals"],
        evictions=sums["evictions"],
        oom_share=sums["oom"] / length,
        bound_share=sums["bound"] / length,
        goodput=sums["good"] / length,
        slo_attainment=sums["attained"] / length,
    )
