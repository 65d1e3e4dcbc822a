"""Runs of a scenario foretold on days that are not sent: what settings are chosen and searched on.

``Setting, days -> Foretold: policy -> Segments, Totals, score``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.scenarios.judged import Segments, Totals, score, segments_of, static_reference
from inferencegym_jax.live.scenarios.second_instance import Setting
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.runs import Asked, TrialSettings, foretell
from inferencegym_jax.models import ServeAction

TRAINING_SEED = 1 << 31  # of days that no evaluation sends
Tried: TypeAlias = Policy | ServeAction | Asked


class Foretold:
    """Runs foretold on days that are not sent, each once.

    Args:
        setting: the scenario on this engine.
        settings: of the trial.
        seconds: length of a run.
        days: how many.
    """

    def __init__(self, setting: Setting, settings: TrialSettings, seconds: int, days: int = 1):
        self.setting, self.settings, self.seconds = setting, settings, seconds
        self.objective = Objective((setting.objective.ttft_ms,) * 3, setting.objective.tpot_ms)
        self.traffic = [setting.traffic(TRAINING_SEED + day) for day in range(days)]

    def segments(self, policy: Tried) -> Segments:
        """A policy on those days."""
        problem, settings = self.setting.problem, self.settings
        runs = [foretell(problem.table, sent, policy, problem.params, settings) for sent in self.traffic]
        return segments_of(runs, problem.spec, self.objective, settings.warmup_s, self.seconds)

    def totals(self, policy: Tried) -> Totals:
        """What a policy comes to on those days, arrays of shape (1,)."""
        return self.segments(policy).total()

    def scores(self, tried: Mapping[Any, Tried], fixed: Sequence[Any]) -> dict[Any, float]:
        """Score of each, against the best of those that are fixed."""
        return self.scored({key: self.totals(policy) for key, policy in tried.items()}, fixed)

    def scored(self, totals: Mapping[Any, Totals], fixed: Sequence[Any]) -> dict[Any, float]:
        """Score of what each came to, against the best of those that are fixed."""
        spec = self.setting.problem.spec
        reference = static_reference(spec, {key: totals[key] for key in fixed})
        return {key: float(score(spec, one, reference)[0]) for key, one in totals.items()}
