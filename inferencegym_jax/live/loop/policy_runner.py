"""A policy by name or file, asked from outside jit: one observation in, checked knob values out.

Names: baseline, reactive, random, best_static, trained, ``batch_size=N``, or the path of a trained policy's file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes.rollout import Policy, act
from inferencegym_jax.models import ServeAction, ServeObservation, check_action
from inferencegym_jax.physics.observation import initial_observation
from inferencegym_jax.policies.network import load_network, network_policy, trained

NAMES = ("baseline", "reactive", "random", "best_static", "trained")


class PolicyError(ValueError):
    """A policy that cannot be loaded, or an answer that cannot be used."""


def load_policy(name: str, task: int | str = 2) -> Policy:
    """The policy of a name or a file.

    Args:
        name: see the module.
        task: for which task best_static and trained were found.

    Raises:
        PolicyError: no such name or file, or a file that is no policy.
    """
    if name in ("baseline", "reactive", "random"):
        return getattr(ig.policies, name)
    if name == "best_static":
        return ig.policies.best_static(task)
    if name.startswith("batch_size="):
        return _static(name)
    try:
        if name == "trained":
            return trained(task)
        if Path(name).is_file():
            network, _ = load_network(name)
            return network_policy(network)
    except (OSError, ValueError) as error:
        raise PolicyError(str(error)) from error
    raise PolicyError(f"policy = {name!r}: no such file; give one, {', '.join(NAMES)}, or batch_size=N")


def _static(name: str) -> Policy:
    try:
        action = ServeAction(batch_size=int(name.partition("=")[2]))
        check_action(action)
    except ValueError as error:
        raise PolicyError(f"policy = {name!r}: {error}") from None
    return ig.policies.static(action)


class PolicyRunner:
    """Keeps a policy's carry and counters between calls; compiled on construction, so that the first second is not
    late."""

    def __init__(self, policy: Policy, seed: int = 0, carry: Any = None):
        self.seed, self.step, self.carry = seed, 0, carry

        def ask(seed: jax.Array, step: jax.Array, observation: ServeObservation, carry: Any) -> Any:
            return act(policy, _Counters(seed, step), observation, carry)

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


class _Counters:
    """What ``act`` reads of an environment's state."""

    def __init__(self, seed: jax.Array, time: jax.Array):
        self.seed, self.time = seed, time
