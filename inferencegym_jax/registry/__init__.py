"""From a task to all that an agent acts in and is scored by: ``make``, ``problem``; own tasks: ``register``."""

from inferencegym_jax.registry.problems import Problem, make, problem
from inferencegym_jax.registry.registration import register, register_file, unregister

__all__ = ["Problem", "make", "problem", "register", "register_file", "unregister"]
