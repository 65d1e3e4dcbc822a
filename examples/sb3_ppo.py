"""Stable-Baselines3's PPO on single environments, and on one compiled call for all: `python examples/sb3_ppo.py`.

Extra `sb3` (`make install-sb3` takes torch's CPU build). The second is several times as fast, at the same batch size
and epochs for the same number of steps.
"""

import argparse
import time

import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env

import inferencegym_jax.adapters.gymnasium_env  # noqa: F401  (registers the ids)
from inferencegym_jax.adapters.sb3_env import InferenceGymVecEnv

ROLLOUT = 4096  # steps of all environments between two updates


def train(kind: str, steps: int, batch_size: int = 1024, epochs: int = 4):
    """(steps a second, returns of the last episodes)."""
    if kind == "single":
        envs = make_vec_env("inferencegym_jax/StaticUniform-v0", n_envs=8)
    else:
        envs = InferenceGymVecEnv(512, task_id=1)
    rollout = min(ROLLOUT, steps) // envs.num_envs
    model = stable_baselines3.PPO(
        "MlpPolicy", envs, n_steps=rollout, batch_size=min(batch_size, steps), n_epochs=epochs, seed=0, device="cpu"
    )
    model.learn(rollout * envs.num_envs)  # compiles
    start = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    passed = time.perf_counter() - start
    return steps / passed, [episode["r"] for episode in model.ep_info_buffer]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=["single", "vector"])
    parser.add_argument("--steps", type=int, default=65536)
    asked = parser.parse_args()
    rates = []
    for kind in asked.kinds:
        rate, returns = train(kind, asked.steps)
        rates.append(rate)
        seen = f"last episodes {sum(returns) / len(returns):.1f}" if returns else "no episode has ended yet"
        print(f"{kind}: {rate:.1f} steps/s, return: {seen}")
    if len(rates) == 2:
        print(f"one compiled call for all: {rates[1] / rates[0]:.1f} times as fast")
