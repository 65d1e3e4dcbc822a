"""The environment: the pure step of one second, and the class that holds its static configuration."""

from inferencegym_jax.environment.environment import Environment, assumed_dynamics, dynamics_in
from inferencegym_jax.environment.transition import Dynamics, effective_action, initial, transition

__all__ = [
    "Dynamics",
    "Environment",
    "assumed_dynamics",
    "dynamics_in",
    "effective_action",
    "initial",
    "transition",
]
