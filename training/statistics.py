"""Means over devices, and the running mean and variance of observations, merged batch by batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from inferencegym_jax.models import FLAT_OBSERVATION_SIZE
from inferencegym_jax.policies.network import ObservationStatistics


def initial_statistics(features: int = FLAT_OBSERVATION_SIZE) -> ObservationStatistics:
    """Mean 0, variance 1, and nothing seen."""
    return ObservationStatistics(jnp.zeros(()), jnp.zeros(features), jnp.ones(features))


def mean_over(axis: str | None, tree: Any) -> Any:
    """Mean over the devices of a mesh axis, sent as one vector: devices of a CPU meet once for every array sent, and a
    meeting takes longer than a minibatch's arithmetic."""
    if axis is None:
        return tree
    vector, rebuild = ravel_pytree(tree)
    return rebuild(jax.lax.pmean(vector, axis))


def merge(statistics: ObservationStatistics, batch: jax.Array, axis: str | None = None) -> ObservationStatistics:
    """Statistics of everything seen before and a batch (Chan, Golub and LeVeque, 1983).

    Args:
        statistics: so far.
        batch: float32[..., features], before they are standardised.
        axis: mesh axis over which the batch is split, if it is.
    """
    rows = batch.reshape(-1, batch.shape[-1])
    count = jnp.float32(rows.shape[0])
    mean, square = rows.mean(axis=0), jnp.square(rows).mean(axis=0)
    mean, square = mean_over(axis, (mean, square))
    if axis is not None:
        count = count * jax.lax.psum(1, axis)
    variance = jnp.maximum(square - mean * mean, 0.0)
    total = statistics.count + count
    shift = mean - statistics.mean
    share = count / total
    return ObservationStatistics(
        count=total,
        mean=statistics.mean + shift * share,
        variance=statistics.variance * (1.0 - share) + variance * share + jnp.square(shift) * share * (1.0 - share),
    )
