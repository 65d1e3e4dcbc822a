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

from inferencegym_jax.models import KNOBS, EnvParams, MetricsSnapshot, RequestOutcome, ServeAction, Trajectory
from inferencegym_jax.tasks import TaskSpec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Aggregates:
    """What the graders read of an episode; numbers, or arrays with one entry an episode.

    Those from ``asked`` on count requests, as only the open-loop tasks do. A request is judged once it is known to be
    on time, late, rejected or failed; those still present at the end are not, and count neither for nor against.
    """

    steps: Any  # seconds counted
    mean_tps: Any  # tokens/s
    mean_ttft_p50_ms: Any
    peak_memory_gb: Any
    mean_violations: Any  # requests a second
    total_cost: Any
    batch_jitter: Any  # standard deviation of the step-to-step change of batch_size
    kv_jitter: Any  # the same of kv_budget
    knob_jitter: Any  # the same of every knob over its highest value, added up
    asked: Any  # requests that arrived
    judged: Any  # requests whose fate is known
    on_time: Any  # requests within both latency objectives
    on_time_share: Any  # S: on time over judged, by class weight; 1 where nothing was asked
    tokens_asked: Any  # output tokens of the requests that arrived
    goodput: Any  # tokens/s, output tokens of the requests on time
    goodput_share: Any  # G: those tokens over the tokens of the judged requests; 1 where nothing was asked
    gpu_seconds: Any  # GPUs paid for, summed over the seconds
    quality: Any  # mean over the seconds of what the weight format keeps of the model's answers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EpisodeStatistics(Aggregates):
    """What a batch of episodes came to, one number an environment: all that the graders need, and the usual means."""

    total_reward: jax.Array  # float32, return of the episode
    mean_ttft_p99_ms: jax.Array
    mean_tpot_ms: jax.Array
    mean_violation_rate: jax.Array  # share
    mean_queue: jax.Array  # requests
    late: jax.Array  # requests in the episode that missed an objective; 0 where requests are not counted
    rejected: jax.Array  # requests in the episode
    arrivals: jax.Array  # requests in the episode
    evictions: jax.Array  # events in the episode
    oom_share: jax.Array  # share of steps out of memory
    bound_share: jax.Array  # share of rewards at -1 or 1


BY_SECOND = ("steps", "tps", "ttft_p50", "violations", "cost")
BY_REQUEST = (
    "asked",
    "judged",
    "on_time",
    "weighted_judged",
    "weighted_on_time",
    "tokens_asked",
    "on_time_tokens",
    "gpu_seconds",
    "quality",
)
BY_KNOB = tuple(name + part for name in KNOBS for part in ("", "_square"))
GRADED = (*BY_SECOND, *BY_REQUEST, *BY_KNOB)
OTHERS = (
    "reward",
    "ttft_p99",
    "tpot",
    "violation_rate",
    "queue",
    "late",
    "rejected",
    "arrivals",
    "evictions",
    "oom",
    "bound",
)
SUMS = (*GRADED, *OTHERS)


def graded_terms(
    metrics: MetricsSnapshot, outcome: RequestOutcome, change: Mapping[str, Any], class_weights: Any
) -> dict[str, Any]:
    """What the graders sum over the seconds of an episode, by the names in ``GRADED``.

    NumPy or JAX arrays of any shape (...), with classes (..., 3): one second, or all seconds of many episodes.

    Args:
        metrics: of the seconds.
        outcome: of their requests; zeros where a task does not count requests.
        change: change of every knob since the second before, 0 in an episode's first.
        class_weights: (..., 3), what a request of each class counts in ``on_time_share``.
    """
    judged = outcome.on_time + outcome.late + outcome.rejected + outcome.failed
    terms = {
        "steps": 1.0,
        "tps": metrics.tokens_per_sec,
        "ttft_p50": metrics.ttft_p50_ms,
        "violations": metrics.slo_violations,
        "cost": metrics.cost_per_1k,
        "asked": outcome.asked.sum(-1),
        "judged": judged.sum(-1),
        "on_time": outcome.on_time.sum(-1),
        "weighted_judged": (class_weights * judged).sum(-1),
        "weighted_on_time": (class_weights * outcome.on_time).sum(-1),
        "tokens_asked": outcome.tokens_asked,
        "on_time_tokens": outcome.on_time_tokens,
        "gpu_seconds": outcome.gpu_seconds,
        "quality": outcome.quality,
    }
    for name in KNOBS:
        terms |= {name: change[name], f"{name}_square": change[name] ** 2}
    return terms


def other_terms(step: Trajectory) -> dict[str, Any]:
    """What no grader reads and ``EpisodeStatistics`` has besides, of one second, by the names in ``OTHERS``."""
    metrics, workload = step.metrics, step.workload
    return {
        "reward": step.reward,
        "ttft_p99": metrics.ttft_p99_ms,
        "tpot": metrics.tpot_ms,
        "violation_rate": step.violation_rate,
        "queue": workload.queue_depth,
        "late": step.outcome.late.sum(-1),
        "rejected": workload.rejected,
        "arrivals": workload.arrivals,
        "evictions": metrics.eviction_events,
        "oom": step.oom,
        "bound": jnp.abs(step.reward) >= 1.0,
    }


def no_sums() -> Any:
    """What ``accumulate`` starts with: no seconds yet."""
    zero = jnp.float32(0.0)
    return dict.fromkeys(SUMS, zero), zero, dict.fromkeys(KNOBS, zero)


def accumulate(total: Any, step: Trajectory, task: EnvParams) -> Any:
    """Sums, peak memory and the last knobs after one more second of one environment; a function for ``fold``."""
    sums, peak, before = total
    knobs = {name: jnp.asarray(getattr(step.action, name), jnp.float32) for name in KNOBS}
    first = step.timestep == 1
    change = {
        name: jnp.where(first | ~task.active[..., i], 0.0, knobs[name] - before[name]) for i, name in enumerate(KNOBS)
    }
    terms = graded_terms(step.metrics, step.outcome, change, task.engine.class_weights) | other_terms(step)
    return {name: sums[name] + terms[name] for name in SUMS}, jnp.maximum(peak, step.metrics.gpu_memory_gb), knobs


def no_requests(shape: tuple[int, ...]) -> RequestOutcome:
    """NumPy zeros, the outcome of seconds (...) whose requests are not counted."""
    by_class, one = np.zeros((*shape, 3)), np.zeros(shape)
    return RequestOutcome(by_class, by_class, by_class, by_class, by_class, by_class, one, one, one, one)


def aggregate(
    spec: TaskSpec,
    metrics: MetricsSnapshot,
    action: ServeAction,
    outcome: RequestOutcome | None = None,
    lengths: Any = None,
) -> Aggregates:
    """Aggregates of whole episodes, in float64.

    Args:
        spec: the task: which knobs it leaves to the agent, what a class weighs.
        metrics: NumPy arrays (steps, ...).
        action: knobs as the agent gave them, NumPy arrays (steps, ...).
        outcome: NumPy arrays (steps, ...) and by class (steps, ..., 3); None: requests are not counted.
        lengths: steps counted of each episode, shape (...); default: all.
    """
    length, *episodes = np.shape(metrics.tokens_per_sec)
    counted = np.arange(length).reshape(-1, *(1,) * len(episodes)) < np.broadcast_to(
        length if lengths is None else lengths, episodes
    )
    change: dict[str, Any] = {}
    for name in KNOBS:
        value = np.asarray(getattr(action, name), np.float64)
        change[name] = np.diff(value, axis=0, prepend=value[:1]) if name in spec.active_knobs else 0.0 * value
    outcome = no_requests((length, *episodes)) if outcome is None else outcome
    terms = graded_terms(metrics, outcome, change, np.asarray(spec.class_weights))
    sums = {name: np.where(counted, term, 0).sum(axis=0, dtype=np.float64) for name, term in terms.items()}
    peak = np.where(counted, metrics.gpu_memory_gb, 0).max(axis=0).astype(np.float64)
    return so_far(sums, peak)


def so_far(sums: Mapping[str, Any], peak: Any) -> Aggregates:
    """What the graders read of seconds that were summed.

    Args:
        sums: of ``GRADED``, see ``graded_terms``; NumPy or JAX arrays.
        peak: memory, GB.
    """
    return Aggregates(**_graded_summary(sums, peak))


def _graded_summary(sums: Mapping[str, Any], peak: Any) -> dict[str, Any]:
    """The fields of ``Aggregates`` from the sums of ``GRADED`` and the peak memory (GB); NumPy or JAX arrays."""
    steps = sums["steps"]
    changes = (steps - 1) + (steps <= 1)  # at least 1

    def jitter(name: str) -> Any:
        mean = sums[name] / changes
        variance = sums[f"{name}_square"] / changes - mean * mean
        return (variance * (variance > 0)) ** 0.5

    def share(part: Any, whole: Any) -> Any:
        none = whole <= 0
        return (part + none * (sums["asked"] <= 0)) / (whole + none)

    judged_tokens = sums["tokens_asked"] * share(sums["judged"], sums["asked"])
    return {
        "steps": steps,
        "mean_tps": sums["tps"] / steps,
        "mean_ttft_p50_ms": sums["ttft_p50"] / steps,
        "peak_memory_gb": peak,
        "mean_violations": sums["violations"] / steps,
        "total_cost": sums["cost"],
        "batch_jitter": jitter("batch_size"),
        "kv_jitter": jitter("kv_budget"),
        "knob_jitter": sum(jitter(name) / knob.most for name, knob in KNOBS.items()),
        "asked": sums["asked"],
        "judged": sums["judged"],
        "on_time": sums["on_time"],
        "on_time_share": share(sums["weighted_on_time"], sums["weighted_judged"]),
        "tokens_asked": sums["tokens_asked"],
        "goodput": sums["on_time_tokens"] / steps,
        "goodput_share": share(sums["on_time_tokens"], judged_tokens),
        "gpu_seconds": sums["gpu_seconds"],
        "quality": sums["quality"] / steps,
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
        late=sums["late"],
        rejected=sums["rejected"],
        arrivals=sums["arrivals"],
        evictions=sums["evictions"],
        oom_share=sums["oom"] / steps,
        bound_share=sums["bound"] / steps,
    )
