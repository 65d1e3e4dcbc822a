"""Policies: the fixed baseline, uniformly random, the best static action, a hand-written controller, trained ones.

Every policy is ``policy(key, observation, carry) -> ServeAction`` (or ``(action, carry)``) for one environment and runs
under jit and vmap. ``policy_of(name, problem)`` knows them by name, ``load(path)`` reads a trained one from its file.
"""

from inferencegym_jax.policies.builtin import baseline, best_static, random, reactive, static
from inferencegym_jax.policies.names import NAMES, policy_of
from inferencegym_jax.policies.network import has_trained, load, trained
from inferencegym_jax.policies.reactive_plans import reactive_for

__all__ = [
    "NAMES",
    "baseline",
    "best_static",
    "has_trained",
    "load",
    "policy_of",
    "random",
    "reactive",
    "reactive_for",
    "static",
    "trained",
]
