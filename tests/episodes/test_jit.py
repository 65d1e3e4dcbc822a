"""``ig.jit`` compiles a loop of one's own for the dynamics of its params, in parts, with plain ``jit``'s numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.environment import assumed_dynamics, assumed_source, dynamics_in, source_in
from inferencegym_jax.episodes import parallel
from inferencegym_jax.models import TRAFFIC_FITTED, TRAFFIC_OF_TASK

ENV, STATIC = ig.make(1)
OPEN = ig.make(4)[1]


def loop(seeds: Any, params: Any) -> Any:
    """A user's own: scan over vmap(env.step), rewards (steps, environments)."""
    _, states = jax.vmap(ENV.reset_seed, in_axes=(0, None))(seeds, params)
    action = ig.ServeAction(batch_size=64).as_arrays()

    def body(states: Any, _: Any) -> Any:
        _, states, reward, *_ = jax.vmap(ENV.step, in_axes=(None, 0, None, None))(None, states, action, params)
        return states, reward

    return jax.lax.scan(body, states, None, length=4)[1]


@pytest.mark.ci
def test_it_gives_plain_jits_numbers_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PART_MINIMUM", 2)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    seeds = jnp.arange(8, dtype=jnp.uint32)
    expected = ig.rollout(
        ENV, STATIC, lambda key, observation, carry: ig.ServeAction(batch_size=64), np.arange(8), length=4
    ).reward
    in_parts = ig.jit(batch=(0,), out=1)(loop)
    assert in_parts._parts((seeds, STATIC)) == 2
    np.testing.assert_allclose(in_parts(seeds, STATIC), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ig.jit(loop)(seeds, STATIC), expected, rtol=1e-5, atol=1e-6)


def test_params_decide_what_is_compiled_also_in_what_was_traced_before() -> None:
    seen: list[Any] = []

    @jax.jit
    def inner(params: Any) -> Any:
        suited = ENV.suited_to(params)
        seen.append((suited.dynamics, suited.source))
        return params.rate

    run = ig.jit(lambda params: inner(params))
    for params in (STATIC, OPEN, STATIC):
        run(params)
    inner(OPEN)
    run(ig.stack_params([STATIC, OPEN]))
    assert seen == [("closed_loop", None), ("open_loop", TRAFFIC_FITTED), ("mixed", None), ("mixed", None)]
    assert assumed_dynamics.value is None and assumed_source.value is None


@pytest.mark.parametrize(
    ("tree", "dynamics", "source"),
    [
        ((1, {"p": STATIC}), "closed_loop", TRAFFIC_OF_TASK),
        ((OPEN, OPEN), "open_loop", TRAFFIC_FITTED),
        ((STATIC, OPEN), None, None),
        ((np.ones(3),), None, None),
        ((ig.stack_params([STATIC, OPEN]),), None, None),
    ],
)
def test_dynamics_are_read_from_the_arguments(tree: Any, dynamics: str | None, source: int | None) -> None:
    assert (dynamics_in(tree), source_in(tree)) == (dynamics, source)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="static"):
        ig.jit(loop, batch=(0,), static_argnums=1)
    with pytest.raises(ValueError, match="one length"):
        ig.jit(lambda a, b: a, batch=(0, 1))(jnp.zeros(2), jnp.zeros(3))
