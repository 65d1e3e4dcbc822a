"""One environment, one step at a time through ``jit``: the server's case, against gymnax's CartPole."""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from benchmarks.measure import alternate
from benchmarks.rivals import STEPS, gymnax_single
from inferencegym_jax.models import KNOBS


def _ready() -> tuple[ig.Environment, Any, Any, Any]:
    """(environment, state, action, params) of task 3, all on the device."""
    env, params = ig.make(3)
    params = jax.tree.map(jnp.asarray, params)
    return env, env.reset_seed(0, params)[1], ig.ServeAction().as_arrays(), params


def _on_its_own_state(step: Callable[..., Any], state: Any, *rest: Any) -> Callable[[int], Any]:
    """``step(state, *rest)`` 200 times, each on the state that the last returned second; every output is made."""

    def run(turn: int) -> Any:
        nonlocal state
        del turn
        out: Any = None
        for _ in range(STEPS):
            out = step(state, *rest)
            state = out[1]
        return out

    return run


def our_single() -> Callable[[int], Any]:
    """``jax.jit(env.step)``."""
    env, *arguments = _ready()
    return _on_its_own_state(functools.partial(jax.jit(env.step), None), *arguments)


def known_single() -> Callable[[int], Any]:
    """The same with the params known when it is compiled: a closure, not an argument."""
    env, state, action, params = _ready()
    return _on_its_own_state(jax.jit(lambda state, action: env.step(None, state, action, params)), state, action)


def empty_single() -> Callable[[int], Any]:
    """A function that takes and returns what ``env.step`` does and computes nothing: what the arrays alone cost."""
    env, *arguments = _ready()
    shapes = jax.eval_shape(functools.partial(env.step, None), *arguments)

    @jax.jit
    def step(state: Any, action: Any, params: Any) -> Any:
        one = state.queue + action.batch_size + params.task_id
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) + one.astype(leaf.dtype), shapes)

    return _on_its_own_state(step, *arguments)


def packed_single() -> Callable[[int], Any]:
    """``ig.SingleStep``: every answer read into Python numbers."""
    step = ig.SingleStep(*ig.make(3))
    action = step.pack_action(ig.ServeAction())

    def run(turn: int) -> Any:
        outcome = step.reset(turn)
        for _ in range(STEPS):
            outcome = step.step(outcome.state, action)
        return outcome.reward

    return run


def gymnasium_single() -> Callable[[int], Any]:
    """Gymnasium's environment, from an array of [-1, 1] to a normalised observation and a dict of numbers."""
    from inferencegym_jax.adapters.gymnasium_env import InferenceGymEnv

    env = InferenceGymEnv(3)
    action = np.zeros(len(KNOBS), np.float32)

    def run(turn: int) -> Any:
        env.reset(seed=turn)
        return [env.step(action)[0] for _ in range(STEPS)][-1]

    return run


def measure_packed(repeats: int) -> dict[str, float]:
    """Microseconds of CartPole's step, of the packed step and of Gymnasium's, under the server's settings of JAX."""
    from server.programs import Programs

    Programs()  # the settings hold from JAX's start
    calls = {"CartPole-v1": gymnax_single("CartPole-v1"), "packed": packed_single(), "gymnasium": gymnasium_single()}
    return in_microseconds(alternate(calls, repeats))


def in_microseconds(seconds: dict[str, float]) -> dict[str, float]:
    """Of one step, from seconds of 200."""
    return {name: 1e6 * value / STEPS for name, value in seconds.items()}


def measure(repeats: int = 15) -> dict[str, Any]:
    """Microseconds a step and their ratios; the server's from a process of its own."""
    calls = {
        "CartPole-v1": gymnax_single("CartPole-v1"),
        "task 3": our_single(),
        "params known": known_single(),
        "nothing computed": empty_single(),
        "packed": packed_single(),
        "gymnasium": gymnasium_single(),
    }
    found = in_microseconds(alternate(calls, repeats))
    words = [sys.executable, "-m", "benchmarks.single", "--packed", str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    packed = json.loads(done.stdout.splitlines()[-1])
    return {
        "microseconds": found,
        "microseconds_under_server_settings": packed,
        "ratios": {
            "jit_step_over_cartpole": found["task 3"] / found["CartPole-v1"],
            "known_params_step_over_cartpole": found["params known"] / found["CartPole-v1"],
            "empty_step_over_cartpole": found["nothing computed"] / found["CartPole-v1"],
            "packed_step_over_cartpole": packed["packed"] / packed["CartPole-v1"],
            "packed_step_default_settings_over_cartpole": found["packed"] / found["CartPole-v1"],
        },
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.single", description=__doc__)
    parser.add_argument("--packed", type=int, metavar="TURNS", help="only the server's step, with so many turns")
    turns = parser.parse_args().packed
    print(json.dumps(measure_packed(turns) if turns else measure()))


if __name__ == "__main__":
    main()
