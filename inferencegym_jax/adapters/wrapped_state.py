"""States of wrappers that remember something beside the environment's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from inferencegym_jax.encoding import HistoryCarry
from inferencegym_jax.models import ServeAction


@dataclass(frozen=True)
class WrappedState:
    """The environment's state, or that of another wrapper, with something beside it; what rollouts and learners read
    of a state is the environment's."""

    inner: Any

    @property
    def seed(self) -> jax.Array:
        """uint32, seed of this episode."""
        return self.inner.seed

    @property
    def time(self) -> jax.Array:
        """int32, steps taken in this episode."""
        return self.inner.time

    @property
    def episode(self) -> jax.Array:
        """int32, episodes finished before this one."""
        return self.inner.episode


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HistoryState(WrappedState):
    """State of ``wrappers.ObservationHistory``."""

    history: HistoryCarry


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScoredState(WrappedState):
    """State of ``wrappers.ScoreReward``."""

    action: ServeAction  # the last one; the default before an episode's first
