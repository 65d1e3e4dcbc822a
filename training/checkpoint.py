"""Checkpoints with orbax: the whole ``TrainState`` and the config that it belongs to.

A run's folder holds ``checkpoints/<update>/``. Restoring checks task and network before it reads arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from training.config import TrainConfig, from_mapping
from training.trainer import TrainState

FOLDER = "checkpoints"
KEPT = 3
CHANGEABLE = ("total_steps", "evaluate_every", "evaluation_episodes", "seed")  # what a resumed run may set anew


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which, and why."""


def flat(state: TrainState) -> dict[str, Any]:
    """The leaves of a state by their path, which is how they are stored."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


class Checkpoints:
    """The checkpoints of one run; the newest three are kept."""

    def __init__(self, run: str | Path):
        self.folder = Path(run).resolve() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, state: TrainState, config: TrainConfig) -> None:
        """Write a checkpoint and wait until it is complete; one that is there already stays."""
        step = int(state.update)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(flat(state)), config=ocp.args.JsonSave(config.to_dict()))
        self._manager.save(step, args=items)
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """Updates done at the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def config(self) -> TrainConfig:
        """The config that the newest checkpoint was made with."""
        return from_mapping(self._restore(config=ocp.args.JsonRestore())["config"])

    def restore(self, like: TrainState, config: TrainConfig) -> TrainState:
        """The newest checkpoint as a state of the same structure, shapes, dtypes and shardings as ``like``.

        Raises:
            CheckpointError: none is there, it is of another task or network shape, or it is truncated.
        """
        stored = self.config()
        if stored.task_id != config.task_id:
            raise CheckpointError(
                f"{self.folder}: a checkpoint of task {stored.task_id}; the run is of task {config.task_id}"
            )
        ours, theirs = config.to_dict(), stored.to_dict()
        for name in ours:
            if name not in CHANGEABLE and name != "task" and ours[name] != theirs[name]:
                raise CheckpointError(
                    f"{self.folder}: its {name} is {theirs[name]}, the run's is {ours[name]}; "
                    f"resume with the same config"
                )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, flat(like))
        leaves = self._restore(state=ocp.args.StandardRestore(abstract))["state"]
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in flat(like)])

    def _restore(self, **items: Any) -> Any:
        step = self.latest()
        if step is None:
            raise CheckpointError(f"{self.folder}: holds no checkpoint; train first, or check the path")
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax, tensorstore and json each raise their own kinds
            raise CheckpointError(
                f"{self.folder / str(step)}: cannot be read (truncated, or of another network): {str(error)[:300]}"
            ) from error

    def close(self) -> None:
        """Release orbax's threads."""
        self._manager.close()
