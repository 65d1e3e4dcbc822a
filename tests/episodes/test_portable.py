"""What one process compiled and another runs gives the same bits."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.episodes import parallel, portable, single_step
from inferencegym_jax.episodes.single_step import SingleStep


@pytest.fixture
def elsewhere() -> Iterator[list[object]]:
    """Everything is compiled through bytes, as another process would make them; what was asked for."""
    orders: list[object] = []

    def step(env: object) -> bytes:
        orders.append(env)
        return single_step.step_bytes(pickle.loads(pickle.dumps(env)))

    def loop(order: parallel.Loop) -> bytes:
        orders.append(order)
        return parallel.loop_bytes(pickle.loads(pickle.dumps(order)))

    single_step._programs.clear()
    parallel.keep(64)
    single_step.compile_with(step)
    parallel.compile_with(loop)
    yield orders
    single_step.compile_with(None)
    parallel.compile_with(None)
    single_step._programs.clear()
    parallel.keep(64)


def test_a_step_from_elsewhere_is_the_step(elsewhere: list[object]):
    env, params = ig.make(1)
    action = {"batch_size": 128, "spec_length": 2}
    loaded = SingleStep(env, params)
    other = loaded.reset(7)
    other = loaded.step(other.state, loaded.pack_action(action))
    assert len(elsewhere) == 1
    single_step.compile_with(None)
    single_step._programs.clear()
    own = SingleStep(env, params)
    mine = own.reset(7)
    assert other == own.step(mine.state, own.pack_action(action))


def test_a_rollout_from_elsewhere_is_the_rollout(elsewhere: list[object]):
    env, params = ig.make(1)
    loaded = ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3)
    assert isinstance(elsewhere[0], parallel.Loop) and len(elsewhere) == 1
    parallel.compile_with(None)
    parallel.keep(64)
    own = ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3)
    assert jax.tree.structure(loaded) == jax.tree.structure(own)
    assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(own)))


def test_a_maker_that_gives_nothing_leaves_it_to_this_process(elsewhere: list[object]):
    env, params = ig.make(1)
    single_step.compile_with(lambda env: None)
    parallel.compile_with(lambda loop: None)
    assert SingleStep(env, params).reset(7).observation
    assert ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3).reward.shape == (3, 2)
    assert elsewhere == []


def test_bytes_that_are_no_program_are_refused():
    with pytest.raises(Exception, match="pickle|unpickl|load key|invalid"):
        portable.from_bytes(b"nothing")
