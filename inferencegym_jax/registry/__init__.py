"""From a task's number or name to all that an agent acts in and is scored by: ``make`` and ``problem``."""

from inferencegym_jax.registry.problem import Problem, make, problem

__all__ = ["Problem", "make", "problem"]
