"""Policies: the fixed baseline, uniformly random, the best static action, a hand-written controller, trained ones.

Every policy is ``policy(key, observation, carry) -> ServeAction`` (or ``(action, carry)``) for one environment and runs
under jit and vmap.
"""

from inferencegym_jax.policies.builtin import baseline, best_static, random, reactive, static
from inferencegym_jax.policies.network import has_trained, trained
from inferencegym_jax.policies.reactive_control import reactive_for

__all__ = ["baseline", "best_static", "has_trained", "random", "reactive", "reactive_for", "static", "trained"]
