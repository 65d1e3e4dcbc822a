"""An evolution strategy over `ig.evaluate`: `python examples/evolution.py --generations 20`.

A linear controller's 28 weights are drawn around a mean; every candidate plays its episodes in the same compiled call,
and the mean moves towards those that did well (Salimans et al., "Evolution Strategies as a Scalable Alternative to
Reinforcement Learning", 2017: antithetic draws, ranks instead of returns).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.encoding import action_from_box, normalise

FREE = 2  # knobs of task 1: kv_budget and batch_size, the first and the third of the box


def policy(key, observation, weights):
    """A linear map from the fourteen numbers to the two free knobs; the weights are the carry."""
    box = jnp.tanh(normalise(observation) @ weights.reshape(14, FREE))
    return action_from_box(jnp.zeros(5).at[jnp.array([0, 2])].set(box)), weights


def train(task=1, generations=20, pairs=32, seeds=2, spread=0.3, rate=0.3):
    """Mean return of the generations' candidates, and the last mean's weights."""
    env, params = ig.make(task)
    rng, mean, history = np.random.default_rng(0), np.zeros(14 * FREE), []
    for _ in range(generations):
        draws = rng.standard_normal((pairs, len(mean)))
        draws = np.concatenate([draws, -draws])
        candidates = jnp.asarray(np.repeat(mean + spread * draws, seeds, axis=0), jnp.float32)
        episodes = np.tile(rng.integers(2**32, size=seeds), 2 * pairs)  # the same for every candidate
        found = ig.evaluate(env, params, policy, episodes, carry=candidates, carry_axis=0)
        returns = np.asarray(found.total_reward).reshape(2 * pairs, seeds).mean(axis=1)
        ranks = returns.argsort().argsort() / (2 * pairs - 1) - 0.5
        mean += rate / spread * (ranks @ draws) / (2 * pairs) * 4
        history.append(float(returns.mean()))
    return history, mean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=int, default=1)
    parser.add_argument("--generations", type=int, default=20)
    asked = parser.parse_args()
    history, _ = train(asked.task, asked.generations)
    print(f"mean return of a generation: first {history[0]:.1f}, last {history[-1]:.1f} ({jax.default_backend()})")
