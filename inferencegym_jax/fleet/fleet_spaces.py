"""Action and observation space of a fleet, read from ``FLEET_KNOBS`` and ``FLEET_OBSERVATION``; see ``spaces``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from inferencegym_jax.fleet.action import FLEET_KNOBS, GPUS, FleetAction, check_fleet_action
from inferencegym_jax.fleet.observation import FLEET_OBSERVATION, FleetObservation
from inferencegym_jax.spaces import Box, Space, draw_knob


@dataclass(frozen=True, eq=False)
class FleetActionSpace(Space):
    """All ``FleetAction`` values that a fleet can carry out.

    Attributes:
        gpus: GPUs that the fleet has; may be traced or batched.
        active: bool[knobs] in the order of ``FLEET_KNOBS``, which the task leaves to the agent; the same.
    """

    gymnax_name: ClassVar[str] = "Dict"
    gpus: Any = GPUS
    active: Any = (True,) * len(FLEET_KNOBS)

    @property
    def locked(self) -> tuple[str, ...]:
        """The knobs that keep their default (of concrete params of one task)."""
        return tuple(name for name, on in zip(FLEET_KNOBS, np.asarray(self.active), strict=True) if not on)

    @property
    def spaces(self) -> Mapping[str, Box]:
        """Every knob's range; of a choice its ends. ``prefill_gpus`` must be below ``gpus`` besides."""
        most = {"gpus": self.gpus, "prefill_gpus": self.gpus - 1}
        return {name: Box(knob.least, most.get(name, knob.most), (), knob.dtype) for name, knob in FLEET_KNOBS.items()}

    @property
    def num_spaces(self) -> int:
        """Number of knobs."""
        return len(FLEET_KNOBS)

    def sample(self, key: jax.Array) -> FleetAction:
        """Every knob uniform over its range, ``prefill_gpus`` below the ``gpus`` drawn."""
        keys = dict(zip(FLEET_KNOBS, jax.random.split(key, len(FLEET_KNOBS)), strict=True))
        drawn = {name: draw_knob(keys[name], FLEET_KNOBS[name]) for name in ("batch_size", "spec_length")}
        gpus = jax.random.randint(keys["gpus"], (), 1, self.gpus + 1)
        return FleetAction(gpus=gpus, prefill_gpus=jax.random.randint(keys["prefill_gpus"], (), 0, gpus), **drawn)

    def contains(self, x: Any) -> bool:
        """Whether a concrete action can be carried out."""
        try:
            check_fleet_action(x, self.gpus)
        except (TypeError, ValueError):
            return False
        return True


@dataclass(frozen=True, eq=False)
class FleetObservationSpace(Space):
    """All ``FleetObservation`` values in natural units; ``shape`` is that of the flattened form."""

    gymnax_name: ClassVar[str] = "Dict"
    shape: tuple[int, ...] = (len(FLEET_OBSERVATION),)

    @property
    def spaces(self) -> Mapping[str, Box]:
        """Every field's range."""
        return {name: Box(field.low, field.high, ()) for name, field in FLEET_OBSERVATION.items()}

    @property
    def num_spaces(self) -> int:
        """Number of fields."""
        return len(FLEET_OBSERVATION)

    def sample(self, key: jax.Array) -> FleetObservation:
        """Every field uniform over its range."""
        keys = jax.random.split(key, len(FLEET_OBSERVATION))
        return FleetObservation(**{name: box.sample(keys[i]) for i, (name, box) in enumerate(self.spaces.items())})

    def contains(self, x: Any) -> bool:
        """Whether every field of a concrete observation is within its range."""
        return isinstance(x, FleetObservation) and all(box.holds(getattr(x, name)) for name, box in self.spaces.items())
