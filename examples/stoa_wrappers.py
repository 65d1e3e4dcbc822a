"""Stoix trains on `stoa` environments: its gymnax adapter and its wrappers over a task, in one jitted scan.

`python examples/stoa_wrappers.py` (`pip install --no-deps stoa-env`, beside gymnax). The policy is random; what is
shown is what Stoix's systems get: spaces, time steps, returns of finished episodes.
"""

import argparse

import jax
import jax.numpy as jnp
from stoa.core_wrappers.episode_metrics import RecordEpisodeMetrics
from stoa.core_wrappers.vmap import VmapWrapper
from stoa.env_adapters.gymnax import GymnaxToStoa

import inferencegym_jax as ig
from inferencegym_jax.adapters.wrappers import FiveValueStep, FlatAction, FlatObservation


def play(task: int | str, envs: int, steps: int):
    """(return of each finished episode, the action space) under random actions."""
    bare, params = ig.make(task)
    view = FiveValueStep(FlatAction(FlatObservation(bare.suited_to(params))))
    env = VmapWrapper(RecordEpisodeMetrics(GymnaxToStoa(view, params)), num_envs=envs)
    space = GymnaxToStoa(view, params).action_space()

    @jax.jit
    def run(key):
        state, _ = env.reset(key)

        def second(state, key):
            actions = jax.vmap(space.sample)(jax.random.split(key, envs))
            state, timestep = env.step(state, actions)
            metrics = timestep.extras["episode_metrics"]
            return state, (metrics["episode_return"], metrics["is_terminal_step"])

        return jax.lax.scan(second, state, jax.random.split(key, steps))[1]

    returns, ended = run(jax.random.key(0))
    return jnp.asarray(returns)[jnp.asarray(ended)], space


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    found, space = play(1, asked.envs, asked.steps)
    print(f"{len(found)} episodes, mean return {float(found.mean()):.1f}; actions {space}")
