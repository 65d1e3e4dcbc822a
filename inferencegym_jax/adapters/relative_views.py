"""Views for one policy on many tasks: the observation in units of the task's own objectives and capacity, and the
load-following controller's corrections as the action.

``env -> RelativeObservation -> float32[RELATIVE_SIZE]``; ``env -> CorrectedControl``, which takes corrections besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.adapters.wrappers import Wrapper
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.episodes.wrapped import episode_of
from inferencegym_jax.models import EnvParams, ServeAction, ServeObservation
from inferencegym_jax.numerics.select import select
from inferencegym_jax.policies import policy_of
from inferencegym_jax.policies.corrected import CORRECTIONS, follow, positions_policy
from inferencegym_jax.policies.engine_units import Engine, drawn_engine, engine_of
from inferencegym_jax.policies.load_following import LoadPlan, Memory
from inferencegym_jax.policies.names import GENERAL
from inferencegym_jax.policies.network import PolicyNetwork, network_policy
from inferencegym_jax.policies.policy_file import GENERAL as GENERAL_FILE
from inferencegym_jax.policies.policy_file import corrects, load_network, playable, reads_relative
from inferencegym_jax.policies.relative import RELATIVE_SIZE, Seen, acted, relative
from inferencegym_jax.registry import Problem
from inferencegym_jax.spaces import Box
from inferencegym_jax.table.latency_table import data_path

MOST = 2.5  # of a relative number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RelativeState:
    """State of ``RelativeObservation``."""

    inner: Any  # of the wrapped environment
    seen: Seen


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CorrectedState:
    """State of ``CorrectedControl``."""

    inner: Any  # of the wrapped environment
    seen: Seen
    memory: Memory
    observation: ServeObservation  # the last one, as the controller reads it


class RelativeObservation(Wrapper):
    """Observations as float32[RELATIVE_SIZE], see ``policies.relative``: loads as shares of one GPU's capacity,
    latencies over their objectives, and what the task is.

    Pure, for one environment: ``vmap`` it, as ``ig.rollout`` does. What it remembers is in its state and is forgotten
    where an episode ends.

    Args:
        env: the environment, without a view on its observations.
        params: the task, concrete; default: the environment's.

    Raises:
        TableError: the table says too little of an engine.
    """

    def __init__(self, env: Any, params: EnvParams | None = None):
        super().__init__(env)
        self._params: EnvParams = env.default_params if params is None else params
        self._engine: Engine | None = None if env.draws is not None else engine_of(env.table, self._params)

    def engine_at(self, state: Any) -> Engine:
        """What a controller knows of the GPU and the task of the episode that a state is in."""
        if self._engine is not None:
            return self._engine
        return drawn_engine(self.draws, self._params, episode_of(state).seed)

    def reset_seed(self, seed: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset_seed``."""
        observation, state = self._env.reset_seed(seed, params)
        numbers, seen = self._first(observation, state)
        return numbers, RelativeState(state, seen)

    def _first(self, observation: ServeObservation, state: Any) -> tuple[jax.Array, Seen]:
        return relative(self.engine_at(state), observation, Seen.start())

    def _seen(self, state: Any, action: ServeAction, observation: ServeObservation) -> tuple[jax.Array, Seen]:
        return relative(self.engine_at(state.inner), observation, acted(state.seen, action))

    def step(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``; ``info["final_observation"]`` is relative too."""
        observation, after, reward, terminated, truncated, info = self._env.step(key, state.inner, action, params)
        last = self._seen(state, action, info["final_observation"])
        numbers, seen = select(terminated | truncated, self._first(observation, after), last)
        info = {**info, "final_observation": last[0]}
        return numbers, RelativeState(after, seen), reward, terminated, truncated, info

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``."""
        observation, after, *rest = self._env.step_env(key, state.inner, action, params)
        numbers, seen = self._seen(state, action, observation)
        return numbers, RelativeState(after, seen), *rest

    def observation_space(self, params: EnvParams | None = None) -> Box:
        """Box of ``RELATIVE_SIZE`` numbers."""
        del params
        low = np.zeros(RELATIVE_SIZE, np.float32)
        return Box(low, low + MOST, (RELATIVE_SIZE,))


class CorrectedControl(RelativeObservation):
    """Relative observations, and as actions corrections of the load-following controller: float32[corrections] in
    [-1, 1], see ``policies.corrected``. With zeros it is the controller.

    Args:
        env: the environment, without views on its observations and actions.
        plan: the controller's settings.
        params: the task, concrete; default: the environment's.
    """

    def __init__(self, env: Any, plan: LoadPlan, params: EnvParams | None = None):
        super().__init__(env, params)
        self._plan: LoadPlan = plan.as_arrays()

    def reset_seed(self, seed: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset_seed``."""
        observation, state = self._env.reset_seed(seed, params)
        numbers, seen = self._first(observation, state)
        return numbers, CorrectedState(state, seen, Memory.start(), observation)

    def _asked(self, state: CorrectedState, positions: jax.Array) -> tuple[ServeAction, Memory]:
        engine = self.engine_at(state.inner)
        action, memory = follow(engine, self._plan, jnp.asarray(positions), state.observation, state.memory)
        return action.as_arrays(), memory

    def step(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``; ``info["action"]`` is the ``ServeAction`` that came of it."""
        knobs, memory = self._asked(state, action)
        observation, after, reward, terminated, truncated, info = self._env.step(key, state.inner, knobs, params)
        last = self._seen(state, knobs, info["final_observation"])
        first = *self._first(observation, after), Memory.start(), observation
        same = *last, memory, info["final_observation"]
        numbers, seen, memory, observation = select(terminated | truncated, first, same)
        info = {**info, "final_observation": last[0]}
        return numbers, CorrectedState(after, seen, memory, observation), reward, terminated, truncated, info

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``."""
        knobs, memory = self._asked(state, action)
        observation, after, *rest = self._env.step_env(key, state.inner, knobs, params)
        numbers, seen = self._seen(state, knobs, observation)
        return numbers, CorrectedState(after, seen, memory, observation), *rest

    def action_space(self, params: EnvParams | None = None) -> Box:
        """Box(-1, 1) of one number a correction."""
        del params
        return Box(-1.0, 1.0, (len(CORRECTIONS),))


def env_and_policy(name: str, problem: Problem) -> tuple[Any, Policy]:
    """The policy of a name and the environment that it plays in: the problem's, or, where a network must be told what
    each episode drew, the view on it that tells.

    Args:
        name: see ``policies.policy_of``.
        problem: where it is to act.

    Raises:
        ValueError, FileNotFoundError: see ``policies.policy_of``.
    """
    usual = name.replace("-", "_")
    path = data_path(GENERAL_FILE) if usual == GENERAL else name
    learned = problem.env.draws is not None and Path(path).exists()
    return network_on(*load_network(path), problem) if learned else (problem.env, policy_of(name, problem))


def network_on(network: PolicyNetwork, metadata: Mapping[str, Any], problem: Problem) -> tuple[Any, Policy]:
    """A file's network as a policy, and the environment or the view on it that it plays in; see ``env_and_policy``."""
    if problem.env.draws is None or not reads_relative(metadata):
        return problem.env, playable(network, metadata, problem)
    if corrects(metadata):
        view = CorrectedControl(problem.env, LoadPlan(**metadata["plan"]), problem.params)
        return view, positions_policy(network)
    return RelativeObservation(problem.env, problem.params), network_policy(network)
