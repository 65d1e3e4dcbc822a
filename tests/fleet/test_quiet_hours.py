"""Hours of a day in which nobody comes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.fleet.traffic import coming


def test_the_mix_of_a_second_without_requests_is_finite() -> None:
    _, params = ig.make_fleet("fleet-elastic-m-mid")
    quiet = params.replace(
        engine=params.engine.replace(
            day=params.engine.day.replace(hours=jnp.zeros_like(jnp.asarray(params.engine.day.hours)))
        )
    )
    of = jax.jit(coming)(jnp.uint32(3), jnp.int32(5), jnp.float32(1.0), quiet, None)
    assert float(of.mix.rate) == 0.0
    for leaf in jax.tree.leaves(of):
        assert np.isfinite(np.asarray(leaf)).all()
    assert float(of.mix.output) >= 1.0 and (np.asarray(of.mix.acceptance) >= 1.0).all()
    busy = jax.jit(coming)(jnp.uint32(3), jnp.int32(5), jnp.float32(1.0), params, None)
    assert float(busy.mix.rate) > 0.0
