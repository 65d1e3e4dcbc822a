"""Action and observation spaces, read from the ranges in ``models``; no gymnasium, no gymnax.

Shapes and names follow gymnax's ``spaces`` (``sample(key)``, ``contains(x)``), so that its users find what they expect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import (
    FLAT_OBSERVATION_SIZE,
    KNOBS,
    OBSERVATION,
    EnvParams,
    ServeAction,
    ServeObservation,
    check_action,
)


class Space:
    """A set that can be sampled and asked for membership."""

    shape: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    def sample(self, key: jax.Array) -> Any:
        """One uniform member."""
        raise NotImplementedError

    def contains(self, x: Any) -> bool:
        """Whether concrete ``x`` is a member."""
        raise NotImplementedError


@dataclass(frozen=True)
class Box(Space):
    """float32 arrays of one shape between two bounds."""

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: jax.Array) -> jax.Array:
        """One uniform member."""
        return jax.random.uniform(key, self.shape, self.dtype, jnp.asarray(self.low), jnp.asarray(self.high))

    def contains(self, x: Any) -> bool:
        """Whether every number of concrete ``x`` lies within the bounds."""
        return np.shape(x) == self.shape and self.holds(x)

    def holds(self, x: Any) -> bool:
        """Whether the numbers of an array of any shape lie within the bounds."""
        value = np.asarray(x)
        return bool(np.all(value >= self.low) and np.all(value <= self.high))


@dataclass(frozen=True)
class Discrete(Space):
    """Whole numbers from 0 to n - 1."""

    n: int
    dtype: Any = jnp.int32

    def sample(self, key: jax.Array) -> jax.Array:
        """One uniform member."""
        return jax.random.randint(key, (), 0, self.n, self.dtype)

    def contains(self, x: Any) -> bool:
        """Whether concrete ``x`` is a whole number from 0 to n - 1."""
        return bool(0 <= x < self.n and x == int(x))


@dataclass(frozen=True)
class ActionSpace(Space):
    """All ``ServeAction`` values; ``locked`` names the knobs that the task forces to the baseline's value."""

    locked: tuple[str, ...] = ()

    def sample(self, key: jax.Array) -> ServeAction:
        """Every knob uniform over its range."""
        keys = jax.random.split(key, len(KNOBS))
        action = {}
        for key, (name, knob) in zip(keys, KNOBS.items(), strict=True):
            if knob.kind == "float":
                action[name] = jax.random.uniform(key, (), jnp.float32, knob.low, knob.high)
            elif knob.kind == "int":
                action[name] = jax.random.randint(key, (), int(knob.low), int(knob.high) + 1)
            elif knob.kind == "bool":
                action[name] = jax.random.bernoulli(key)
            else:
                action[name] = jnp.asarray(knob.choices)[jax.random.randint(key, (), 0, len(knob.choices))]
        return ServeAction(**action)

    def contains(self, x: Any) -> bool:
        """Whether a concrete action is within every knob's range."""
        try:
            check_action(x)
        except (TypeError, ValueError):
            return False
        return True


@dataclass(frozen=True)
class ObservationSpace(Space):
    """All ``ServeObservation`` values in natural units; ``shape`` is that of the flattened form."""

    shape: tuple[int, ...] = (FLAT_OBSERVATION_SIZE,)

    def contains(self, x: Any) -> bool:
        """Whether every field of a concrete observation is within its range."""
        return isinstance(x, ServeObservation) and all(
            Box(field.low, field.high, ()).holds(getattr(x, name)) for name, field in OBSERVATION.items()
        )


def action_space(params: EnvParams) -> ActionSpace:
    """The action space of a (single) task's params."""
    active = np.asarray(params.active)
    return ActionSpace(tuple(name for name, on in zip(KNOBS, active, strict=True) if not on))


def observation_space() -> ObservationSpace:
    """The observation space, the same for all tasks."""
    return ObservationSpace()
