"""Observations as numbers in [0, 1] and actions as numbers in [-1, 1], field by field of ``OBSERVATION`` and
``KNOBS``; and the present observation beside what went before it (``History``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax.models import (
    FLAT_OBSERVATION_SIZE,
    KNOBS,
    OBSERVATION,
    Knob,
    ServeAction,
    ServeObservation,
    check_whole,
    shown,
)

MOST_REMEMBERED = 120
"""Seconds: the most earlier observations that a ``History`` keeps one by one."""


def normalise(observation: ServeObservation) -> jax.Array:
    """float32[..., FLAT_OBSERVATION_SIZE] in [0, 1], in the order of ``OBSERVATION``.

    A field of linear scale is divided by the value that stands for 1 (``ObservationField.full``), one of log scale is
    ``log(1 + x) / log(1 + full)``; what lies beyond is 1.
    """
    columns = []
    for name, field in OBSERVATION.items():
        value = jnp.asarray(getattr(observation, name), jnp.float32)
        value = jnp.log1p(value) / math.log1p(field.full) if field.scale == "log" else value / field.full
        columns.append(value if field.size > 1 else value[..., None])
    return jnp.minimum(jnp.concatenate(columns, axis=-1), 1.0)


def action_from_box(box: jax.Array) -> ServeAction:
    """A ``ServeAction`` from float[..., knobs] in [-1, 1], one number a knob in the order of ``KNOBS``; beyond is
    clamped.

    Numbers are spread over their range on the knob's scale, linear or log, and rounded where they are whole; choices
    are equal slices of the range; a switch is on above 0.
    """
    return ServeAction(**values_from_box(box, KNOBS))


def values_from_box(box: jax.Array, knobs: Mapping[str, Knob]) -> dict[str, jax.Array]:
    """``action_from_box`` for any table of knobs: the value of each, by name."""
    share = (jnp.clip(jnp.asarray(box, jnp.float32), -1.0, 1.0) + 1.0) / 2.0
    return {name: _value(knob, share[..., i]) for i, (name, knob) in enumerate(knobs.items())}


def _value(knob: Knob, share: jax.Array) -> jax.Array:
    """The value of a knob at a share in [0, 1] of its range."""
    if knob.kind == "bool":
        return share > 0.5
    if knob.kind == "choice":
        slot = jnp.minimum((share * len(knob.choices)).astype(jnp.int32), len(knob.choices) - 1)
        return jnp.asarray(knob.choices, jnp.int32)[slot]
    if knob.scale == "log":
        value = knob.low * jnp.exp(math.log(knob.high / knob.low) * share)
    else:
        value = knob.low + (knob.high - knob.low) * share
    return jnp.round(value).astype(jnp.int32) if knob.kind == "int" else value


def box_from_action(action: ServeAction) -> jax.Array:
    """float32[..., knobs] in [-1, 1] that ``action_from_box`` maps to ``action``."""
    return box_from_knobs(action, KNOBS)


def box_from_knobs(action: Any, knobs: Mapping[str, Knob]) -> jax.Array:
    """``box_from_action`` for any table of knobs, attributes of ``action``."""
    columns = []
    for name, knob in knobs.items():
        value = jnp.asarray(getattr(action, name), jnp.float32)
        if knob.kind == "bool":
            share = 0.25 + 0.5 * value
        elif knob.kind == "choice":
            slot = sum((value >= choice).astype(jnp.float32) for choice in knob.choices[1:])
            share = (slot + 0.5) / len(knob.choices)
        elif knob.scale == "log":
            share = jnp.log(value / knob.low) / math.log(knob.high / knob.low)
        else:
            share = (value - knob.low) / (knob.high - knob.low)
        columns.append(2.0 * share - 1.0)
    return jnp.stack(jnp.broadcast_arrays(*columns), axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HistoryCarry:
    """What a ``History`` holds of the seconds before this one; any leading axes (...)."""

    seconds: jax.Array  # float32[...], observations seen
    averages: jax.Array  # float32[..., averages, numbers]
    last: jax.Array  # float32[..., last, numbers], newest first; zeros before there were so many


@dataclass(frozen=True)
class History:
    """An observation's numbers beside their averages and the last observations: memory without a recurrent network.

    Pure, for one environment or any batch of them: ``start() -> carry``; ``extend(carry, x) -> features, carry``.

    Attributes:
        averages_s: time constants T (s) of the averages, each above 1: the mean of all seconds so far until there are
            T of them, from then on each second moves it by 1 / T of the way.
        last: how many earlier observations to keep as they were, 0 to 120.
    """

    averages_s: tuple[float, ...] = (15.0, 120.0)
    last: int = 0

    def __post_init__(self) -> None:
        for value in self.averages_s:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1.0 < value < math.inf:
                raise ValueError(f"averages_s = {shown(value)}: must be finite numbers of seconds above 1")
        object.__setattr__(self, "last", check_whole("last", self.last, 0, MOST_REMEMBERED))
        object.__setattr__(self, "averages_s", tuple(float(value) for value in self.averages_s))

    @property
    def copies(self) -> int:
        """How many times as many numbers come out as go in."""
        return 1 + len(self.averages_s) + self.last

    def start(self, numbers: int = FLAT_OBSERVATION_SIZE, batch: tuple[int, ...] = ()) -> HistoryCarry:
        """Before an episode's first observation.

        Args:
            numbers: of an observation.
            batch: leading axes.
        """
        averages = jnp.zeros((*batch, len(self.averages_s), numbers))
        return HistoryCarry(jnp.zeros(batch), averages, jnp.zeros((*batch, self.last, numbers)))

    def extend(self, carry: HistoryCarry, x: jax.Array) -> tuple[jax.Array, HistoryCarry]:
        """The features of one more observation.

        Args:
            carry: of the seconds before.
            x: float32[..., numbers], an observation.

        Returns:
            (float32[..., copies x numbers]: the observation, its averages with this second in them, the last
            observations from the newest on; the carry for the next second).
        """
        seconds = carry.seconds + 1.0
        constants = jnp.asarray(self.averages_s, jnp.float32)
        share = 1.0 / jnp.minimum(seconds[..., None], constants)
        averages = carry.averages + share[..., None] * (x[..., None, :] - carry.averages)
        parts = jnp.concatenate([x[..., None, :], averages, carry.last], axis=-2)
        last = jnp.concatenate([x[..., None, :], carry.last], axis=-2)[..., : self.last, :]
        return parts.reshape(*x.shape[:-1], -1), HistoryCarry(seconds, averages, last)
