"""States of wrappers that remember something beside the state of what they wrap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from inferencegym_jax.encoding import HistoryCarry
from inferencegym_jax.models import ServeAction
from inferencegym_jax.scoring.running_score import Counted


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HistoryState:
    """State of ``wrappers.ObservationHistory``."""

    inner: Any  # of the wrapped environment
    history: HistoryCarry


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScoredState:
    """State of ``wrappers.ScoreReward``."""

    inner: Any  # of the wrapped environment
    action: ServeAction  # the last one
    counted: Counted | None = None  # what the episode came to so far, where the whole score is the reward
