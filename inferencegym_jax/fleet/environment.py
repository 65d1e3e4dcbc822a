"""The environment of a fleet: gymnax's interface over the pure step, as ``environment.Environment`` has it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from inferencegym_jax.environment.base import BaseEnvironment
from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction, check_fleet_action
from inferencegym_jax.fleet.fleet_spaces import FleetActionSpace, FleetObservationSpace
from inferencegym_jax.fleet.observation import FleetObservation
from inferencegym_jax.fleet.state import TRAINING_SEEDS, FleetParams, FleetState
from inferencegym_jax.fleet.transition import initial, transition
from inferencegym_jax.models import Knob, shown
from inferencegym_jax.numerics import draws
from inferencegym_jax.numerics.select import select
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.traffic.request_log import RequestLog


class FleetEnvironment(BaseEnvironment[FleetParams, FleetState, FleetAction, FleetObservation]):
    """A fleet of engines behind a router, sized once every five simulated seconds.

    Same calls as ``Environment``: ``reset``, ``reset_seed``, ``step`` (with auto-reset), ``reset_env``, ``step_env``;
    ``rollout`` and ``fold`` play it. A seed is a day; days of seeds below 2^31 are for tests, others for training. Two
    environments over equal tables and logs are equal.

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
        super().__init__(default_params)
        self.table: LatencyTable = table
        self.grid: Any = iterations_of(table)
        self.trace: RequestLog | None = trace

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
    def num_actions(self) -> int:
        """Number of knobs."""
        return len(FLEET_KNOBS)

    def action_space(self, params: FleetParams | None = None) -> FleetActionSpace:
        """The knobs and how many GPUs there are, also under ``jit`` and ``vmap``."""
        task = self.default_params if params is None else params
        return FleetActionSpace(task.gpus, task.active)

    def observation_space(self, params: FleetParams | None = None) -> FleetObservationSpace:
        """The observation's ranges in natural units, the same for all fleets."""
        del params
        return FleetObservationSpace()

    def _check(self, action: FleetAction, params: FleetParams) -> None:
        check_fleet_action(action, params.gpus)

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


def _next_seed(seed: jax.Array, episode: jax.Array) -> jax.Array:
    """The seed of the next episode; after a training day comes one."""
    return draws.episode_seed(seed, episode) | (seed & jnp.uint32(TRAINING_SEEDS))
