"""A policy asked from outside jit: one observation in, checked knob values out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.models import ServeAction, ServeObservation, check_action
from inferencegym_jax.numerics import draws
from inferencegym_jax.physics.observation import initial_observation


class PolicyError(ValueError):
    """A policy whose action cannot be used."""


class PolicyRunner:
    """Keeps a policy's carry and counters between calls; compiled on construction, so that the first second is not
    late."""

    def __init__(self, policy: Policy, seed: int = 0, carry: Any = None):
        self.seed, self.step, self.carry = seed, 0, carry

        def ask(seed: jax.Array, step: jax.Array, observation: ServeObservation, carry: Any) -> Any:
            result = policy(draws.policy_key(seed, step), observation, carry)
            action, carry = result if isinstance(result, tuple) else (result, carry)
            return action.as_arrays(), carry

        self._ask = jax.jit(ask)
        self._call(initial_observation(), carry)

    def _call(self, observation: ServeObservation, carry: Any) -> tuple[ServeAction, Any]:
        arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), observation)
        return self._ask(jnp.uint32(self.seed), jnp.int32(self.step), arrays, carry)

    def ask(self, observation: ServeObservation) -> ServeAction:
        """The policy's action, as Python numbers within the knobs' ranges.

        Raises:
            PolicyError: the policy raised, or a knob is not finite or out of its range.
        """
        try:
            action, carry = self._call(observation, self.carry)
            values = jax.tree.map(lambda x: np.asarray(x).item(), action)
            check_action(values)
        except Exception as error:
            raise PolicyError(f"the policy failed: {error}") from error
        self.carry = carry
        self.step += 1
        return values
