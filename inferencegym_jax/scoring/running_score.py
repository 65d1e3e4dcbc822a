"""The score of an episode so far, second by second: what the grader would say if it ended now.

``seconds -> sums -> Counted``. The share of a score that each second adds follows from it, and those shares add up to
the score: the cap on the cost component and the standard deviations of stability are in them, which no second has
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from inferencegym_jax.models import KNOBS, EnvParams, MetricsSnapshot, RequestOutcome, ServeAction
from inferencegym_jax.scoring.aggregates import GRADED, graded_terms, so_far
from inferencegym_jax.scoring.grader import components, weighted_score
from inferencegym_jax.tasks import TaskSpec

NORMALISERS = ("optimal_tps", "throughput_floor", "static_gpus", "static_on_time_share")
"""What the graders divide by or compare with, where a task has it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counted:
    """What the seconds of an episode came to so far; float32[...]."""

    sums: dict[str, jax.Array]  # of ``GRADED``
    peak: jax.Array  # memory, GB
    total: jax.Array  # seconds so far, times the score if the episode ended now

    @classmethod
    def start(cls, shape: tuple[int, ...] = ()) -> Counted:
        """No seconds yet, of this batch shape."""
        zero = jnp.zeros(shape, jnp.float32)
        return cls(dict.fromkeys(GRADED, zero), zero, zero)


def count(
    spec: TaskSpec,
    normalisers: Mapping[str, float],
    params: EnvParams,
    metrics: MetricsSnapshot,
    outcome: RequestOutcome,
    action: ServeAction,
    before: ServeAction,
    is_first: jax.Array,
    counted: Counted,
) -> Counted:
    """The episode with one more second.

    Args:
        spec: the task.
        normalisers: see ``grader.score_aggregates``.
        params: the task's: which knobs it leaves, what a request of each class counts.
        metrics: of the second.
        outcome: of its requests.
        action: of the second, as the agent gave it.
        before: that of the second before.
        is_first: bool, whether it is the episode's first second: what was counted before is forgotten.
        counted: the seconds before.
    """
    change: dict[str, jax.Array] = {}
    for i, name in enumerate(KNOBS):
        now, then = (jnp.asarray(getattr(knobs, name), jnp.float32) for knobs in (action, before))
        change[name] = jnp.where(is_first | ~jnp.asarray(params.active)[..., i], 0.0, now - then)
    terms = graded_terms(metrics, outcome, change, params.engine.class_weights)
    sums = {name: jnp.where(is_first, 0.0, counted.sums[name]) + terms[name] for name in GRADED}
    peak = jnp.maximum(jnp.where(is_first, 0.0, counted.peak), metrics.gpu_memory_gb)
    score = weighted_score(components(spec, so_far(sums, peak), normalisers), jnp.clip)
    return Counted(sums, peak, sums["steps"] * score)
