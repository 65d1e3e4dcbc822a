"""gymnax's calls over compiled functions of one episode: what an engine's environment and a fleet's have in common."""

from __future__ import annotations

import functools
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import check_seed
from inferencegym_jax.numerics import draws

Params = TypeVar("Params", bound=Any)
State = TypeVar("State", bound=Any)
Action = TypeVar("Action", bound=Any)
Observation = TypeVar("Observation", bound=Any)


class BaseEnvironment(Generic[Params, State, Action, Observation]):
    """The interface of gymnax 1.x.

    A subclass compiles ``_reset_jit(seed, params)``, ``_step_jit(state, action, params)`` and ``_step_env_jit(state,
    action, params)`` with itself static, says which actions can be carried out (``_check``), and has a ``suited_to``.

    Args:
        default_params: the task that calls without params mean.
    """

    _reset_jit: Any
    _step_jit: Any
    _step_env_jit: Any

    def __init__(self, default_params: Params):
        self._default_params = default_params

    @property
    def default_params(self) -> Params:
        """Params of the task that the environment was made for."""
        return self._default_params

    def suited_to(self, params: Params) -> Any:
        """The environment that is compiled for these params."""
        del params
        return self

    def _check(self, action: Action, params: Params) -> None:
        raise NotImplementedError

    def reset(self, key: jax.Array, params: Params | None = None) -> tuple[Observation, State]:
        """Start an episode whose seed is drawn from a JAX key (typed or raw).

        Returns:
            (observation before any request was seen, state).
        """
        return self.reset_env(key, params)

    def reset_env(self, key: jax.Array, params: Params | None = None) -> tuple[Observation, State]:
        """Same as ``reset``: gymnax's name for the reset without wrappers."""
        task = self._default_params if params is None else params
        return self._reset_jit(draws.seed_of_key(key), task)

    def reset_seed(self, seed: int | jax.Array, params: Params | None = None) -> tuple[Observation, State]:
        """Start the episode of an integer seed: the seed of the HTTP contract; a fleet's is its day.

        Args:
            seed: 0 to 4294967295 (a traced or array seed is taken as uint32).
            params: the task; default: the one that the environment was made for.

        Raises:
            ValueError: a seed that is no array, outside that range or no whole number.
        """
        task = self._default_params if params is None else params
        if not isinstance(seed, jax.Array | np.ndarray):
            seed = check_seed(seed)
        return self._reset_jit(jnp.asarray(seed, jnp.uint32), task)

    def step(
        self, key: Any, state: State, action: Action, params: Params | None = None
    ) -> tuple[Observation, State, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """One second of serving (of a fleet: one decision and the five seconds that it holds), with auto-reset after
        the last step.

        Args:
            key: ignored (randomness comes from the state's counters); there for gymnax's signature.
            state: from ``reset`` or ``step``; a batch of states is stepped as ``vmap`` steps it.
            action: a ``ServeAction``, of a fleet a ``FleetAction``. Outside jit a value out of range raises; a traced
                one is clamped at the edge.
            params: the task.

        Returns:
            (observation, state, reward float32, terminated bool, truncated bool, info). After the last step
            observation and state are those of the next episode, whose seed is derived from (seed, episode number), and
            ``info["final_observation"]`` is the last observation of the finished one. ``info["action"]`` is the action
            that was asked for, which wrappers may have made of something else.

        Raises:
            TypeError, ValueError: see ``check_action`` and ``check_fleet_action``.
        """
        del key
        task = self._default_params if params is None else params
        self._check(action, task)
        knobs = action.as_arrays()
        observation, state, reward, terminated, truncated, info = self.suited_to(task)._step_jit(state, knobs, task)
        return observation, state, reward, terminated, truncated, {**info, "action": knobs}

    def step_env(
        self, key: Any, state: State, action: Action, params: Params | None = None
    ) -> tuple[Observation, State, jax.Array, jax.Array, dict[str, Any]]:
        """One step without auto-reset; gymnax's five values (observation, state, reward, terminated, info).

        Past the episode's end the state stays as it is, the reward is 0 and the observation and metrics are those of
        one more step that is not counted.
        """
        del key
        task = self._default_params if params is None else params
        self._check(action, task)
        knobs = action.as_arrays()
        observation, state, reward, terminated, info = self.suited_to(task)._step_env_jit(state, knobs, task)
        return observation, state, reward, terminated, {**info, "action": knobs}

    def is_truncated(self, state: State, params: Params) -> jax.Array:
        """bool: has the episode reached its length."""
        return state.time >= params.episode_length

    def _of_each(self, step: Any, state: State, action: Action, params: Params) -> Any:
        """A step of one environment on a batch of any shape; an action without the batch's axes is everybody's."""
        batch = jnp.shape(state.time)
        action = jax.tree.map(lambda x: jnp.broadcast_to(x, batch), action)
        axis = 0 if jnp.ndim(params.task_id) else None
        return jax.vmap(functools.partial(step, self), in_axes=(0, 0, axis))(state, action, params)
