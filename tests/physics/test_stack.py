"""A stack of engine profiles: each engine's lookups are those of its own profile."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from inferencegym_jax.physics.kernels import Iterations
from inferencegym_jax.physics.stack import StackedIterations, stacked
from inferencegym_jax.table import TableError
from inferencegym_jax.tasks.draws import engine_named

NAMES = ("a100_sxm FP16", "a100_sxm INT8", "h100_sxm FP16", "l40s INT8")
ENGINES = [engine_named(name) for name in NAMES]


@pytest.fixture(scope="module")
def stack() -> StackedIterations:
    return stacked(ENGINES)


@pytest.mark.ci
@pytest.mark.parametrize("engine", range(len(NAMES)))
def test_each_engine_is_looked_up_as_it_is_alone(stack: StackedIterations, engine: int) -> None:
    profile, tier = ENGINES[engine]
    alone = Iterations(profile)
    tokens = jnp.asarray([1.0, 3.7, 64.0, 801.0, 5000.0])
    context = jnp.asarray([20.0, 700.0, 1500.0, 4000.0, 9000.0])
    here, there = jnp.full(5, engine, jnp.int32), jnp.full(5, tier, jnp.int32)
    pairs = {
        "products": (stack.products_ms(tokens, here), alone.products_ms(tokens, there)),
        "sampled": (stack.sampled_ms(tokens, here), alone.sampled_ms(tokens, there)),
        "budget": (stack.budget_ms(jnp.float32(2048.0), here), alone.budget_ms(jnp.float32(2048.0), there)),
        "attention": (
            stack.decode_attention_ms(tokens, context, here),
            alone.decode_attention_ms(tokens, context, there),
        ),
        "prefill": (stack.prefill_attention_ms(context, here), alone.prefill_attention_ms(context, there)),
        "empty": (stack.empty_ms(here), alone.empty_ms(there)),
    }
    for name, (mine, theirs) in pairs.items():
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs), err_msg=name)
    assert (np.asarray(stack.weight_format(here)) == tier).all()


def test_engines_of_another_model_are_refused_by_name() -> None:
    profile, _ = ENGINES[0]
    other = dataclasses.replace(profile, kv_bytes_per_token=1.0)
    with pytest.raises(TableError, match="kv_bytes_per_token"):
        stacked([(profile, 0), (other, 0)])
    with pytest.raises(TableError, match="at least one"):
        stacked([])
