"""What a policy is: a function of what it sees and of what it remembers, its carry.

``init_carry(policy) -> carry``; ``act(policy, state, observation, carry) -> action, carry``. A policy without memory
has no carry (None). Whoever runs an episode starts it with ``init_carry`` and hands each carry to the next step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from inferencegym_jax.episodes.wrapped import episode_of
from inferencegym_jax.numerics import draws as random

Policy: TypeAlias = Callable[[jax.Array, Any, Any], Any]
"""``policy(key, observation, carry)`` for one environment returns an action, or (action, new carry): of a bare
environment ``ServeObservation`` and ``ServeAction``, of a wrapped one what the wrapper gives and takes.

A policy that remembers says what it starts an episode with: its attribute ``init_carry`` (``with_carry`` sets it) is a
function that gives the first carry, a pytree of arrays. A rollout compiles once for each function. A
``jax.tree_util.Partial(function, weights)`` hands its weights over as arrays, so that all policies of that function
share one program; ``init_carry`` is then the function's and takes the weights.
"""


def with_carry(start: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of policies that remember::

        @with_carry(lambda: jnp.float32(0.0))
        def policy(key, observation, carry): ...

    Args:
        start: gives the first carry of one environment; of a function that becomes a ``Partial``, from its weights.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__dict__["init_carry"] = start
        return function

    return mark


def init_carry(policy: Policy) -> Any:
    """What a policy remembers before an episode's first step; None for one without memory.

    Args:
        policy: see ``Policy``.

    Returns:
        The first carry of one environment: what the policy's ``init_carry`` gives.
    """
    function: Any = policy
    weights: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    while isinstance(function, functools.partial):  # a jax.tree_util.Partial is one
        weights, named, function = function.args + weights, function.keywords | named, function.func
    start = getattr(function, "init_carry", None)
    return None if start is None else start(*weights, **named)


def spread(tree: Any, count: int) -> Any:
    """The tree for ``count`` environments: every leaf with a leading axis of that length."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), tree)


def act(policy: Policy, state: Any, observation: Any, carry: Any) -> tuple[Any, Any]:
    """One policy call for one environment, with the key of (seed, step).

    Args:
        policy: see ``Policy``.
        state: the environment's, or a wrapper's around it; seed and time are read.
        observation: of the environment.
        carry: what the policy remembers; ``init_carry`` at an episode's start.

    Returns:
        (action of arrays, carry for the next step).
    """
    episode = episode_of(state)
    return act_at(policy, episode.seed, episode.time, observation, carry)


def act_at(policy: Policy, seed: jax.Array, time: jax.Array, observation: Any, carry: Any) -> tuple[Any, Any]:
    """``act`` for the step ``time`` (int32) of the episode of ``seed`` (uint32)."""
    result = policy(random.policy_key(seed, time), observation, carry)
    action, carry = result if isinstance(result, tuple) else (result, carry)
    return action.as_arrays() if hasattr(action, "as_arrays") else action, carry


def carry_on(policy: Policy, carry: Any, done: jax.Array) -> Any:
    """The carry for the step after one: where the episode is over, that of a new episode.

    A policy without ``init_carry`` keeps the carry that it was given over the episodes' ends.

    Args:
        policy: see ``Policy``.
        carry: after the step, of one environment.
        done: bool, the step was the episode's last.
    """
    fresh = init_carry(policy)
    if fresh is None:
        return carry
    return jax.tree.map(lambda first, last: jnp.where(done, first, last), fresh, carry)
