"""The waiting line remembers when its requests came: age of its head, and how many are past their objective.

The state holds how many requests joined in the last 1, 2, ... seconds. Requests come evenly within a second here, and
every class has its share of each second's, so one memory serves all three lines.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax.physics.iteration import TINY

SECOND_MS = 1000.0


def remember(arrived: jax.Array, joined: jax.Array) -> jax.Array:
    """The memory one second later: float32[..., seconds], requests that joined in the last 1, 2, ... seconds."""
    earlier = jnp.concatenate([jnp.zeros_like(arrived[..., :1]), arrived[..., :-1]], axis=-1)
    return earlier + jnp.asarray(joined)[..., None]


def age_ms(arrived: jax.Array, backlog: jax.Array) -> jax.Array:
    """How long ago the request came that has ``backlog`` others behind it, ms; 0 for an empty line.

    A binary search in the memory, linear within its second. What is older than the memory came at its mean rate.
    """
    seconds = arrived.shape[-1]
    node = jnp.zeros_like(backlog, jnp.int32)  # whole seconds that the backlog fills
    step = seconds
    while step > 1:
        step //= 2
        behind = _at(arrived, node + step - 1)
        node = jnp.where(backlog >= behind, node + step, node)
    behind = _at(arrived, node)
    node = jnp.where((node == seconds - 1) & (backlog >= behind), seconds, node)
    last = arrived[..., -1]
    low = jnp.where(node > 0, _at(arrived, jnp.maximum(node - 1, 0)), 0.0)
    high = jnp.where(node < seconds, _at(arrived, jnp.minimum(node, seconds - 1)), low + last / seconds)
    place = (backlog - low) / jnp.maximum(high - low, TINY)
    whole = node.astype(jnp.float32) + jnp.where(node < seconds, jnp.clip(place, 0.0, 1.0), jnp.maximum(place, 0.0))
    return jnp.where(backlog > TINY, SECOND_MS * whole, 0.0)


def younger_than(arrived: jax.Array, age: jax.Array) -> jax.Array:
    """Requests that joined less than ``age`` ms ago; infinite beyond the memory."""
    seconds = arrived.shape[-1]
    x = jnp.clip(age / SECOND_MS, 0.0, float(seconds))
    node = jnp.minimum(x.astype(jnp.int32), seconds - 1)
    low = jnp.where(node > 0, _at(arrived, jnp.maximum(node - 1, 0)), 0.0)
    found = low + (x - node) * (_at(arrived, node) - low)
    return jnp.where(age < SECOND_MS * seconds, found, jnp.inf)


def _at(arrived: jax.Array, node: jax.Array) -> jax.Array:
    return jnp.take_along_axis(arrived, node[..., None], axis=-1, mode="promise_in_bounds")[..., 0]
