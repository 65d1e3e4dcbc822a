"""The environment of a fleet: gymnax's interface over the pure step, as ``environment.Environment`` has it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction, check_fleet_action
from inferencegym_jax.fleet.observation import FleetObservation
from inferencegym_jax.fleet.state import TRAINING_SEEDS, FleetParams, FleetState
from inferencegym_jax.fleet.transition import initial, transition
from inferencegym_jax.models import Knob, check_seed, shown
from inferencegym_jax.numerics import draws
from inferencegym_jax.numerics.select import select
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.traffic.request_log import RequestLog


class FleetEnvironment:
    """A fleet of engines behind a router, sized once every five simulated seconds.

    Same calls as ``Environment``: ``reset``, ``reset_seed``, ``step`` (with auto-reset), ``reset_env``, ``step_env``;
    ``rollout`` and ``fold`` play it. Two environments over equal tables and logs are equal.

    Args:
        table: the latency table of one engine; a group of GPUs that shares a model is one engine.
        default_params: the task that calls without params mean.
        trace: a request log that is replayed in place of the params' days.

    Raises:
        TableError: the table says too little of an engine.
    """

    knobs: ClassVar[Mapping[str, Knob]] = FLEET_KNOBS
    """The knobs of its actions."""
    dynamics: ClassVar[str] = "open_loop"

    def __init__(self, table: LatencyTable, default_params: FleetParams, trace: RequestLog | None = None):
        self.table: LatencyTable = table
        self.grid: Any = iterations_of(table)
        self.trace: RequestLog | None = trace
        self._default_params = default_params

    def __hash__(self) -> int:
        """Hash of the engine's profile and the log."""
        return hash((self.grid, self.trace))

    def __eq__(self, other: object) -> bool:
        """Whether the other environment has the same engine and log."""
        return isinstance(other, FleetEnvironment) and (self.grid, self.trace) == (other.grid, other.trace)

    @property
    def name(self) -> str:
        """Name of the environment."""
        return "InferenceGymFleet"

    @property
    def default_params(self) -> FleetParams:
        """Params of the task that the environment was made for."""
        return self._default_params

    @property
    def num_actions(self) -> int:
        """Number of knobs."""
        return len(FLEET_KNOBS)

    def suited_to(self, params: FleetParams) -> FleetEnvironment:
        """This environment: a fleet has one dynamics."""
        del params
        return self

    def reset(self, key: jax.Array, params: FleetParams | None = None) -> tuple[FleetObservation, FleetState]:
        """Start an episode whose seed is drawn from a JAX key (typed or raw).

        Returns:
            (observation before any request was seen, state).
        """
        return self.reset_env(key, params)

    def reset_env(self, key: jax.Array, params: FleetParams | None = None) -> tuple[FleetObservation, FleetState]:
        """Same as ``reset``: gymnax's name for the reset without wrappers."""
        params = self.default_params if params is None else params
        return self._reset_jit(draws.seed_of_key(key), params)

    def reset_seed(
        self, seed: int | jax.Array, params: FleetParams | None = None
    ) -> tuple[FleetObservation, FleetState]:
        """Start the episode of an integer seed, which is its day; those below 2^31 are for tests, others for training.

        Raises:
            ValueError: a seed that is no array, outside 0 to 4294967295 or no whole number.
        """
        params = self.default_params if params is None else params
        if not isinstance(seed, jax.Array | np.ndarray):
            seed = check_seed(seed)
        return self._reset_jit(jnp.asarray(seed, jnp.uint32), params)

    def step(
        self, key: Any, state: FleetState, action: FleetAction, params: FleetParams | None = None
    ) -> tuple[FleetObservation, FleetState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """One decision and the five seconds that it holds, with auto-reset after the last one.

        Args:
            key: ignored (randomness comes from the state's counters); there for gymnax's signature.
            state: from ``reset`` or ``step``; a batch of states is stepped as ``vmap`` steps it.
            action: a ``FleetAction``. Outside jit one that cannot be carried out raises; a traced one is clamped.
            params: the task.

        Returns:
            (observation, state, reward float32, terminated bool, truncated bool, info), as ``Environment.step``; of
            ``info["metrics"]`` and ``info["workload"]`` see ``FleetMetrics`` and ``FleetWorkload``.

        Raises:
            TypeError, ValueError: see ``check_fleet_action``.
        """
        del key
        params = self.default_params if params is None else params
        check_fleet_action(action, params.gpus)
        action = action.as_arrays()
        *result, info = self._step_jit(state, action, params)
        observation, state, reward, terminated, truncated = result
        return observation, state, reward, terminated, truncated, {**info, "action": action}

    def step_env(
        self, key: Any, state: FleetState, action: FleetAction, params: FleetParams | None = None
    ) -> tuple[FleetObservation, FleetState, jax.Array, jax.Array, dict[str, Any]]:
        """One decision without auto-reset; gymnax's five values (observation, state, reward, terminated, info).

        Past the episode's end the state stays as it is and the reward is 0.
        """
        del key
        params = self.default_params if params is None else params
        check_fleet_action(action, params.gpus)
        action = action.as_arrays()
        observation, state, reward, terminated, info = self._step_env_jit(state, action, params)
        return observation, state, reward, terminated, {**info, "action": action}

    def is_truncated(self, state: FleetState, params: FleetParams) -> jax.Array:
        """Whether the episode is at its end, bool."""
        return state.time >= jnp.asarray(params.episode_length, jnp.int32)

    def check_action(self, action: Any) -> None:
        """Raise if a concrete action cannot be carried out, see ``check_fleet_action``."""
        check_fleet_action(action, self.default_params.gpus)

    def action_of(self, knobs: dict[str, Any]) -> FleetAction:
        """The action of a mapping of knobs; what it leaves out takes the knob's default.

        Raises:
            ValueError, TypeError: an unknown knob; see ``check_fleet_action``.
        """
        unknown = [name for name in knobs if name not in FLEET_KNOBS]
        if unknown:
            raise ValueError(f"action: knob {shown(unknown[0])} is unknown; there are {', '.join(FLEET_KNOBS)}")
        action = FleetAction(**knobs)
        self.check_action(action)
        return action

    @functools.partial(jax.jit, static_argnums=0)
    def _reset_jit(self, seed: jax.Array, params: FleetParams) -> tuple[FleetObservation, FleetState]:
        if jnp.ndim(seed):
            axis = 0 if jnp.ndim(params.task_id) else None
            return jax.vmap(functools.partial(FleetEnvironment._reset_jit, self), in_axes=(0, axis))(seed, params)
        return self._initial(seed, jnp.zeros_like(seed, jnp.int32), params)

    def _initial(self, seed: jax.Array, episode: jax.Array, params: FleetParams) -> Any:
        return initial(seed, episode, params, self._rows())

    def _rows(self) -> jax.Array | None:
        return None if self.trace is None else jnp.asarray(self.trace.rows)

    @functools.partial(jax.jit, static_argnums=0)
    def _step_jit(self, state: FleetState, action: FleetAction, params: FleetParams) -> Any:
        if jnp.ndim(state.time):
            return self._of_each(FleetEnvironment._step_jit, state, action, params)
        final_observation, after, reward, info = transition(self.grid, self._rows(), state, action, params)
        truncated = after.time >= params.episode_length
        episode = state.episode + 1
        # a loop of no turns while no episode of the batch ends: a day's scale takes longer than a decision
        observation, after = jax.lax.fori_loop(
            0,
            truncated.astype(jnp.int32),
            lambda _, both: self._initial(_next_seed(both[1].seed, episode), episode, params),
            (final_observation, after),
        )
        terminated = jnp.zeros_like(truncated)
        info = {**info, "terminated": terminated, "truncated": truncated, "final_observation": final_observation}
        return observation, after, reward, terminated, truncated, info

    @functools.partial(jax.jit, static_argnums=0)
    def _step_env_jit(self, state: FleetState, action: FleetAction, params: FleetParams) -> Any:
        if jnp.ndim(state.time):
            return self._of_each(FleetEnvironment._step_env_jit, state, action, params)
        over = state.time >= params.episode_length
        observation, after, reward, info = transition(self.grid, self._rows(), state, action, params)
        after = select(over, state, after)
        return observation, after, jnp.where(over, 0.0, reward), jnp.zeros_like(over), info

    def _of_each(self, step: Any, state: FleetState, action: FleetAction, params: FleetParams) -> Any:
        """A step of one environment on a batch of any shape; an action without the batch's axes is everybody's."""
        batch = jnp.shape(state.time)
        action = jax.tree.map(lambda x: jnp.broadcast_to(x, batch), action)
        axis = 0 if jnp.ndim(params.task_id) else None
        return jax.vmap(functools.partial(step, self), in_axes=(0, 0, axis))(state, action, params)


def _next_seed(seed: jax.Array, episode: jax.Array) -> jax.Array:
    """The seed of the next episode; after a training day comes one."""
    return draws.episode_seed(seed, episode) | (seed & jnp.uint32(TRAINING_SEEDS))
