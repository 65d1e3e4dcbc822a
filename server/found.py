"""What a rollout came to, of whichever kind of task: a number an episode of each column, and its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.models import Trajectory

BLOCK_STEPS = 51_200  # of a compiled call: 256 episodes of 200 seconds, 28 of 1,800
PARTS = ("observation", "action", "metrics", "workload")  # of a trajectory; of an open-loop one also the outcome
OTHER = ("score", "total_rewards", "oom_shares", "gpu_seconds")  # columns that are no component of the score


@dataclass(frozen=True)
class Found:
    """What a rollout came to: a number an episode of each column, and its steps for as long as they are asked for."""

    task_id: int
    policy: str | None
    seeds: list[int]
    lengths: np.ndarray  # steps of each episode
    parts: tuple[str, ...]  # of ``Trajectory`` that are told
    columns: dict[str, np.ndarray]  # "score", its components, and ``OTHER``
    blocks: Callable[[], Iterator[tuple[np.ndarray, Trajectory]]]  # indices of a block's episodes, their steps

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
        return int(self.lengths.sum())

    def answer(self, **more: Any) -> dict[str, Any]:
        """The answer of POST /rollout but for the steps, and ``more`` at its end."""
        columns = {name: value.tolist() for name, value in self.columns.items()}
        gpu_seconds = columns.get("gpu_seconds")
        breakdown = {name: value for name, value in columns.items() if name not in OTHER}
        return {
            "task_id": self.task_id,
            "policy": self.policy,
            "seeds": self.seeds,
            "steps": self.lengths.tolist(),
            "scores": columns["score"],
            "total_rewards": columns["total_rewards"],
            "oom_shares": columns["oom_shares"],
            "breakdown": breakdown,
            "mean_score": float(np.mean(columns["score"])),
            "gpu_seconds": gpu_seconds,
            "mean_oom_share": float(np.mean(columns["oom_shares"])),
            **more,
        }
