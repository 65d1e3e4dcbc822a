"""rejax's PPO, SAC and DQN: `python examples/rejax_agents.py --steps 65536` (extra `rejax`).

rejax speaks gymnax's older step of five values. PPO and SAC take the box of five numbers, DQN a grid of points.
"""

import argparse

import gymnax  # noqa: F401  (loaded before the spaces are made, which are then gymnax's)
import jax
import numpy as np
import rejax

import inferencegym_jax as ig
from inferencegym_jax.adapters.wrappers import DiscreteAction, FiveValueStep, FlatAction, FlatObservation

SETTINGS = {
    "PPO": {"num_envs": 16, "num_steps": 64, "num_epochs": 2, "num_minibatches": 4, "learning_rate": 1e-3},
    "SAC": {"num_envs": 8, "buffer_size": 4096, "fill_buffer": 256, "batch_size": 128, "learning_rate": 1e-3},
    "DQN": {"num_envs": 8, "buffer_size": 4096, "fill_buffer": 256, "batch_size": 128, "learning_rate": 1e-3},
}


def train(name: str, task: int | str, steps: int, seeds: int = 1):
    """Returns of the evaluation episodes, float32[seeds, evaluations, episodes]."""
    env, params = ig.make(task)
    env = FlatObservation(env.suited_to(params))
    env = DiscreteAction(env, batch_sizes=(32, 128, 512)) if name == "DQN" else FlatAction(env)
    learner = getattr(rejax, name).create(
        env=FiveValueStep(env), env_params=params, total_timesteps=steps, eval_freq=steps // 2, **SETTINGS[name]
    )
    keys = jax.random.split(jax.random.key(0), seeds)
    _, (_, returns) = ig.jit(jax.vmap(learner.train))(keys)
    return np.asarray(returns)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--task", default="static-uniform")
    parser.add_argument("--steps", type=int, default=65536)
    asked = parser.parse_args()
    for agent in asked.agents:
        found = train(agent, asked.task, asked.steps)
        print(f"{agent}: return of an episode {found[:, 0].mean():.1f} before, {found[:, -1].mean():.1f} after")
