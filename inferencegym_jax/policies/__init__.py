"""Policies: the fixed baseline, uniformly random, the best static action, a hand-written controller, trained ones.

Every policy is ``policy(key, observation, carry) -> ServeAction`` (or ``(action, carry)``) for one environment and runs
under jit and vmap; ``init_carry(policy)`` is what it starts an episode with. ``policy_of(name, problem)`` knows them by
name, ``load(path)`` reads a trained one from its file, ``PolicyRunner(policy)`` asks one from a Python loop.
"""

from inferencegym_jax.episodes.policy import init_carry, with_carry
from inferencegym_jax.policies.builtin import baseline, best_static, random, reactive, static
from inferencegym_jax.policies.names import NAMES, policy_of
from inferencegym_jax.policies.policy_file import general_for, has_trained, load, trained
from inferencegym_jax.policies.policy_runner import PolicyRunner
from inferencegym_jax.policies.reactive_plans import reactive_for

__all__ = [
    "NAMES",
    "PolicyRunner",
    "baseline",
    "best_static",
    "general_for",
    "has_trained",
    "init_carry",
    "load",
    "policy_of",
    "random",
    "reactive",
    "reactive_for",
    "static",
    "trained",
    "with_carry",
]
