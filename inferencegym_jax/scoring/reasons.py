"""Why a component of a score is what it is, in words: the numbers that it was computed from.

``Aggregates -> reason``: ``grader.grade`` ends its feedback with the reason of the component that costs most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferencegym_jax.models.metrics import COST_UNIT
from inferencegym_jax.scoring.aggregates import Aggregates
from inferencegym_jax.scoring.episode_log import is_scored_by_request
from inferencegym_jax.scoring.formula import COST_BUDGET, ON_TIME_SLACK
from inferencegym_jax.tasks import TaskSpec


def reason(spec: TaskSpec, component: str, aggregates: Aggregates, normalisers: Mapping[str, Any]) -> str:
    """What made a component of the score what it is; a clause without a full stop.

    Args:
        spec: the task.
        component: a name of ``formula(spec)``.
        aggregates: of one episode; plain numbers.
        normalisers: see ``grader.score_aggregates``.

    Raises:
        KeyError: the task's score has no such component.
    """
    if is_scored_by_request(spec):
        return _by_request(aggregates, normalisers)[component]
    return _by_second(spec, aggregates, normalisers)[component]


def _by_request(episode: Aggregates, normalisers: Mapping[str, Any]) -> dict[str, str]:
    static_share = float(normalisers["static_on_time_share"])
    cost = (
        f"{episode.gpu_seconds:,.0f} GPU-seconds were paid for, the best fixed setting pays for"
        f" {float(normalisers['static_gpus']) * episode.steps:,.0f}"
    )
    if episode.on_time_share < static_share - ON_TIME_SLACK:
        cost += (
            f"; paying for less does not count, as {_percent(episode.on_time_share)} of the requests were on time,"
            f" under that setting {_percent(static_share)}"
        )
    return {
        "goodput_share": f"{_percent(1.0 - episode.goodput_share)} of the output tokens came late or never",
        "on_time_share": f"{_percent(1.0 - episode.on_time_share)} of the requests were late or found no place",
        "cost": cost,
        "stability": f"from second to second the knobs moved by {episode.knob_jitter:.3f} of their highest values"
        " (standard deviations, added up)",
        "quality_lost": f"the weight format keeps {_percent(episode.quality)} of the 16-bit model's answers",
    }


def _by_second(spec: TaskSpec, episode: Aggregates, normalisers: Mapping[str, Any]) -> dict[str, str]:
    return {
        "throughput": f"{episode.mean_tps:,.0f} tokens/s on average, the best fixed setting serves"
        f" {float(normalisers['optimal_tps']):,.0f}",
        "latency": f"the median first token took {episode.mean_ttft_p50_ms:,.0f} ms on average, and from"
        f" {spec.slo_ttft_ms[0]:,g} ms on nothing is left",
        "memory": f"memory peaked at {episode.peak_memory_gb:.1f} GB, the limit is {spec.memory_limit_gb or 0.0:g} GB",
        "slo": f"{episode.mean_violations:,.1f} requests a second missed their objective or were turned away",
        "cost": f"it came to {episode.total_cost:.2f} {COST_UNIT}, the budget is {spec.cost_budget or COST_BUDGET:g}",
        "stability": f"from second to second the batch size moved by {episode.batch_jitter:.1f} and the KV budget by"
        f" {episode.kv_jitter:.3f} (standard deviations)",
    }


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f} %"
