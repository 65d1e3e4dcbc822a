"""A view on closed-loop tasks that takes corrections of the reactive controller as the action.

``env -> CorrectedQueue``: observations as they are, actions float32[corrections] in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax.adapters.wrappers import Wrapper
from inferencegym_jax.models import EnvParams, ServeAction, ServeObservation
from inferencegym_jax.policies.corrected_queue import QUEUE_CORRECTIONS, QueuePlan, follow_queue, queue_plan_for
from inferencegym_jax.spaces import Box


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QueueState:
    """State of ``CorrectedQueue``."""

    inner: Any  # of the wrapped environment
    observation: ServeObservation  # the last one, as the controller reads it


class CorrectedQueue(Wrapper):
    """As actions corrections of the reactive controller, see ``policies.corrected_queue``. With zeros it is the
    controller. ``info["action"]`` is the ``ServeAction`` that came of them.

    Pure, for one environment: ``vmap`` it, as ``ig.rollout`` does.

    Args:
        env: of a closed-loop task, without views on its observations and actions.
        params: the task, concrete; default: the environment's.

    Raises:
        ValueError: an open-loop task, or no action fits into its memory.
    """

    def __init__(self, env: Any, params: EnvParams | None = None):
        super().__init__(env)
        self._plan: QueuePlan = queue_plan_for(env.table, env.default_params if params is None else params)

    def reset_seed(self, seed: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.reset_seed``."""
        observation, state = self._env.reset_seed(seed, params)
        return observation, QueueState(state, observation)

    def _asked(self, state: QueueState, positions: Any) -> ServeAction:
        return follow_queue(self._plan, jnp.asarray(positions), state.observation).as_arrays()

    def step(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step``."""
        observation, after, *rest = self._env.step(key, state.inner, self._asked(state, action), params)
        return observation, QueueState(after, observation), *rest

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams | None = None) -> Any:
        """See ``Environment.step_env``."""
        observation, after, *rest = self._env.step_env(key, state.inner, self._asked(state, action), params)
        return observation, QueueState(after, observation), *rest

    def action_space(self, params: EnvParams | None = None) -> Box:
        """Box(-1, 1) of one number a correction."""
        del params
        return Box(-1.0, 1.0, (len(QUEUE_CORRECTIONS),))
