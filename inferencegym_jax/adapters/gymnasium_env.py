"""The environment as Gymnasium sees it: ``InferenceGymEnv``, and the ids of every task.

    import gymnasium
    import inferencegym_jax.adapters.gymnasium_env
    env = gymnasium.make("inferencegym_jax/BurstyShareGPT-v0")
    envs = gymnasium.make_vec("inferencegym_jax/BurstyShareGPT-v0", num_envs=64)   # gymnasium_vector's

Needs the extra ``gym``. The same seed and actions give the same trajectory as every other path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from inferencegym_jax.adapters.gymnasium_spaces import (
    View,
    action_space,
    check_options,
    flatten,
    next_episode,
    observation_space,
    played,
    to_action,
)
from inferencegym_jax.adapters.gymnasium_vector import InferenceGymVectorEnv
from inferencegym_jax.adapters.rendering import RENDER_FPS, RENDER_MODES, Renderer, check_render_mode
from inferencegym_jax.episodes.single_step import SingleStep
from inferencegym_jax.models import EnvParams, check_seed
from inferencegym_jax.scoring.reward import Reward
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import TaskSpec, on_register, short_title, task_specs
from inferencegym_jax.traffic.request_log import RequestLog

__all__ = [
    "IDS",
    "InferenceGymEnv",
    "InferenceGymVectorEnv",
    "action_space",
    "flatten",
    "next_episode",
    "observation_space",
    "to_action",
]

IDS: dict[str, int] = {}
"""Gymnasium's id of every task -> its number. A task that is registered later (``ig.register``) gets its id then."""


class InferenceGymEnv(gymnasium.Env[np.ndarray, Any]):
    """One environment.

    ``reset(seed=s)`` starts the episode of seed s; a reset without one starts the next episode as auto-reset would,
    with a seed derived from (s, episode number). Episodes end by truncation at the task's length (200 steps where it
    states none). ``step`` takes float32[5] in [-1, 1], a ``ServeAction``, or a mapping of knobs in natural units, in
    which what is left out is the baseline's. ``info`` holds timestep, metrics, workload and oom as plain numbers. Can
    be pickled and copied, in the middle of an episode too.

    Args:
        task_id: id, name or ``TaskSpec``.
        normalised: observations in [0, 1] (default) or in natural units.
        table: a latency table of your own, see ``ig.make``.
        trace: a request log of your own, replayed; the same.
        dynamics: the same.
        config: overrides; the same.
        reward: a reward of your own; the same.
        views: wrappers of the environment, the innermost first: ``[ig.wrappers.DiscreteAction]``. Action and
            observation space are then theirs.
        render_mode: None, "ansi" (one line a step), "rgb_array" (the episode's timeline as a picture) or "human" (the
            same in a window).
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}

    def __init__(
        self,
        task_id: int | str | TaskSpec = 1,
        *,
        normalised: bool = True,
        table: str | Path | LatencyTable | None = None,
        trace: str | Path | RequestLog | None = None,
        dynamics: str | None = None,
        config: Mapping[str, Any] | None = None,
        reward: Reward | None = None,
        views: Sequence[View] | View = (),
        render_mode: str | None = None,
    ):
        check_render_mode(render_mode)
        self._played = played(
            task_id,
            normalised=normalised,
            table=table,
            trace=trace,
            dynamics=dynamics,
            config=config,
            reward=reward,
            views=views,
        )
        self.inference_env: Any = self._played.env
        self.params: EnvParams = self._played.params
        self.task_id: int = self._played.spec.id
        self.normalised: bool = normalised
        self.render_mode: str | None = render_mode
        self.action_space: spaces.Space[Any] = self._played.action_space
        self.observation_space: spaces.Space[Any] = self._played.observation_space
        self._single = SingleStep(self.inference_env, self.params)
        self._renderer = Renderer(self._played.spec, self.params, render_mode)
        self._state: bytes | None = None  # of an episode that is under way
        self._seed: int | None = None
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; ``info["seed"]`` is its seed. There are no options.

        Raises:
            ValueError: a bad seed; an option.
        """
        check_options(options)
        super().reset(seed=None if seed is None else check_seed(seed))
        self._seed, self._episode = next_episode(seed, self._seed, self._episode, self.np_random)
        outcome = self._single.reset(self._seed)
        self._state = outcome.state
        self._renderer.begin(self._seed)
        return self._played.flatten(outcome.observation), {"seed": self._seed}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One second of serving."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step before reset, or after the episode's end: call reset()")
        asked = self._played.to_action(action)
        outcome = self._single.step(
            self._state, self._single.pack_action(asked.to_dict() if self._played.takes_knobs else asked)
        )
        self._state = None if outcome.done else outcome.state
        self._renderer.add(outcome.info, outcome.action, outcome.reward)
        return self._played.flatten(outcome.observation), outcome.reward, False, outcome.done, outcome.info

    def render(self) -> Any:
        """The episode so far as the render mode says: a line, uint8[height, width, 3], or None."""
        return self._renderer.render()

    def close(self) -> None:
        """Close the window, if there is one."""
        self._renderer.close()


def register_id(spec: TaskSpec) -> None:
    """Register a task's id with Gymnasium: its title without what is no letter or digit."""
    name = f"inferencegym_jax/{short_title(spec)}-v0"
    IDS[name] = spec.id
    if name in gymnasium.registry:  # of a task that was registered, forgotten and made anew
        del gymnasium.registry[name]
    gymnasium.register(
        name,
        entry_point="inferencegym_jax.adapters.gymnasium_env:InferenceGymEnv",
        vector_entry_point="inferencegym_jax.adapters.gymnasium_vector:InferenceGymVectorEnv",
        kwargs={"task_id": spec.id},
        max_episode_steps=spec.episode_length,
    )


for _spec in task_specs().values():
    register_id(_spec)
on_register(register_id)
