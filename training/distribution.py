"""The policy's distribution over raw actions: log-probability and entropy, with a task's locked knobs left out of both.

Sampling and decoding are the library's (``inferencegym_jax.policies.network``), so that training and use agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from inferencegym_jax.models import KNOBS, Knob
from inferencegym_jax.policies.layout import head_sizes
from inferencegym_jax.policies.network import position

HALF_LOG_TWO_PI = 0.9189385332046727


def log_prob_and_entropy(
    outputs: jax.Array, log_std: jax.Array, raw: jax.Array, active: jax.Array, knobs: Mapping[str, Knob] = KNOBS
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of raw actions and entropy of their distribution, sums over the active knobs.

    A locked knob has no effect on the environment; it enters neither sum and so gets no gradient.

    Args:
        outputs: float32[..., HEAD_SIZE], the actor's.
        log_std: float32[2], of the Gaussian positions.
        raw: float32[..., 5], see ``trained.decode``; positions as sampled, before clipping.
        active: bool[5], the task's.
        knobs: that the actor sets; the sizes above are those of the single engine's five.

    Returns:
        (log-probability float32[...], entropy float32[...] in nats).
    """
    outputs, raw = jnp.moveaxis(outputs, -1, 0), jnp.moveaxis(raw, -1, 0)  # samples last: every operation is a vector's
    total = jnp.zeros(outputs.shape[1:], jnp.float32)
    entropies = total
    at = start = 0
    sizes = head_sizes(knobs)
    for i, (name, knob) in enumerate(knobs.items()):
        part, value = outputs[start : start + sizes[name]], raw[i]
        start += sizes[name]
        if knob.kind == "choice":
            log_p = jax.nn.log_softmax(part, axis=0)
            options = jnp.arange(len(part), dtype=jnp.float32).reshape(-1, *(1,) * value.ndim)
            one = jnp.where(value == options, log_p, 0.0).sum(axis=0)
            entropy = -(jnp.exp(log_p) * log_p).sum(axis=0)
        elif knob.kind == "bool":
            one = value * part[0] - jax.nn.softplus(part[0])
            entropy = jax.nn.softplus(part[0]) - part[0] * jax.nn.sigmoid(part[0])
        else:
            z = (value - position(part[0][..., None])) * jnp.exp(-log_std[at])
            one = -0.5 * z * z - log_std[at] - HALF_LOG_TWO_PI
            entropy = jnp.broadcast_to(log_std[at] + 0.5 + HALF_LOG_TWO_PI, one.shape)
            at += 1
        total = total + jnp.where(active[i], one, 0.0)
        entropies = entropies + jnp.where(active[i], entropy, 0.0)
    return total, entropies
