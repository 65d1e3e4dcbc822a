"""Observations as numbers in [0, 1] and actions as numbers in [-1, 1], field by field of ``OBSERVATION`` and
``KNOBS``."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from inferencegym_jax.models import KNOBS, OBSERVATION, Knob, ServeAction, ServeObservation


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
    share = (jnp.clip(jnp.asarray(box, jnp.float32), -1.0, 1.0) + 1.0) / 2.0
    return ServeAction(**{name: _value(knob, share[..., i]) for i, (name, knob) in enumerate(KNOBS.items())})


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
    columns = []
    for name, knob in KNOBS.items():
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
