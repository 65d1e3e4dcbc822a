"""A fleet as Gymnasium sees it: ``FleetGymEnv``, and the ids of the fleet tasks.

    import gymnasium
    import inferencegym_jax.adapters.gymnasium_fleet
    env = gymnasium.make("inferencegym_jax/FleetElastic-v0")

Needs the extra ``gym``. The same seed and actions give the same trajectory as every other path.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from inferencegym_jax.adapters.gymnasium_spaces import check_options, next_episode
from inferencegym_jax.episodes.forks import check_not_forked
from inferencegym_jax.fleet.action import FleetAction
from inferencegym_jax.fleet.environment import FleetEnvironment
from inferencegym_jax.fleet.making import make_fleet
from inferencegym_jax.fleet.observation import FLEET_OBSERVATION
from inferencegym_jax.fleet.spec import FleetSpec, fleet_specs
from inferencegym_jax.fleet.state import FleetParams
from inferencegym_jax.models import check_seed, plain

IDS: dict[str, int] = {}
"""Gymnasium's id of every fleet task -> its number."""


class FleetGymEnv(gymnasium.Env[np.ndarray, Any]):
    """One fleet.

    ``reset(seed=s)`` starts the day of seed s; without one the next episode as auto-reset would. ``step`` takes the
    number of GPUs less one (``Discrete``), a ``FleetAction``, or a mapping of knobs. Observations are
    ``FleetObservation.to_unit``'s, float32 from 0 to 1. Episodes end by truncation. Can be pickled and copied, in the
    middle of an episode too.

    Args:
        task: name, id or ``FleetSpec``.
        changes: fields of the task that differ, and ``table`` and ``trace``, see ``make_fleet``.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, task: int | str | FleetSpec = "fleet-elastic", **changes: Any):
        made = make_fleet(task, **changes)
        self.fleet: FleetEnvironment = made[0]
        self.params: FleetParams = made[1]
        self.action_space: spaces.Space[Any] = spaces.Discrete(int(self.params.gpus))
        self.observation_space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (len(FLEET_OBSERVATION),), np.float32)
        self._state: Any = None
        self._seed: int | None = None
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a day; ``info["seed"]`` is its seed. There are no options.

        Raises:
            ValueError: a bad seed; an option.
            RuntimeError: in a process that was forked after JAX had started.
        """
        check_not_forked()
        check_options(options)
        super().reset(seed=None if seed is None else check_seed(seed))
        self._seed, self._episode = next_episode(seed, self._seed, self._episode, self.np_random)
        seen, self._state = self.fleet.reset_seed(self._seed, self.params)
        return np.asarray(seen.to_unit()), {"seed": self._seed}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision and its five seconds.

        Raises:
            ResetNeeded: before a reset, or after the day's end.
            ValueError, TypeError: an action that cannot be carried out.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step before reset, or after the episode's end: call reset()")
        asked = self._action_of(action)
        seen, state, reward, _, info = self.fleet.step_env(None, self._state, asked, self.params)
        over = int(state.time) >= int(self.params.episode_length)
        self._state = None if over else state
        kept = {name: plain(info[name]) for name in ("timestep", "metrics", "workload", "outcome")}
        return np.asarray(seen.to_unit()), float(reward), False, over, kept

    def _action_of(self, action: Any) -> FleetAction:
        if isinstance(action, FleetAction):
            return self.fleet.action_of(action.to_dict())
        if isinstance(action, dict):
            return self.fleet.action_of({str(name): value for name, value in action.items()})
        if not self.action_space.contains(action):
            raise ValueError(f"action = {action}: must be a whole number from 0 to {int(self.params.gpus) - 1}")
        return FleetAction(gpus=int(action) + 1)


for _spec in fleet_specs().values():
    _name = f"inferencegym_jax/{''.join(letter for letter in _spec.title if letter.isalnum())}-v0"
    IDS[_name] = _spec.id
    gymnasium.register(
        _name,
        entry_point="inferencegym_jax.adapters.gymnasium_fleet:FleetGymEnv",
        kwargs={"task": _spec.id},
        max_episode_steps=_spec.decisions,
    )
