"""Programs compiled without the open loop give the closed loop's numbers, and are used only where they may be."""

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax import engine
from inferencegym_jax.engine_models import ClosedLoop, EngineParams


@pytest.mark.parametrize("task", (1, 2, 3))
def test_a_step_compiled_without_the_open_loop_is_the_step_with_it(task):
    env, params = ig.make(task)
    both = jax.jit(lambda state, action, params: env.step(None, state, action, params))  # traced: the loop is compiled
    _, state = env.reset_seed(3, params)
    action = ig.ServeAction(batch_size=64, kv_budget=0.5).as_arrays()
    for _ in range(20):
        general, special = both(state, action, params), env.step(None, state, action, params)
        for one, other in zip(jax.tree.leaves(general), jax.tree.leaves(special), strict=True):
            if np.issubdtype(one.dtype, np.floating):
                np.testing.assert_allclose(one, other, rtol=1e-6)
            else:
                np.testing.assert_array_equal(one, other)
        state = special[1]


def test_batches_with_an_open_loop_task_keep_the_loop():
    closed, opened = ig.make(1)[1], ig.make(4)[1]
    assert isinstance(engine.specialise(closed).engine, ClosedLoop)
    assert isinstance(engine.specialise(ig.stack_params([closed, closed])).engine, ClosedLoop)
    assert isinstance(engine.specialise(opened).engine, EngineParams)
    assert isinstance(engine.specialise(ig.stack_params([closed, opened])).engine, EngineParams)


def test_traced_params_keep_the_loop():
    kept = []

    @jax.jit
    def look(params):
        kept.append(isinstance(engine.specialise(params).engine, EngineParams))
        return params.rate

    look(ig.make(1)[1])
    assert kept == [True]


def test_the_objective_on_output_time_survives():
    env, params = ig.make(1)
    strict = params.replace(engine=params.engine.replace(slo_tpot_ms=np.float32(1e-3)))
    assert float(ig.evaluate(env, params, ig.policies.baseline, np.arange(2)).slo_attainment.max()) > 0
    assert float(ig.evaluate(env, strict, ig.policies.baseline, np.arange(2)).slo_attainment.max()) == 0
