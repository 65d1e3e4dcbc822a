"""Policies that need no training: the fixed baseline, uniformly random, the best static action, a hand-written
controller.

Every policy is ``policy(key, observation, carry) -> ServeAction`` for one environment and runs under jit and vmap.
Knobs that a task locks are forced to the baseline's value by the environment, so a policy may set all five.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax import random as counters
from inferencegym_jax.models import KNOBS, ServeAction, ServeObservation
from inferencegym_jax.rollout import Policy
from inferencegym_jax.tasks import calibration, get_task


def baseline(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """The fixed action of "naive vLLM defaults": batch 32, full KV budget, no drafts, FP16, one GPU."""
    del key, observation, carry
    return ServeAction()


def random(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """Every knob uniform over its range."""
    del observation, carry
    data = jax.random.key_data(key)
    first, second, third, fourth = counters.hash4(data[..., 0], data[..., 1], counters.POLICY)
    spec = jnp.asarray(KNOBS["spec_length"].choices, jnp.int32)
    low, high = KNOBS["kv_budget"].low, KNOBS["kv_budget"].high
    most = int(KNOBS["batch_size"].high)
    return ServeAction(
        kv_budget=low + (high - low) * counters.uniform(first),
        spec_length=spec[_below(second, len(KNOBS["spec_length"].choices))],
        batch_size=1 + _below(third, most),
        prefill_disagg=(fourth >> 31).astype(jnp.bool_),
        quant_tier=_below(fourth << 1, len(KNOBS["quant_tier"].choices)),
    )


def _below(word: jax.Array, n: int) -> jax.Array:
    """int32 in 0 to n - 1 from the upper 16 bits of a word; the bias is at most n / 65536."""
    return (((word >> 16) * jnp.uint32(n)) >> 16).astype(jnp.int32)


@functools.cache
def static(action: ServeAction) -> Policy:
    """The policy that always takes one action (of Python numbers)."""

    def policy(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
        del key, observation, carry
        return action

    return policy


def best_static(task: int | str) -> Policy:
    """The static action with the highest mean score of an exhaustive search on the shipped table
    (``data/calibration.json``)."""
    return static(ServeAction(**calibration()["tasks"][get_task(task).name]["best_static"]["action"]))


def reactive(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """A hand-written controller."""
    del key, carry
    return ServeAction()
