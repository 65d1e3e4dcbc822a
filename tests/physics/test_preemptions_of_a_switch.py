"""A change of the weight format stops the engine; what ran is preempted, and `eviction_events` counts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import EngineState
from inferencegym_jax.physics.inflow import Arrivals
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.physics.serving import serve_second


@pytest.mark.slow
def test_what_ran_when_the_weights_changed_is_counted():
    env, params = ig.make(4)
    free = params.replace(active=np.ones_like(params.active))
    knobs = ig.ServeAction(batch_size=96)

    @jax.jit
    def second(states, tier):
        action = knobs.replace(quant_tier=tier).as_arrays()
        return jax.vmap(lambda state: env.step(None, state, action, free))(states)

    _, states = jax.vmap(env.reset_seed, in_axes=(0, None))(jnp.arange(16), free)
    events = []
    for tier in [0] * 30 + [1, 1]:
        ran = np.asarray(states.engine.phases).sum(-1)
        _, states, *_, info = second(states, tier)
        events.append(np.asarray(info["metrics"].eviction_events))
        if len(events) == 31:
            expected = ran
    assert expected.min() > 1
    assert (np.abs(events[30] - expected) < 1).all()  # rounded at random to a whole number
    assert not np.asarray(events[:30]).any() and not events[31].any()


def test_a_stop_in_a_second_without_arrivals_leaves_every_figure_finite():
    """Who ran is to be recomputed, and nobody else is there: the mean prompt is what those that stopped hold."""
    _, params = ig.make(5)
    engine = EngineState.empty().replace(
        phases=jnp.array([1.0, 2.0, 3.0, 4.0]),
        prompt=jnp.float32(5000.0),
        output=jnp.float32(300.0),
        held=jnp.float32(52000.0),
        tier=jnp.int32(1),
    )
    action = ig.ServeAction(batch_size=512, quant_tier=0).as_arrays()
    with jax.disable_jit():
        second, after = serve_second(
            iterations_of(ig.load_table()),
            engine,
            action,
            Arrivals(jnp.zeros(()), jnp.float32(8192.0), jnp.float32(200.0)),
            jnp.asarray(False),
            jnp.array([1.0, 0.0, 0.0]),
            jnp.full(3, 500.0),
            params.engine.replace(memory_gb=np.float32(28.0)),
        )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((second, after)))
    np.testing.assert_allclose(after.preempted, engine.phases)
    np.testing.assert_allclose(after.preempted_tokens, 5200.0)
