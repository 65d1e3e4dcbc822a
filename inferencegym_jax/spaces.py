"""Action and observation spaces, read from the ranges in ``models``; neither gymnasium nor gymnax is imported.

Shapes and names follow gymnax's ``spaces`` (``sample(key)``, ``contains(x)``). Where a program has loaded gymnax, a
space is an instance of gymnax's class of that name too, so that trainers that ask ``isinstance`` find what they expect.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import (
    FLAT_OBSERVATION_SIZE,
    KNOBS,
    OBSERVATION,
    EnvParams,
    Knob,
    ServeAction,
    ServeObservation,
    check_action,
    is_traced,
)


class Space:
    """A set that can be sampled and asked for membership."""

    gymnax_name: ClassVar[str] = "Space"  # of gymnax's class that it is an instance of besides
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """An instance, of gymnax's class too where gymnax is loaded: importing it here would load matplotlib."""
        base = getattr(sys.modules.get("gymnax.environments.spaces"), cls.gymnax_name, None)
        return object.__new__(cls if base is None or issubclass(cls, base) else _joined(cls, base))

    def sample(self, key: jax.Array) -> Any:
        """One uniform member."""
        raise NotImplementedError

    def contains(self, x: Any) -> Any:
        """Whether ``x`` is a member."""
        raise NotImplementedError

    def _content(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in dataclasses.fields(self))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        """Same kind of space with equal bounds."""
        if not isinstance(other, Space) or _plain(type(self)) is not _plain(type(other)):
            return False
        return all(np.array_equal(mine, its) for mine, its in zip(self._content(), other._content(), strict=True))

    def __hash__(self) -> int:
        """Hash of kind and shape."""
        return hash((_plain(type(self)), self.shape))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as this library's own class; it is gymnax's again where gymnax is loaded."""
        return _plain(type(self)), self._content()


@functools.cache
def _joined(cls: type, base: type) -> type:
    return type(cls.__name__, (cls, base), {"__module__": cls.__module__, "plain": cls})


def _plain(cls: type) -> type:
    return getattr(cls, "plain", cls)


@dataclass(frozen=True, eq=False)
class Box(Space):
    """float32 arrays of one shape between two bounds."""

    gymnax_name: ClassVar[str] = "Box"
    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: jax.Array) -> jax.Array:
        """One uniform member."""
        return jax.random.uniform(key, self.shape, self.dtype, jnp.asarray(self.low), jnp.asarray(self.high))

    def contains(self, x: Any) -> Any:
        """Whether every number of ``x`` lies within the bounds; a bool, of a traced ``x`` an array."""
        return np.shape(x) == self.shape and self.holds(x)

    def holds(self, x: Any) -> Any:
        """Whether the numbers of an array of any shape lie within the bounds."""
        if is_traced(x):
            return jnp.all((x >= self.low) & (x <= self.high))
        value = np.asarray(x)
        return bool(np.all(value >= self.low) and np.all(value <= self.high))


@dataclass(frozen=True, eq=False)
class Discrete(Space):
    """Whole numbers from 0 to n - 1."""

    gymnax_name: ClassVar[str] = "Discrete"
    n: int
    dtype: Any = jnp.int32

    def sample(self, key: jax.Array) -> jax.Array:
        """One uniform member."""
        return jax.random.randint(key, (), 0, self.n, self.dtype)

    def contains(self, x: Any) -> Any:
        """Whether ``x`` is a whole number from 0 to n - 1; a bool, of a traced ``x`` an array."""
        if is_traced(x):
            return (x >= 0) & (x < self.n) & (x == jnp.floor(x))
        return bool(0 <= x < self.n and x == int(x))


@dataclass(frozen=True, eq=False)
class ActionSpace(Space):
    """All ``ServeAction`` values.

    Attributes:
        active: bool[knobs] in the order of ``KNOBS``, which the task leaves to the agent; may be traced or batched.
    """

    gymnax_name: ClassVar[str] = "Dict"
    active: Any = (True,) * len(KNOBS)

    @property
    def locked(self) -> tuple[str, ...]:
        """The knobs that the task forces to the baseline's value (of concrete params of one task)."""
        return tuple(name for name, on in zip(KNOBS, np.asarray(self.active), strict=True) if not on)

    @property
    def spaces(self) -> Mapping[str, Box]:
        """Every knob's range; of a choice or a switch its ends."""
        return {name: Box(float(knob.least), float(knob.most), (), knob.dtype) for name, knob in KNOBS.items()}

    @property
    def num_spaces(self) -> int:
        """Number of knobs."""
        return len(KNOBS)

    def sample(self, key: jax.Array) -> ServeAction:
        """Every knob uniform over its range."""
        keys = jax.random.split(key, len(KNOBS))
        return ServeAction(**{name: draw_knob(keys[i], knob) for i, (name, knob) in enumerate(KNOBS.items())})

    def contains(self, x: Any) -> bool:
        """Whether a concrete action is within every knob's range."""
        try:
            check_action(x)
        except (TypeError, ValueError):
            return False
        return True


def draw_knob(key: jax.Array, knob: Knob) -> jax.Array:
    """A uniform value of a knob: float32, int32 or bool."""
    if knob.kind == "float":
        return jax.random.uniform(key, (), jnp.float32, knob.low, knob.high)
    if knob.kind == "int":
        return jax.random.randint(key, (), int(knob.low), int(knob.high) + 1)
    if knob.kind == "bool":
        return jax.random.bernoulli(key)
    return jnp.asarray(knob.choices)[jax.random.randint(key, (), 0, len(knob.choices))]


@dataclass(frozen=True, eq=False)
class ObservationSpace(Space):
    """All ``ServeObservation`` values in natural units; ``shape`` is that of the flattened form."""

    gymnax_name: ClassVar[str] = "Dict"
    shape: tuple[int, ...] = (FLAT_OBSERVATION_SIZE,)

    @property
    def spaces(self) -> Mapping[str, Box]:
        """Every field's range."""
        return {
            name: Box(field.low, field.high, () if field.size == 1 else (field.size,))
            for name, field in OBSERVATION.items()
        }

    @property
    def num_spaces(self) -> int:
        """Number of fields."""
        return len(OBSERVATION)

    def sample(self, key: jax.Array) -> ServeObservation:
        """Every field uniform over its range."""
        keys = jax.random.split(key, len(OBSERVATION))
        return ServeObservation(**{name: box.sample(keys[i]) for i, (name, box) in enumerate(self.spaces.items())})

    def contains(self, x: Any) -> bool:
        """Whether every field of a concrete observation is within its range."""
        return isinstance(x, ServeObservation) and all(box.holds(getattr(x, name)) for name, box in self.spaces.items())


def action_space(params: EnvParams) -> ActionSpace:
    """The action space of a task's params, also under ``jit`` and ``vmap``."""
    return ActionSpace(params.active)


def observation_space() -> ObservationSpace:
    """The observation space, the same for all tasks."""
    return ObservationSpace()
