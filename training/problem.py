"""What a run trains and is measured on: a task, on the shipped table and traffic or on one's own.

``task, table, trace -> Problem``: environment, params, normalisers, the best static action. Score and rivals of one's
own table or log come from the same searches as the shipped calibration's, on that table and log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.registry import best_static_action, normalisers


@dataclass(frozen=True, eq=False)
class Problem:
    """One task on one table and one traffic."""

    spec: ig.TaskSpec
    env: ig.Environment
    params: ig.EnvParams
    normalisers: dict[str, float]  # what the grader divides by

    def score(self, found: ig.EpisodeStatistics) -> np.ndarray:
        """The grader's score of each episode, float64[episodes]."""
        return np.asarray(ig.grader.score_aggregates(self.spec, found, self.normalisers)["score"], np.float64)

    @property
    def best_static_action(self) -> ig.ServeAction:
        """The static action with the best mean score; see ``registry.best_static_action``."""
        return ig.ServeAction(**best_static_action(self.spec, self.env.table, trace=self.env.trace))

    @property
    def best_static(self) -> Policy:
        """The policy that always takes ``best_static_action``."""
        return ig.policies.static(self.best_static_action)


def problem(task: int | str, table: Any = None, trace: Any = None) -> Problem:
    """The problem of a task.

    Args:
        task: id or name.
        table: a latency table of one's own; default: the shipped one.
        trace: a request log of one's own, replayed in place of the task's traffic by the open-loop dynamics.

    Raises:
        ValueError: unknown task.
        FileNotFoundError, TableError, TraceError: table or log cannot be used.
    """
    spec = ig.get_task(task)
    env, params = ig.make(task, table=table, trace=trace)
    return Problem(spec, env, params, normalisers(spec, env.table, trace=env.trace))
