"""Views of a fleet for learners: the observation in units of capacity, and a rule's corrections as the action.

``env -> FleetNumbers -> float32[FLEET_SIZE]``; ``env -> CorrectedFleet``, which takes corrections besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.adapters.wrappers import Wrapper
from inferencegym_jax.fleet.action import FleetAction
from inferencegym_jax.fleet.observation import FleetObservation
from inferencegym_jax.fleet.rules import RulePlan, rule_start
from inferencegym_jax.fleet.state import FleetParams
from inferencegym_jax.numerics.select import select
from inferencegym_jax.policies.fleet_control import FLEET_CORRECTIONS, follow_rule
from inferencegym_jax.policies.fleet_numbers import FLEET_SIZE, fleet_numbers
from inferencegym_jax.spaces import Box


class FleetNumbers(Wrapper):
    """Observations as float32[FLEET_SIZE], see ``policies.fleet_numbers``; actions are ``FleetAction`` as they were.

    Pure, for one fleet: ``vmap`` it, as ``rollout`` and ``fold`` do.
    """

    def reset_seed(self, seed: Any, params: FleetParams | Any = None) -> Any:
        """See ``FleetEnvironment.reset_seed``."""
        seen, state = self._env.reset_seed(seed, params)
        return fleet_numbers(seen), state

    def step(self, key: Any, state: Any, action: Any, params: FleetParams | Any = None) -> Any:
        """See ``FleetEnvironment.step``; ``info["final_observation"]`` is numbers too."""
        seen, state, *rest, info = self._env.step(key, state, action, params)
        info = {**info, "final_observation": fleet_numbers(info["final_observation"])}
        return fleet_numbers(seen), state, *rest, info

    def step_env(self, key: Any, state: Any, action: Any, params: FleetParams | Any = None) -> Any:
        """See ``FleetEnvironment.step_env``."""
        seen, *rest = self._env.step_env(key, state, action, params)
        return fleet_numbers(seen), *rest

    def observation_space(self, params: FleetParams | Any = None) -> Box:
        """Box of ``FLEET_SIZE`` numbers."""
        del params
        low = np.full(FLEET_SIZE, -1.0, np.float32)
        return Box(low, -low, (FLEET_SIZE,))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CorrectedFleetState:
    """State of ``CorrectedFleet``."""

    inner: Any  # of the fleet
    memory: dict[str, jax.Array]  # the rule's
    seen: FleetObservation  # the last one, as the rule reads it


class CorrectedFleet(FleetNumbers):
    """Numbers as observations, and as actions corrections of a rule: float32[corrections] in [-1, 1], see
    ``policies.fleet_control``. With zeros it is the rule.

    Args:
        env: the fleet, without views on its observations and actions.
        plan: the rule's settings.
    """

    def __init__(self, env: Any, plan: RulePlan):
        super().__init__(env)
        self._plan: RulePlan = plan.as_arrays()

    def reset_seed(self, seed: Any, params: FleetParams | Any = None) -> Any:
        """See ``FleetEnvironment.reset_seed``."""
        seen, state = self._env.reset_seed(seed, params)
        return fleet_numbers(seen), CorrectedFleetState(state, rule_start(self._plan), seen)

    def _asked(self, state: CorrectedFleetState, positions: Any) -> tuple[FleetAction, dict[str, jax.Array]]:
        action, memory = follow_rule(self._plan, jnp.asarray(positions), state.seen, state.memory)
        return action.as_arrays(), memory

    def step(self, key: Any, state: CorrectedFleetState, action: Any, params: FleetParams | Any = None) -> Any:
        """See ``FleetEnvironment.step``; ``info["action"]`` is the ``FleetAction`` that came of it."""
        knobs, memory = self._asked(state, action)
        seen, after, reward, terminated, truncated, info = self._env.step(key, state.inner, knobs, params)
        info = {**info, "final_observation": fleet_numbers(info["final_observation"])}
        memory = select(terminated | truncated, rule_start(self._plan), memory)
        return fleet_numbers(seen), CorrectedFleetState(after, memory, seen), reward, terminated, truncated, info

    def step_env(self, key: Any, state: CorrectedFleetState, action: Any, params: FleetParams | Any = None) -> Any:
        """See ``FleetEnvironment.step_env``."""
        knobs, memory = self._asked(state, action)
        seen, after, *rest = self._env.step_env(key, state.inner, knobs, params)
        return fleet_numbers(seen), CorrectedFleetState(after, memory, seen), *rest

    def action_space(self, params: FleetParams | Any = None) -> Box:
        """Box(-1, 1) of one number a correction."""
        del params
        return Box(-1.0, 1.0, (len(FLEET_CORRECTIONS),))
