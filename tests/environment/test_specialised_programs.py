"""Programs compiled for one of the two loops give the numbers of the program with both, and run only where they may."""

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import TRAFFIC_DAY, TRAFFIC_FITTED, TRAFFIC_OF_TASK, TRAFFIC_TRACE


@pytest.mark.slow
@pytest.mark.parametrize("task", (1, 2, 3, 4, 7))
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


@pytest.mark.ci
def test_an_open_loop_task_is_compiled_for_the_source_of_its_requests():
    env, fitted = ig.make(4)
    day, own = ig.make(7)[1], ig.make(1, dynamics="open_loop")[1]
    assert env.source is None
    assert env.suited_to(fitted).source == env.suited_to(ig.stack_params([fitted, ig.make(5)[1]])).source
    assert [env.suited_to(params).source for params in (own, fitted, day)] == [
        TRAFFIC_OF_TASK,
        TRAFFIC_FITTED,
        TRAFFIC_DAY,
    ]
    both = env.suited_to(ig.stack_params([fitted, day]))
    assert (both.dynamics, both.source) == ("open_loop", None)
    assert len({env.suited_to(fitted), env.suited_to(day), both}) == 3, "programs are kept by the environment"
    # no log to replay: the program with every source says what such params come to
    assert env.suited_to(fitted.replace(engine=fitted.engine.replace(traffic=TRAFFIC_TRACE))).source is None


@pytest.mark.parametrize("task", (4, 7))
def test_every_program_answers_in_the_same_shapes(task):
    env, params = ig.make(task)
    state, action = env.reset_seed(3, params)[1], ig.ServeAction().as_arrays()
    general = jax.eval_shape(lambda s, a, p: env.step(None, s, a, p), state, action, params)
    special = jax.eval_shape(lambda s, a: env.step(None, s, a, params), state, action)
    assert jax.tree.structure(general) == jax.tree.structure(special)
    kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (general, special)]
    assert kinds[0] == kinds[1]


def test_arrivals_are_counted_by_class_where_the_task_draws_them():
    env, params = ig.make(4)
    step = jax.jit(lambda s, p: env.step(None, s, ig.ServeAction().as_arrays(), p)[1].class_counts)  # all sources
    state = env.reset_seed(3, params)[1]
    own = params.replace(engine=params.engine.replace(traffic=np.int32(TRAFFIC_OF_TASK)), rate=np.float32(20.0))
    assert step(state, params).sum() == 0
    assert step(state, own).sum() > 0
