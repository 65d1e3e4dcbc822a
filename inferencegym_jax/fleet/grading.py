"""The grade of a fleet's episode: one minus what it cost, over what the whole fleet costs.

``episode log, task -> score in [0, 1], its parts, words``. What is priced is what the reward prices, so the score of an
episode is one plus its mean reward, where that is not below zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inferencegym_jax.fleet.state import DECISION_S, FleetParams
from inferencegym_jax.models import finite_number, shown
from inferencegym_jax.scoring.formula import Component

BAD = ("late", "rejected", "failed")
COUNTED = ("on_time", *BAD)


def fleet_formula(late_price: float) -> dict[str, Component]:
    """The components of a fleet's score by name; the score is their weighted sum, clipped to [0, 1].

    Args:
        late_price: of a late request, in mean requests' GPU time.
    """
    return {
        "gpus_saved": Component(1.0, "1 - GPU-seconds paid / those of the whole fleet"),
        "late_cost": Component(
            -1.0,
            f"late, rejected and failed requests, each {late_price:g} times a mean request's GPU time, / GPU-seconds of"
            " the whole fleet",
        ),
    }


def fleet_scores(gpu_seconds: Any, bad: Any, decisions: Any, params: FleetParams) -> dict[str, np.ndarray]:
    """Components and score of episodes, float64 of the arguments' shape.

    Args:
        gpu_seconds: paid for in the episode.
        bad: requests that were late, rejected or failed.
        decisions: of the episode.
        params: one task, or one an episode.
    """
    whole = np.asarray(params.gpus, np.float64) * DECISION_S * np.maximum(np.asarray(decisions, np.float64), 1)
    price = np.asarray(params.late_price, np.float64) * np.asarray(params.work_s, np.float64)
    saved = 1.0 - np.asarray(gpu_seconds, np.float64) / whole
    cost = price * np.asarray(bad, np.float64) / whole
    return {"gpus_saved": saved, "late_cost": cost, "score": np.clip(saved - cost, 0.0, 1.0)}


def grade_fleet(episode_log: Sequence[Mapping[str, Any]], params: FleetParams, title: str = "Fleet") -> dict[str, Any]:
    """Score of a fleet's episode.

    Args:
        episode_log: an entry a decision; of each the ``outcome`` is read.
        params: the task.
        title: of the task, for the sentence.

    Returns:
        "score" in [0, 1], "breakdown", "feedback", "complete" (is it the whole episode), "outcome" (sums of requests,
        tokens and GPU-seconds), as ``scoring.grader.grade``.

    Raises:
        ValueError: an entry without its counts, or more entries than the episode has decisions.
    """
    length = int(np.asarray(params.episode_length))
    if len(episode_log) > length:
        raise ValueError(f"episode_log: {len(episode_log)} entries; an episode has {length} decisions")
    counts = {name: math.fsum(_sum(entry, name, i) for i, entry in enumerate(episode_log)) for name in COUNTED}
    totals = {
        name: math.fsum(_sum(entry, name, i) for i, entry in enumerate(episode_log))
        for name in ("gpu_seconds", "tokens_asked", "on_time_tokens")
    }
    bad = sum(counts[name] for name in BAD)
    judged = bad + counts["on_time"]
    components = {
        name: float(value) for name, value in fleet_scores(totals["gpu_seconds"], bad, len(episode_log), params).items()
    }
    score = components.pop("score")
    share = counts["on_time"] / judged if judged > 0 else 1.0
    mean = totals["gpu_seconds"] / (DECISION_S * max(len(episode_log), 1))
    feedback = (
        f"{title}: score {score:.3f} over {len(episode_log)} decisions. Of {judged:,.0f} requests {100 * share:.1f} %"
        f" were on time, on {mean:.2f} of {int(np.asarray(params.gpus))} GPUs in the mean. Most is lost on "
    )
    if components["late_cost"] > 1.0 - components["gpus_saved"]:
        feedback += f"late requests: {bad:,.0f} cost {components['late_cost']:.3f}."
    else:
        feedback += f"GPUs: {totals['gpu_seconds']:,.0f} GPU-seconds cost {1.0 - components['gpus_saved']:.3f}."
    return {
        "score": score if episode_log else 0.0,
        "breakdown": components,
        "feedback": feedback,
        "complete": len(episode_log) == length,
        "outcome": {**counts, **totals},
    }


def _sum(entry: Any, name: str, i: int) -> float:
    """A count of one decision, over its classes."""
    outcome = entry.get("outcome") if isinstance(entry, Mapping) else None
    if not isinstance(outcome, Mapping) or name not in outcome:
        raise ValueError(f"episode_log[{i}].outcome.{name}: missing (a fleet is scored by request)")
    value = outcome[name]
    values = value if isinstance(value, list | tuple) else [value]
    numbers = [finite_number(one) for one in values]
    if any(number is None or abs(number) > 1e12 or number < -1e-3 for number in numbers):
        raise ValueError(f"episode_log[{i}].outcome.{name} = {shown(value)}: must be finite numbers from 0 to 1e12")
    return math.fsum(number for number in numbers if number is not None)
