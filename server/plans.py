"""Plans of the reactive controller, which the child process makes where there is one (``compiler``).

What makes one are programs of 90 MB and five seconds; a second plan takes a moment while they are there.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.policies.reactive_control import ReactivePlan
from inferencegym_jax.policies.reactive_plans import plan_for
from server.memory import let_go

Planner = Callable[[ig.Problem], ReactivePlan]


def planned_here(problem: ig.Problem) -> ReactivePlan:
    """The plan of a task, made in this process.

    Raises:
        ValueError: see ``reactive_for``.
    """
    plan = plan_for(problem.table, problem.params)
    let_go()
    return plan


def plan_order(problem: ig.Problem) -> Any:
    """What ``plan_bytes`` is to be told of a task."""
    params = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, problem.params)
    return problem.table, params


def plan_bytes(order: Any) -> bytes:
    """The plan of an order, or why there is none, for ``plan_of``."""
    try:
        plan: Any = jax.tree.map(np.asarray, plan_for(*order))
    except ValueError as error:
        plan = str(error)
    return pickle.dumps(plan)


def plan_of(made: bytes) -> ReactivePlan:
    """The plan of ``plan_bytes``, its leaves NumPy arrays.

    Raises:
        ValueError: there is none, with the reason.
    """
    plan = pickle.loads(made)
    if isinstance(plan, str):
        raise ValueError(plan)
    return plan
