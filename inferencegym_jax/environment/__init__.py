"""The environment: the pure step of one second, and the class that holds its static configuration."""

from inferencegym_jax.environment.environment import (
    Environment,
    assumed_dynamics,
    assumed_source,
    dynamics_in,
    source_in,
)
from inferencegym_jax.environment.transition import Dynamics, effective_action, initial, transition

__all__ = [
    "Dynamics",
    "Environment",
    "assumed_dynamics",
    "assumed_source",
    "dynamics_in",
    "effective_action",
    "initial",
    "source_in",
    "transition",
]
