"""A change of the weight format stops the engine; what ran is preempted, and `eviction_events` counts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig


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
