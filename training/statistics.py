"""Running mean and variance of observations, merged batch by batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from inferencegym_jax.models import FLAT_OBSERVATION_SIZE
from inferencegym_jax.trained import ObservationStatistics


def initial_statistics() -> ObservationStatistics:
    """Mean 0, variance 1, and nothing seen."""
    size = (FLAT_OBSERVATION_SIZE,)
    return ObservationStatistics(jnp.zeros(()), jnp.zeros(size), jnp.ones(size))


def merge(statistics: ObservationStatistics, batch: jax.Array, axis: str | None = None) -> ObservationStatistics:
    """Statistics of everything seen before and a batch (Chan, Golub and LeVeque, 1983).

    Args:
        statistics: so far.
        batch: float32[..., 14], normalised observations.
        axis: mesh axis over which the batch is split, if it is.
    """
    rows = batch.reshape(-1, batch.shape[-1])
    count = jnp.float32(rows.shape[0])
    mean, square = rows.mean(axis=0), jnp.square(rows).mean(axis=0)
    if axis is not None:
        mean, square = jax.lax.pmean((mean, square), axis)
        count = jax.lax.psum(count, axis)
    variance = jnp.maximum(square - mean * mean, 0.0)
    total = statistics.count + count
    shift = mean - statistics.mean
    share = count / total
    return ObservationStatistics(
        count=total,
        mean=statistics.mean + shift * share,
        variance=statistics.variance * (1.0 - share) + variance * share + jnp.square(shift) * share * (1.0 - share),
    )
