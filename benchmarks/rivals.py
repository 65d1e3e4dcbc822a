"""What the environment is compared with: gymnax's CartPole and Pendulum, and the obvious implementation with scipy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnax
import jax
import jax.numpy as jnp

STEPS = 200


def gymnax_rollout(name: str, environments: int) -> Callable[[int], Any]:
    """200 steps of gymnax's own random policy with its auto-reset; observations, rewards and dones are all summed."""
    made: Any = gymnax.make(name)
    env, params = made
    sample = env.action_space(params).sample

    @jax.jit
    def run(key: jax.Array) -> Any:
        key, first = jax.random.split(key)
        observation, state = jax.vmap(env.reset, (0, None))(jax.random.split(first, environments), params)

        def body(loop: Any, _: None) -> Any:
            key, state, seen, total = loop
            key, for_action, for_step = jax.random.split(key, 3)
            action = jax.vmap(sample)(jax.random.split(for_action, environments))
            step_keys = jax.random.split(for_step, environments)
            observation, state, reward, done, _ = jax.vmap(env.step, (0, 0, 0, None))(step_keys, state, action, params)
            return (key, state, seen + observation, total + reward + done), None

        start = (key, state, jnp.zeros_like(observation), jnp.zeros(environments))
        loop, _ = jax.lax.scan(body, start, None, length=STEPS)
        return loop[2:]

    return lambda turn: run(jax.random.key(turn))


def gymnax_single(name: str) -> Callable[[int], Any]:
    """One jitted step of one environment after another, as a server would take them."""
    made: Any = gymnax.make(name)
    env, params = made
    step = jax.jit(env.step)
    key = jax.random.key(0)
    _, state = env.reset(key, params)
    action = jnp.int32(1)

    def run(turn: int) -> Any:
        nonlocal state
        del turn
        observation = None
        for _ in range(STEPS):
            observation, state, _, _, _ = step(key, state, action, params)
        return observation, state

    return run


def scipy_steps_per_second(task: int, seconds: float) -> float:
    """Steps a second of ``tests/reference/scipy_env.py`` under its random policy; best of five, one core."""
    from tests.reference.scipy_env import ScipyEnv

    env = ScipyEnv(task)
    best = 0.0
    for seed in range(5):
        env.reset(seed)
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 5:
            if env.step(env.random_action())[2]:
                env.reset(seed)
            steps += 1
        best = max(best, steps / (time.perf_counter() - start))
    return best
