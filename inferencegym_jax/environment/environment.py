"""The environment: gymnax's interface over the pure step.

``state, action, params -> workload -> simulator -> reward -> observation``. ``Environment`` holds static
configuration only (the latency table); everything that differs between tasks or episodes is in params and state.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment.base import BaseEnvironment
from inferencegym_jax.environment.transition import Dynamics, initial, transition
from inferencegym_jax.models import (
    KNOBS,
    TRAFFIC_TRACE,
    EnvParams,
    EnvState,
    ServeAction,
    ServeObservation,
    check_action,
    is_traced,
    shown,
)
from inferencegym_jax.numerics import draws as random
from inferencegym_jax.numerics.select import select
from inferencegym_jax.physics import open_loop as engine
from inferencegym_jax.physics.engine_checks import check_engine
from inferencegym_jax.scoring.reward import Reward, check_reward
from inferencegym_jax.spaces import ActionSpace, ObservationSpace, action_space, observation_space
from inferencegym_jax.table.latency_table import DISCRETE, LatencyTable
from inferencegym_jax.table.lookup import TableGrid
from inferencegym_jax.tasks.draws import Draws, drawn
from inferencegym_jax.traffic.request_log import RequestLog

assumed_dynamics: Any = jax.make_user_context(default_value=None)
"""``with assumed_dynamics("closed_loop"):`` traced params are taken to be of these dynamics, and steps are compiled
without the others. For what has seen the params before they are traced (``ig.jit``); part of every program's key."""

assumed_source: Any = jax.make_user_context(default_value=None)
"""``with assumed_source(TRAFFIC_FITTED):`` the requests of open-loop tasks in traced params are taken to come from
there, as ``assumed_dynamics``."""


def dynamics_in(tree: Any) -> Dynamics | None:
    """The dynamics of all ``EnvParams`` in a pytree, where there are some, all concrete and of one kind; else None."""
    flag = _only([one.engine.open_loop for one in _params_in(tree)])
    return None if flag is None else "open_loop" if flag else "closed_loop"


def source_in(tree: Any) -> int | None:
    """``EngineParams.traffic`` of all ``EnvParams`` in a pytree, where it is concrete and one; else None."""
    return _only([one.engine.traffic for one in _params_in(tree)])


def _params_in(tree: Any) -> list[EnvParams]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, EnvParams))
    return [x for x in leaves if isinstance(x, EnvParams)]


def _only(values: list[Any]) -> int | None:
    """The one whole number that all of these arrays hold; None where there are several, none, or traced ones."""
    if is_traced(values):
        return None
    distinct = {int(value) for one in values for value in np.ravel(np.asarray(one))}
    return distinct.pop() if len(distinct) == 1 else None


class Environment(BaseEnvironment[EnvParams, EnvState, ServeAction, ServeObservation]):
    """LLM serving under control of the knobs in ``KNOBS``, one action a simulated second.

    Same calls as a gymnax 1.x ``Environment``: ``reset``, ``step`` (with auto-reset), ``reset_env``, ``step_env``,
    spaces. Two environments over equal tables are equal, so ``jax.jit`` with a static environment compiles once for
    all tasks.

    Args:
        table: the latency table.
        default_params: the task that calls without params mean.
        trace: the request log that params may say is replayed.
        reward: ``reward(metrics, workload, params)`` of one second of one environment, a float32 scalar; pure JAX,
            without a Python branch on values. With a parameter ``outcome`` it is given what became of the second's
            requests too. Default: ``scoring.reward``'s. Programs are kept by function: pass the same one again rather
            than a new lambda.
        draws: what is drawn anew for each episode, where the task draws; params say whether it does.

    Raises:
        TypeError: see ``check_reward``.
    """

    def __init__(
        self,
        table: LatencyTable,
        default_params: EnvParams,
        trace: RequestLog | None = None,
        reward: Reward | None = None,
        draws: Draws | None = None,
    ):
        super().__init__(default_params)
        self.draws = draws
        self.grid: TableGrid = TableGrid(table)
        self.trace = trace
        self.dynamics: Dynamics = "mixed" if engine.serves(table) else "closed_loop"
        self.source: int | None = None  # of the requests, where it is compiled for one
        self.reward: Reward | None = None
        self._checked: EnvParams | None = None  # the last params that were found in order
        if reward is not None:
            state, action = (
                jax.eval_shape(self.reset_seed, jax.ShapeDtypeStruct((), jnp.uint32))[1],
                ServeAction().as_arrays(),
            )
            info = jax.eval_shape(lambda s: self.step_env(None, s, action)[4], state)
            check_reward(reward, info["metrics"], info["workload"], default_params, info["outcome"])
            self.reward = reward

    def __hash__(self) -> int:
        """Hash of the table's and the request log's content, the dynamics, the source of the requests, the reward
        function and the draws."""
        return hash(self._content())

    def __eq__(self, other: object) -> bool:
        """Whether the other environment has the same of each."""
        return isinstance(other, Environment) and self._content() == other._content()

    def _content(self) -> tuple[Any, ...]:
        return self.grid, self.trace, self.dynamics, self.source, self.reward, self.draws

    def suited_to(self, params: EnvParams) -> Environment:
        """This environment, compiled for the dynamics that ``params`` have, and for the source of their requests,
        where they can be inspected: without the others, a step takes half the time. Traced params get all, and the
        same numbers.

        Raises:
            TableError: the table does not say what an open-loop engine needs, or its weights do not fit the memory.
            ValueError: the engine's params are out of range; see ``check_engine``.
        """
        if is_traced(params.engine.open_loop):
            return self._with_dynamics(assumed_dynamics.value, assumed_source.value)
        if self.draws is None and not is_traced(params.engine.table) and (np.asarray(params.engine.table) < 0).any():
            raise ValueError("params: of a task that is drawn for each episode; use the environment of ig.make of it")
        flags = np.asarray(params.engine.open_loop) > 0
        if flags.any() and self._checked is not params:
            profile = engine.iterations_of(self.table).profile  # raises, and names what the table lacks
            if not is_traced(params):
                check_engine(profile, params)
                self._checked = params
        if self.dynamics != "mixed":
            return self
        if flags.any() and not flags.all():
            return self
        if not flags.all():
            return self._with_dynamics("closed_loop", None)
        return self._with_dynamics("open_loop", _only([params.engine.traffic]))

    def _with_dynamics(self, dynamics: Dynamics | None, source: int | None) -> Environment:
        if dynamics is None or self.dynamics != "mixed":
            return self
        twin = copy.copy(self)
        twin.dynamics = dynamics
        if dynamics == "open_loop" and self.draws is None and (source != TRAFFIC_TRACE or self.trace is not None):
            twin.source = source
        return twin

    @property
    def name(self) -> str:
        """Name of the environment."""
        return "InferenceGym"

    @property
    def table(self) -> LatencyTable:
        """The latency table."""
        return self.grid.table

    @property
    def num_actions(self) -> int:
        """Number of knobs."""
        return len(KNOBS)

    def _check(self, action: ServeAction, params: EnvParams) -> None:
        del params
        self.check_action(action)

    def check_action(self, action: ServeAction) -> None:
        """Raise for a concrete action outside the knobs' ranges or the table's; see ``models.check_action``."""
        check_action(action)
        if is_traced(action):
            return
        for name in DISCRETE:
            nodes = self.table.axes[name]
            if not 1 < len(nodes) < len(KNOBS[name].options):
                continue
            value = np.asarray(getattr(action, name), np.float64)
            if not np.isin(value, nodes).all():
                raise ValueError(f"{name} = {value}: this latency table has {', '.join(f'{x:g}' for x in nodes)}")

    def action_of(self, knobs: Mapping[str, Any]) -> ServeAction:
        """The action of a mapping of knobs; what it leaves out takes the baseline's value on this table.

        Raises:
            ValueError, TypeError: an unknown knob; see ``check_action``.
        """
        unknown = [name for name in knobs if name not in KNOBS]
        if unknown:
            raise ValueError(f"action: knob {shown(unknown[0])} is unknown; there are {', '.join(KNOBS)}")
        action = ServeAction(**{**self.table.knob_defaults, **knobs})
        self.check_action(action)
        return action

    def episode_params(self, state: EnvState, params: EnvParams) -> EnvParams:
        """The params of the episode that a state is in: ``params``, and of a task that is drawn for each episode what
        its seed drew. For a batch of states one entry each, where something is drawn."""
        if self.draws is None:
            return params
        one = functools.partial(drawn, self.draws, params)
        return jax.vmap(one)(state.seed) if jnp.ndim(state.seed) else one(state.seed)

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """bool: always false, an episode ends by truncation only."""
        del params
        return jnp.zeros_like(state.time, jnp.bool_)

    def action_space(self, params: EnvParams | None = None) -> ActionSpace:
        """The knobs with their ranges; those that the task locks are listed in ``locked``."""
        return action_space(self.default_params if params is None else params)

    def observation_space(self, params: EnvParams | None = None) -> ObservationSpace:
        """The observation fields with their ranges."""
        del params
        return observation_space()

    @functools.partial(jax.jit, static_argnums=0)
    def _reset_jit(self, seed: jax.Array, params: EnvParams) -> tuple[ServeObservation, EnvState]:
        return initial(seed, jnp.zeros_like(seed, jnp.int32), params)

    @functools.partial(jax.jit, static_argnums=0)
    def _step_jit(self, state: EnvState, action: ServeAction, params: EnvParams) -> Any:
        if jnp.ndim(state.time):
            return self._of_each(Environment._step_jit, state, action, params)
        final_observation, after, reward, terminated, info = transition(
            self.grid, state, action, params, self.trace, self.dynamics, self.reward, self.draws, self.source
        )
        truncated = self.is_truncated(after, params)
        done = terminated | truncated
        episode = state.episode + 1
        fresh_observation, fresh = initial(random.episode_seed(state.seed, episode), episode, params)
        observation, after = select(done, (fresh_observation, fresh), (final_observation, after))
        info = {**info, "terminated": terminated, "truncated": truncated, "final_observation": final_observation}
        return observation, after, reward, terminated, truncated, info

    @functools.partial(jax.jit, static_argnums=0)
    def _step_env_jit(self, state: EnvState, action: ServeAction, params: EnvParams) -> Any:
        if jnp.ndim(state.time):
            return self._of_each(Environment._step_env_jit, state, action, params)
        over = self.is_truncated(state, params)
        observation, after, reward, terminated, info = transition(
            self.grid, state, action, params, self.trace, self.dynamics, self.reward, self.draws, self.source
        )
        after = select(over, state, after)
        return observation, after, jnp.where(over, 0.0, reward), terminated, info
