"""Counts of fleets: whole, with the mean and the variance that are asked for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from inferencegym_jax.numerics import draws
from inferencegym_jax.numerics.gamma import rounded_count

DRAWS = 1 << 17


@pytest.mark.parametrize(("rate", "dispersion"), [(1.0, 1.0), (4.0, 1.5), (30.0, 1.0), (30.0, 2.3), (250.0, 7.3)])
def test_moments(rate: float, dispersion: float) -> None:
    words = draws.hash4(jnp.arange(DRAWS, dtype=jnp.uint32), 3, 32)
    drawn = np.asarray(rounded_count(words[0], words[1], jnp.float32(rate), jnp.float32(dispersion)), np.float64)
    assert (drawn == np.floor(drawn)).all() and drawn.min() >= 0
    deviation = np.sqrt(rate * dispersion)
    assert drawn.mean() == pytest.approx(rate, abs=4 * deviation / np.sqrt(DRAWS) + 0.005 * rate)
    assert drawn.var() == pytest.approx(rate * dispersion, rel=0.04)


def test_nobody_comes_at_rate_0() -> None:
    words = draws.hash4(jnp.arange(1000, dtype=jnp.uint32), 3, 32)
    assert not np.asarray(rounded_count(words[0], words[1], jnp.float32(0.0), jnp.float32(2.0))).any()
