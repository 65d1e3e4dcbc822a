"""What every statistic of an episode is called where people read it, and its unit: one table for all commands.

``EpisodeStatistics -> failure_shares``: seconds out of memory, requests late and rejected, which stand beside every
score.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym_jax.models.quantity import Quantity
from inferencegym_jax.scoring.episode_log import is_scored_by_request
from inferencegym_jax.tasks import TaskSpec


def _said(title: str, unit: str, description: str) -> Quantity:
    return Quantity(title=title, unit=unit, description=description)


SHARES: dict[str, Quantity] = {
    "oom_share": _said("seconds out of memory", "share", "seconds in which the engine ran out of memory, of all"),
    "late_share": _said(
        "requests late",
        "share",
        "requests past an objective, of all that came; tasks 1 to 3: of those waiting, mean of the seconds",
    ),
    "rejected_share": _said(
        "requests rejected", "share", "requests that found no place in the queue, of all that came"
    ),
}
"""What stands beside every score."""

STATISTICS: dict[str, Quantity] = {
    "steps": _said("seconds", "s", "seconds counted"),
    "total_reward": _said("return", "", "sum of the rewards"),
    "mean_tps": _said("output tokens a second", "tokens/s", "output tokens a second, mean"),
    "mean_ttft_p50_ms": _said("time to first token, median", "ms", "of the seconds' medians, mean"),
    "mean_ttft_p99_ms": _said("time to first token, p99", "ms", "of the seconds' 99th percentiles, mean"),
    "mean_tpot_ms": _said("time per output token", "ms", "mean"),
    "mean_queue": _said("queue", "requests", "requests waiting, mean"),
    "mean_violations": _said("objectives missed", "requests/s", "violations a second, mean"),
    "mean_violation_rate": _said("objectives missed, share", "share", "of the seconds' shares, mean"),
    "peak_memory_gb": _said("GPU memory, highest", "GB", "highest of the episode"),
    "total_cost": _said("cost", "", "sum of cost_per_1k"),
    "batch_jitter": _said("changes of batch size", "requests", "standard deviation of the step-to-step change"),
    "kv_jitter": _said("changes of KV budget", "share", "standard deviation of the step-to-step change"),
    "knob_jitter": _said("changes of all knobs", "", "standard deviations over each knob's highest value, added up"),
    "asked": _said("requests that came", "requests", "in the episode"),
    "judged": _said("requests judged", "requests", "on time, late, rejected or failed by the episode's end"),
    "late": _said("late", "requests", "past an objective, in the episode"),
    "on_time": _said("requests on time", "requests", "within both latency objectives"),
    "on_time_share": _said("requests on time, share", "share", "of those judged, by class weight"),
    "tokens_asked": _said("output tokens asked", "tokens", "of the requests that came"),
    "goodput": _said("goodput", "tokens/s", "output tokens of requests on time, a second"),
    "goodput_share": _said("tokens on time, share", "share", "of the judged requests' tokens"),
    "gpu_seconds": _said("GPU-seconds", "GPU s", "GPUs paid for, summed over the seconds"),
    "quality": _said("quality kept", "share", "of the 16-bit model's answers, mean"),
    "rejected": _said("rejected", "requests", "found no place in the queue, in the episode"),
    "arrivals": _said("arrivals", "requests", "in the episode"),
    "evictions": _said("evictions, preemptions", "events", "in the episode"),
    "bound_share": _said("rewards at a bound", "share", "rewards at -1 or 1, of all"),
    **SHARES,
}
"""Every statistic of an episode and the shares of ``failure_shares``."""


def failure_shares(spec: TaskSpec, statistics: Any) -> dict[str, np.ndarray]:
    """The shares by the names in ``SHARES``, float64[episodes].

    Args:
        spec: the task, which says whether requests are counted.
        statistics: ``EpisodeStatistics``.
    """
    fields = {name: np.asarray(value, np.float64) for name, value in vars(statistics).items()}
    came = np.maximum(fields["arrivals"], 1.0)
    late = fields["mean_violation_rate"]
    if is_scored_by_request(spec):
        late = fields["late"] / came
    return {
        "oom_share": fields["oom_share"],
        "late_share": late,
        "rejected_share": fields["rejected"] / came,
    }
