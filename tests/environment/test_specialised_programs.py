"""Programs compiled for one of the two loops give the numbers of the program with both, and run only where they may."""

import jax
import numpy as np
import pytest

import inferencegym_jax as ig


@pytest.mark.slow
@pytest.mark.parametrize("task", (1, 2, 3, 4))
def test_a_step_compiled_for_its_loop_is_the_step_with_both(task):
    env, params = ig.make(task)
    both = jax.jit(lambda state, action, params: env.step(None, state, action, params))  # traced: both are compiled
    _, state = env.reset_seed(3, params)
    action = ig.ServeAction(batch_size=64, kv_budget=0.5).as_arrays()
    for _ in range(20):
        general, special = both(state, action, params), env.step(None, state, action, params)
        for one, other in zip(jax.tree.leaves(general), jax.tree.leaves(special), strict=True):
            if np.issubdtype(one.dtype, np.floating):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(one, other)
        state = special[1]


def test_a_batch_of_both_kinds_and_traced_params_keep_both_loops():
    env, closed = ig.make(1)
    opened = ig.make(4)[1]
    assert env.suited_to(closed).dynamics == "closed_loop"
    assert env.suited_to(ig.stack_params([closed, closed])).dynamics == "closed_loop"
    assert env.suited_to(opened).dynamics == "open_loop"
    assert env.suited_to(ig.stack_params([closed, opened])).dynamics == "mixed"
    seen = []

    @jax.jit
    def look(params):
        seen.append(env.suited_to(params).dynamics)
        return params.rate

    look(closed)
    assert seen == ["mixed"]
