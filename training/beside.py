"""A policy and actions that are held, on the same episodes and in one compiled program.

``problem, policy, actions, seeds -> trajectories``. Compiling an open-loop step takes longer than playing thousands of
its episodes; ``training/lanes.py`` is the same for rivals that need no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import inferencegym_jax as ig
from inferencegym_jax import Problem, ServeAction
from inferencegym_jax.episodes.policy import Policy, init_carry, spread


def play_beside(
    problem: Problem, policy: Policy, actions: Sequence[ServeAction | None], seeds: np.ndarray
) -> list[ig.Trajectory]:
    """Whole episodes under each action, and under the policy where an entry is None.

    Args:
        problem: a task that is not drawn for each episode.
        policy: of the problem's own environment.
        actions: each is held for the episode; None: the policy acts.
        seeds: uint32[episodes].

    Returns:
        A trajectory of NumPy arrays for each entry; leading axes (steps, episodes).
    """
    count = len(seeds)
    parts = [
        (np.bool_(action is not None), (action or ServeAction()).as_arrays(), init_carry(policy)) for action in actions
    ]
    carry: Any = jax.tree.map(lambda *xs: np.concatenate(xs), *(spread(part, count) for part in parts))
    behaviour = Partial(_held_or_asked, policy)
    everywhere = np.tile(seeds, len(parts))
    rolled = ig.rollout(problem.env, problem.params, behaviour, everywhere, carry=carry, carry_axis=0)
    rolled = jax.tree.map(np.asarray, rolled)
    return [jax.tree.map(lambda x, i=i: x[:, i * count : (i + 1) * count], rolled) for i in range(len(parts))]


def _held_or_asked(policy: Policy, key: jax.Array, observation: Any, carry: Any) -> Any:
    """The action in the carry where it is to be held, else the policy's."""
    held, action, inner = carry
    asked = policy(key, observation, inner)
    asked, inner = asked if isinstance(asked, tuple) else (asked, inner)
    taken = jax.tree.map(lambda a, b: jnp.where(held, a, b), action, asked.as_arrays())
    return taken, (held, action, inner)
