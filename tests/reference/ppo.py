"""PPO's pure parts as loops over single numbers, in float64: what the compiled ones must equal."""

from __future__ import annotations

import math

import numpy as np


def generalised_advantages(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    discount: float,
    gae_lambda: float,
) -> np.ndarray:
    """The definition: a discounted sum of the temporal-difference errors from t to the end of the episode or of the
    rollout."""
    steps, environments = reward.shape
    result = np.zeros((steps, environments))
    for e in range(environments):
        for t in range(steps):
            weight = 1.0
            for s in range(t, steps):
                bootstrap = 0.0 if terminated[s, e] else float(next_value[s, e])
                result[t, e] += weight * (float(reward[s, e]) + discount * bootstrap - float(value[s, e]))
                if terminated[s, e] or truncated[s, e]:
                    break
                weight *= discount * gae_lambda
    return result


def clipped_objective(log_prob: float, old_log_prob: float, advantage: float, clip: float) -> float:
    """The pessimistic one of the plain and the clipped surrogate, negated."""
    ratio = math.exp(log_prob - old_log_prob)
    clipped = min(max(ratio, 1.0 - clip), 1.0 + clip)
    return -min(ratio * advantage, clipped * advantage)
