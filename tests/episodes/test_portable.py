"""What one process compiled and another runs gives the same bits."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.episodes import on_demand, parallel, portable, single_step
from inferencegym_jax.episodes.single_step import SingleStep

pytestmark = pytest.mark.ci
COMPILE = """
import pickle, sys
from inferencegym_jax.episodes.parallel import loop_bytes
from inferencegym_jax.episodes.single_step import step_bytes
kind, what = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write({"step": step_bytes, "loop": loop_bytes}[kind](what))
"""


def elsewhere(kind: str, what: object) -> bytes:
    return compiled(pickle.dumps((kind, what)))


@functools.cache
def compiled(order: bytes) -> bytes:
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run([sys.executable, "-c", COMPILE], input=order, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout


@pytest.fixture
def orders() -> Iterator[list[str]]:
    """Everything is compiled by another process; what it was asked for."""
    asked: list[str] = []

    def step(env: object) -> bytes:
        asked.append("step")
        return elsewhere("step", env)

    def loop(what: parallel.Loop) -> bytes:
        asked.append("loop")
        return elsewhere("loop", what)

    single_step._programs.clear()
    parallel.keep(parallel.PROGRAMS_KEPT)
    single_step.compile_with(step)
    parallel.compile_with(loop)
    yield asked
    on_demand.keep_within(None)
    single_step.compile_with(None)
    parallel.compile_with(None)
    single_step._programs.clear()
    parallel.keep(parallel.PROGRAMS_KEPT)


def test_a_step_from_elsewhere_is_the_step(orders: list[str]):
    env, params = ig.make(1)
    action = {"batch_size": 128, "spec_length": 2}
    loaded = SingleStep(env, params)
    other = loaded.step(loaded.reset(7).state, loaded.pack_action(action))
    assert SingleStep(env, params).reset(8) == loaded.reset(8) and orders == ["step"]
    single_step.compile_with(None)
    single_step._programs.clear()
    own = SingleStep(env, params)
    assert other == own.step(own.reset(7).state, own.pack_action(action))


def test_a_rollout_from_elsewhere_is_the_rollout(orders: list[str]):
    env, params = ig.make(1)
    loaded = ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3)
    assert orders == ["loop"]
    parallel.compile_with(None)
    parallel.keep(parallel.PROGRAMS_KEPT)
    own = ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3)
    assert jax.tree.structure(loaded) == jax.tree.structure(own)
    assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(own)))


def test_a_step_that_others_needed_the_room_of_is_loaded_again_and_the_same(orders: list[str]):
    env, params = ig.make(1)
    single = SingleStep(env, params)
    assert single.hold() is None
    first = single.reset(7)
    assert single.hold() and orders == ["step"]
    on_demand.keep_within(1)
    rolled = ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3)
    assert single.hold() is None and orders == ["step", "loop"]
    assert single.reset(7) == first and single.hold() and orders == ["step", "loop", "step"]
    again = ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3)
    assert all(map(np.array_equal, jax.tree.leaves(rolled), jax.tree.leaves(again)))
    assert single.hold() is None and orders == ["step", "loop", "step", "loop"]
    single.load()
    assert single.hold()


def test_a_step_of_this_process_is_loaded_when_it_is_compiled_and_stays():
    env, params = ig.make(1)
    single_step._programs.clear()
    on_demand.keep_within(1)
    try:
        single = SingleStep(env, params)
        assert single.hold() is None
        single.load()
        assert single.hold() and single.reset(7).observation
    finally:
        on_demand.keep_within(None)


def test_two_that_ask_for_a_rollout_at_once_have_it_made_once(orders: list[str]):
    env, params = ig.make(1)
    rewards: list[np.ndarray] = []

    def play() -> None:
        rewards.append(np.asarray(ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3).reward))

    threads = [threading.Thread(target=play) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert orders == ["loop"] and len(rewards) == 2 and np.array_equal(rewards[0], rewards[1])


def test_a_maker_that_gives_nothing_leaves_it_to_this_process(orders: list[str]):
    env, params = ig.make(1)
    single_step.compile_with(lambda env: None)
    parallel.compile_with(lambda loop: None)
    assert SingleStep(env, params).reset(7).observation
    assert ig.rollout(env, params, ig.policies.baseline, [1, 2], length=3).reward.shape == (3, 2)
    assert orders == []


def test_nobody_waits_for_a_program_that_is_not_theirs(orders: list[str]):
    """A server answers steps of one task on its event loop while a thread has another's program compiled."""
    env, params = ig.make(1)
    single_step.compile_with(None)
    first = SingleStep(env, params).reset(7)
    begun, may_end, seen = threading.Event(), threading.Event(), list[object]()

    def slowly(env: object) -> None:
        begun.set()
        may_end.wait(60)
        raise RuntimeError("ends here")

    def other() -> None:
        with pytest.raises(RuntimeError, match="ends here"):
            SingleStep(*ig.make(4)).reset(0)

    single_step.compile_with(slowly)
    compiling = threading.Thread(target=other)
    asking = threading.Thread(target=lambda: seen.append(SingleStep(env, params).reset(7)), daemon=True)
    compiling.start()
    assert begun.wait(30)
    asking.start()
    asking.join(30)
    answered = list(seen)
    may_end.set()
    compiling.join(30)
    assert answered == [first] and orders == []


def test_where_jax_keeps_programs_none_is_made_bytes_of():
    """JAX gives a program from its folder that cannot be made bytes of again: it would fail when it is called."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    program = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2,), np.float32)).compile()
    try:
        jax.config.update("jax_compilation_cache_dir", "/nowhere")
        with pytest.raises(RuntimeError, match="JAX_ENABLE_COMPILATION_CACHE"):
            portable.to_bytes(program)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
