"""What is counted of a fleet's episode: requests, GPU-seconds, size changes; a function for ``fold``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.episodes.rollout import fold
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.state import DECISION_S, FleetParams
from inferencegym_jax.fleet.transition import over_classes

SUMS = (
    "asked",
    "on_time",
    "late",
    "rejected",
    "failed",
    "tokens_asked",
    "on_time_tokens",
    "gpu_seconds",
    "changes",
    "ttft_ms",
    "first_tokens",
    "reward",
    "load",
    "decisions",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetStatistics:
    """What a batch of episodes came to, one number an episode; NumPy float64."""

    asked: Any  # requests that came
    judged: Any  # requests whose fate is known
    on_time: Any  # requests within both objectives
    on_time_share: Any  # of the judged; 1 where none was
    late: Any
    rejected: Any
    failed: Any
    goodput_share: Any  # output tokens of requests on time over those of the judged
    gpu_seconds: Any
    mean_gpus: Any  # paid for
    changes_an_hour: Any  # GPUs asked for more or less than before
    ttft_mean_ms: Any
    mean_load: Any  # GPUs that the requests keep busy
    total_reward: Any
    price: Any  # mean GPUs, and the late requests at the task's price


def count(total: dict[str, Any], step: Any, params: FleetParams) -> dict[str, Any]:
    """Sums after one more decision of one fleet; a function for ``fold``."""
    del params
    outcome, metrics = step.outcome, step.metrics
    terms = {
        "asked": over_classes(outcome.asked),
        "on_time": over_classes(outcome.on_time),
        "late": over_classes(outcome.late),
        "rejected": over_classes(outcome.rejected),
        "failed": over_classes(outcome.failed),
        "tokens_asked": outcome.tokens_asked,
        "on_time_tokens": outcome.on_time_tokens,
        "gpu_seconds": outcome.gpu_seconds,
        "changes": metrics.changed,
        "ttft_ms": metrics.ttft_mean_ms * metrics.first_tokens,
        "first_tokens": metrics.first_tokens,
        "reward": step.reward,
        "load": step.workload.load,
        "decisions": jnp.float32(1.0),
    }
    return {name: total[name] + terms[name] for name in SUMS}


def summarise(sums: dict[str, Any], params: FleetParams) -> FleetStatistics:
    """The statistics of episodes from ``count``'s sums."""
    x = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    judged = x["on_time"] + x["late"] + x["rejected"] + x["failed"]
    some = judged > 0
    seconds = x["decisions"] * DECISION_S
    share = np.where(some, x["on_time"] / np.where(some, judged, 1.0), 1.0)
    tokens = x["tokens_asked"] * judged / np.maximum(x["asked"], 1e-9)
    gpus = x["gpu_seconds"] / seconds
    price = np.asarray(params.late_price, np.float64) * np.asarray(params.work_s, np.float64)
    return FleetStatistics(
        asked=x["asked"],
        judged=judged,
        on_time=x["on_time"],
        on_time_share=share,
        late=x["late"],
        rejected=x["rejected"],
        failed=x["failed"],
        goodput_share=np.where(tokens > 0, x["on_time_tokens"] / np.where(tokens > 0, tokens, 1.0), 1.0),
        gpu_seconds=x["gpu_seconds"],
        mean_gpus=gpus,
        changes_an_hour=x["changes"] / seconds * 3600.0,
        ttft_mean_ms=x["ttft_ms"] / np.maximum(x["first_tokens"], 1e-9),
        mean_load=x["load"] / x["decisions"],
        total_reward=x["reward"],
        price=gpus + price * (judged - x["on_time"]) / seconds,
    )


def share_on_time(on_time: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Share on time of the requests of all days (or decisions) together; 0 where nobody was judged.

    Args:
        on_time: float64[..., days], requests within both objectives.
        judged: float64[..., days], requests whose fate is known.

    Returns:
        float64[...].
    """
    return on_time.sum(axis=-1) / np.maximum(judged.sum(axis=-1), 1e-9)


@functools.cache
def no_counts() -> dict[str, np.float32]:
    """``count``'s sums before the first decision."""
    return dict.fromkeys(SUMS, np.float32(0.0))


def evaluate_fleet(
    env: FleetEnvironment,
    params: FleetParams,
    policy: Policy,
    seeds: Any,
    *,
    length: int | None = None,
    carry: Any = None,
    carry_axis: int | None = None,
) -> FleetStatistics:
    """Statistics of one episode a seed under a policy.

    Args:
        env: the fleet.
        params: one task, or a batch with one entry a seed.
        policy: ``policy(key, observation, carry)`` gives a ``FleetAction``.
        seeds: days, shape (episodes,).
        length: decisions; default: the task's episode.
        carry: see ``fold``.
        carry_axis: see ``fold``.

    Returns:
        ``FleetStatistics``, each field float64[episodes].
    """
    task: Any = params  # a fleet's, where ``fold`` speaks of a single engine's
    counted: Any = count
    sums = fold(env, task, policy, seeds, counted, no_counts(), length=length, carry=carry, carry_axis=carry_axis)
    return summarise(sums, params)
