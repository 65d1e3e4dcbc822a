"""Observations as fourteen numbers in [0, 1] and actions as five numbers in [-1, 1]."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from inferencegym_jax.models import KNOBS, OBSERVATION, ServeAction, ServeObservation

LOG_FIELDS = ("queue_depth", "mean_prompt_len", "arrival_rate", "ttft_p50", "tpot_p50", "cost_so_far")


def normalise(observation: ServeObservation) -> jax.Array:
    """float32[..., 14] in [0, 1]: counts, rates, latencies, lengths and cost on a log scale, the rest divided by its
    range.

    ``log(1 + x) / log(1 + high)``; cost_so_far, which has no upper bound, is divided by the log of 100 and may exceed
    1.
    """
    columns = []
    for name, spec in OBSERVATION.items():
        value = jnp.asarray(getattr(observation, name), jnp.float32)
        if name in LOG_FIELDS:
            high = spec.high if math.isfinite(spec.high) else 99.0
            value = jnp.log1p(value) / math.log1p(high)
        else:
            value = value / spec.high
        columns.append(value if spec.size > 1 else value[..., None])
    return jnp.concatenate(columns, axis=-1)


def action_from_box(box: jax.Array) -> ServeAction:
    """A ``ServeAction`` from float[..., 5] in [-1, 1], one number a knob in the order of ``KNOBS``; beyond is clamped.

    kv_budget is linear, batch_size logarithmic and rounded, choices are equal slices of the range, prefill_disagg is
    on above 0.
    """
    share = (jnp.clip(jnp.asarray(box, jnp.float32), -1.0, 1.0) + 1.0) / 2.0
    fields: dict[str, jax.Array] = {}
    for i, (name, knob) in enumerate(KNOBS.items()):
        x = share[..., i]
        if knob.kind == "float":
            fields[name] = knob.low + (knob.high - knob.low) * x
        elif knob.kind == "int":
            span = math.log(knob.high / knob.low)
            fields[name] = jnp.round(knob.low * jnp.exp(span * x)).astype(jnp.int32)
        elif knob.kind == "bool":
            fields[name] = x > 0.5
        else:
            slot = jnp.minimum((x * len(knob.choices)).astype(jnp.int32), len(knob.choices) - 1)
            fields[name] = jnp.asarray(knob.choices, jnp.int32)[slot]
    return ServeAction(**fields)


def box_from_action(action: ServeAction) -> jax.Array:
    """float32[..., 5] in [-1, 1] that ``action_from_box`` maps to ``action``."""
    columns = []
    for name, knob in KNOBS.items():
        value = jnp.asarray(getattr(action, name), jnp.float32)
        if knob.kind == "float":
            share = (value - knob.low) / (knob.high - knob.low)
        elif knob.kind == "int":
            share = jnp.log(value / knob.low) / math.log(knob.high / knob.low)
        elif knob.kind == "bool":
            share = 0.25 + 0.5 * value
        else:
            slot = sum((value >= choice).astype(jnp.float32) for choice in knob.choices[1:])
            share = (slot + 0.5) / len(knob.choices)
        columns.append(2.0 * share - 1.0)
    return jnp.stack(jnp.broadcast_arrays(*columns), axis=-1)
