"""What is counted of an episode: one definition of the sums and one of the summary.

``seconds -> graded_terms, other_terms -> sums over the episode -> summarise``. ``evaluate`` adds second by second on
the device (``accumulate``); ``grade`` and the server's /rollout hold whole episodes as NumPy arrays (``aggregate``);
training scores a single second (``grader.score_rate``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import EnvParams, MetricsSnapshot, ServeAction, Trajectory

JITTER_KNOBS: tuple[str, ...] = ("batch_size", "kv_budget")  # whose steadiness is graded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Aggregates:
    """What the graders read of an episode; numbers, or arrays with one entry an episode."""

    mean_tps: Any  # tokens/s
    mean_ttft_p50_ms: Any
    peak_memory_gb: Any
    mean_violations: Any  # requests a second
    total_cost: Any
    batch_jitter: Any  # standard deviation of the step-to-step change of batch_size
    kv_jitter: Any  # the same of kv_budget
    goodput: Any  # tokens/s of the seconds whose median TTFT and whose TPOT meet the strictest class's objectives
    slo_attainment: Any  # share of seconds whose 99th percentile of TTFT and whose TPOT do
    steps: Any  # seconds counted


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EpisodeStatistics(Aggregates):
    """What a batch of episodes came to, one number an environment: all that the graders need, and the usual means."""

    total_reward: jax.Array  # float32, return of the episode
    mean_ttft_p99_ms: jax.Array
    mean_tpot_ms: jax.Array
    mean_violation_rate: jax.Array  # share
    mean_queue: jax.Array  # requests
    rejected: jax.Array  # requests in the episode
    arrivals: jax.Array  # requests in the episode
    evictions: jax.Array  # events in the episode
    oom_share: jax.Array  # share of steps out of memory
    bound_share: jax.Array  # share of rewards at -1 or 1


GRADED = (
    "steps",
    "tps",
    "ttft_p50",
    "violations",
    "cost",
    "good",
    "attained",
    *(name + part for name in JITTER_KNOBS for part in ("", "_square")),
)
OTHERS = ("reward", "ttft_p99", "tpot", "violation_rate", "queue", "rejected", "arrivals", "evictions", "oom", "bound")
SUMS = (*GRADED, *OTHERS)


def graded_terms(
    metrics: MetricsSnapshot, change: Mapping[str, Any], slo_ttft_ms: Any, slo_tpot_ms: Any
) -> dict[str, Any]:
    """What the graders sum over the seconds of an episode, by the names in ``GRADED``.

    NumPy or JAX arrays of any shape: one second, or all seconds of many episodes.

    Args:
        metrics: of the seconds.
        change: change of each of ``JITTER_KNOBS`` since the second before, 0 in an episode's first.
        slo_ttft_ms: the strictest class's objective, ms.
        slo_tpot_ms: objective on the time per output token, ms.
    """
    quick = metrics.tpot_ms <= slo_tpot_ms
    terms = {
        "steps": 1.0,
        "tps": metrics.tokens_per_sec,
        "ttft_p50": metrics.ttft_p50_ms,
        "violations": metrics.slo_violations,
        "cost": metrics.cost_per_1k,
        "good": metrics.tokens_per_sec * (quick & (metrics.ttft_p50_ms <= slo_ttft_ms)),
        "attained": quick & (metrics.ttft_p99_ms <= slo_ttft_ms),
    }
    for name in JITTER_KNOBS:
        terms |= {name: change[name], f"{name}_square": change[name] ** 2}
    return terms


def other_terms(step: Trajectory) -> dict[str, Any]:
    """What no grader reads and ``EpisodeStatistics`` has besides, of one second, by the names in ``OTHERS``."""
    metrics, workload = step.metrics, step.workload
    return {
        "reward": step.reward,
        "ttft_p99": metrics.ttft_p99_ms,
        "tpot": metrics.tpot_ms,
        "violation_rate": step.next_observation.slo_violation_rate,
        "queue": workload.queue_depth,
        "rejected": workload.rejected,
        "arrivals": workload.arrivals,
        "evictions": metrics.eviction_events,
        "oom": step.oom,
        "bound": jnp.abs(step.reward) >= 1.0,
    }


def no_sums() -> Any:
    """What ``accumulate`` starts with: no seconds yet."""
    zero = jnp.float32(0.0)
    return dict.fromkeys(SUMS, zero), zero, dict.fromkeys(JITTER_KNOBS, zero)


def accumulate(total: Any, step: Trajectory, task: EnvParams) -> Any:
    """Sums, peak memory and the last knobs after one more second of one environment; a function for ``fold``."""
    sums, peak, before = total
    knobs = {name: jnp.asarray(getattr(step.action, name), jnp.float32) for name in JITTER_KNOBS}
    first = step.observation.timestep == 0
    change = {name: jnp.where(first, 0.0, knobs[name] - before[name]) for name in JITTER_KNOBS}
    slo_ttft_ms, slo_tpot_ms = task.slo_ms[..., 0], task.engine.slo_tpot_ms[..., 0]
    terms = graded_terms(step.metrics, change, slo_ttft_ms, slo_tpot_ms) | other_terms(step)
    return {name: sums[name] + terms[name] for name in SUMS}, jnp.maximum(peak, step.metrics.gpu_memory_gb), knobs


def aggregate(
    metrics: MetricsSnapshot, action: ServeAction, slo_ttft_ms: float, slo_tpot_ms: float, lengths: Any = None
) -> Aggregates:
    """Aggregates of whole episodes, in float64.

    Args:
        metrics: NumPy arrays (steps, ...).
        action: knobs as the agent gave them, NumPy arrays (steps, ...).
        slo_ttft_ms: see ``graded_terms``.
        slo_tpot_ms: see ``graded_terms``.
        lengths: steps counted of each episode, shape (...); default: all.
    """
    knobs = {name: np.asarray(getattr(action, name), np.float64) for name in JITTER_KNOBS}
    change = {name: np.diff(value, axis=0, prepend=value[:1]) for name, value in knobs.items()}
    terms = graded_terms(metrics, change, slo_ttft_ms, slo_tpot_ms)
    length, *episodes = np.shape(metrics.tokens_per_sec)
    counted = np.arange(length).reshape(-1, *(1,) * len(episodes)) < np.broadcast_to(
        length if lengths is None else lengths, episodes
    )
    sums = {name: np.where(counted, term, 0).sum(axis=0, dtype=np.float64) for name, term in terms.items()}
    peak = np.where(counted, metrics.gpu_memory_gb, 0).max(axis=0).astype(np.float64)
    return Aggregates(**_graded_summary(sums, peak))


def _graded_summary(sums: Mapping[str, Any], peak: Any) -> dict[str, Any]:
    """The fields of ``Aggregates`` from the sums of ``GRADED`` and the peak memory (GB); NumPy or JAX arrays."""
    steps = sums["steps"]

    def jitter(name: str) -> Any:
        changes = (steps - 1) + (steps <= 1)  # at least 1
        mean = sums[name] / changes
        variance = sums[f"{name}_square"] / changes - mean * mean
        return (variance * (variance > 0)) ** 0.5

    return {
        "mean_tps": sums["tps"] / steps,
        "mean_ttft_p50_ms": sums["ttft_p50"] / steps,
        "peak_memory_gb": peak,
        "mean_violations": sums["violations"] / steps,
        "total_cost": sums["cost"],
        "batch_jitter": jitter("batch_size"),
        "kv_jitter": jitter("kv_budget"),
        "goodput": sums["good"] / steps,
        "slo_attainment": sums["attained"] / steps,
        "steps": steps,
    }


@jax.jit
def summarise(sums: dict[str, jax.Array], peak: jax.Array) -> EpisodeStatistics:
    """The statistics of episodes from ``accumulate``'s sums and peak memory (GB)."""
    steps = sums["steps"]
    return EpisodeStatistics(
        **_graded_summary(sums, peak),
        total_reward=sums["reward"],
        mean_ttft_p99_ms=sums["ttft_p99"] / steps,
        mean_tpot_ms=sums["tpot"] / steps,
        mean_violation_rate=sums["violation_rate"] / steps,
        mean_queue=sums["queue"] / steps,
        rejected=sums["rejected"],
        arrivals=sums["arrivals"],
        evictions=sums["evictions"],
        oom_share=sums["oom"] / steps,
        bound_share=sums["bound"] / steps,
    )
