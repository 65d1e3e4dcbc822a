"""The best static action as the measure of an open-loop task: what is asked of it, its GPUs, its share on time.

``statistics of every static action -> normalisers, mean score of every action``. The cost component compares a
policy's GPUs with those of the best static action, and which action is best depends on that comparison. The reference
is the action that no other one beats by its own measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inferencegym_jax.scoring.aggregates import EpisodeStatistics
from inferencegym_jax.scoring.episode_log import is_scored_by_request
from inferencegym_jax.scoring.grader import score_aggregates
from inferencegym_jax.tasks import TaskSpec

SAME_GPUS = 0.01  # mean GPUs that differ by less are the same
TIE = 1e-9  # of a mean score


def with_static_reference(
    spec: TaskSpec, statistics: EpisodeStatistics, normalisers: Mapping[str, float]
) -> tuple[dict[str, float], np.ndarray]:
    """Normalisers that a search over static actions completes, and the actions' mean scores under them.

    Where several actions beat all others by their own measure, it is the one with the best score by it; where none
    does, the one that is beaten by least. Of dynamics that do not count requests the normalisers stay as they are.

    Args:
        spec: the task.
        statistics: of every static action on the same seeds, NumPy arrays (actions, seeds).
        normalisers: ``optimal_tps``, ``cost_normaliser``, ``throughput_floor``.

    Returns:
        (normalisers with ``demand_tps`` and ``demand_rps``, ``static_gpus`` and ``static_on_time_share``; float64
        scores, shape (actions,)).
    """
    complete = dict(normalisers)
    steps = np.asarray(statistics.steps, np.float64)
    gpus = (np.asarray(statistics.gpu_seconds, np.float64) / steps).mean(axis=1)
    if not gpus.any():
        return complete, _mean_scores(spec, statistics, complete)
    complete["demand_tps"] = float((np.asarray(statistics.tokens_asked, np.float64) / steps).mean())
    complete["demand_rps"] = float((np.asarray(statistics.asked, np.float64) / steps).mean())
    on_time = np.asarray(statistics.on_time_share, np.float64).mean(axis=1)

    def measured_by(action: int) -> tuple[dict[str, float], np.ndarray]:
        own = {**complete, "static_gpus": float(gpus[action]), "static_on_time_share": float(on_time[action])}
        return own, _mean_scores(spec, statistics, own)

    if not is_scored_by_request(spec):
        return measured_by(int(np.argmax(_mean_scores(spec, statistics, complete))))
    # by its own measure every action costs the same: of those with as many GPUs only the best can be the reference
    own_score = _mean_scores(spec, statistics, {**complete, "static_gpus": gpus[:, None], "static_on_time_share": 0.0})
    candidates: list[int] = []
    for action in np.argsort(-own_score, kind="stable"):
        if all(abs(gpus[action] - gpus[other]) > SAME_GPUS for other in candidates):
            candidates.append(int(action))
    beaten_by = []
    for action in candidates:
        own, scores = measured_by(action)
        beaten_by.append(float(scores.max() - scores[action]))
        if beaten_by[-1] <= TIE:
            return own, scores
    return measured_by(candidates[int(np.argmin(beaten_by))])


def _mean_scores(spec: TaskSpec, statistics: EpisodeStatistics, normalisers: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(score_aggregates(spec, statistics, normalisers)["score"], np.float64).mean(axis=1)
