"""A policy asked from outside jit: one observation in, checked knob values out.

    runner = PolicyRunner(policy)
    runner.reset(seed)                  # at an episode's start
    action = runner.ask(observation)    # once a second

For loops written in Python, whatever steps the environment: ``SingleStep``, Gymnasium, HTTP, a live server.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.episodes.policy import Policy, act_at, init_carry, spread
from inferencegym_jax.models import ServeAction, ServeObservation, check_action, check_seed
from inferencegym_jax.physics.observation import initial_observation

# a policy asked for two environments at once rounds as it does in a rollout of many; alone it may not
WIDTH = 2


class PolicyError(ValueError):
    """A policy whose action cannot be used."""


class PolicyRunner:
    """Keeps a policy's carry and counters between calls; compiled on construction, so that the first second is not
    late.

    Args:
        policy: see ``episodes.policy.Policy``.
        seed: of the episode: with the step it gives the policy's key.
        carry: what the policy starts with; default: ``init_carry`` of the policy.
    """

    def __init__(self, policy: Policy, seed: int = 0, carry: Any = None):
        self.policy: Policy = policy
        self.seed: int = 0
        self.step: int = 0
        self.carry: Any = None

        def ask(seed: jax.Array, step: jax.Array, observation: ServeObservation, carry: Any) -> Any:
            several = spread((seed, step, observation, carry), WIDTH)
            decisions = jax.vmap(functools.partial(act_at, policy))(*several)
            return jax.tree.map(lambda x: x[0], decisions)

        self._ask = jax.jit(ask)
        self.reset(seed, carry)
        self._call(initial_observation(), self.carry)

    def reset(self, seed: int = 0, carry: Any = None) -> None:
        """Start an episode: its first step, and nothing remembered.

        Args:
            seed: of the episode, 0 to 4294967295.
            carry: what the policy starts with; default: ``init_carry`` of the policy.

        Raises:
            ValueError: another seed.
        """
        self.seed, self.step = check_seed(seed), 0
        self.carry = init_carry(self.policy) if carry is None else carry

    def _call(self, observation: ServeObservation, carry: Any) -> tuple[ServeAction, Any]:
        # a list of shares, as it comes over HTTP, is one array
        arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), observation, is_leaf=_is_listed)
        return self._ask(jnp.uint32(self.seed), jnp.int32(self.step), arrays, carry)

    def ask(self, observation: ServeObservation) -> ServeAction:
        """The policy's action, as Python numbers within the knobs' ranges.

        Args:
            observation: of one environment, arrays, Python numbers or lists of them.

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


def _is_listed(value: Any) -> bool:
    return isinstance(value, list | tuple)
