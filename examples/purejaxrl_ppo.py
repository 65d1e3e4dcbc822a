"""PPO in one jitted function, in purejaxrl's way: `python examples/purejaxrl_ppo.py 150` (updates; extra `train`)."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import inferencegym_jax as ig

GAMMA, LAMBDA, CLIP, EPOCHS, MINIBATCHES = 0.99, 0.95, 0.2, 2, 4


def make_train(task=1, envs=64, steps=32, updates=150, rate=1e-3):
    """``train(key) -> ((weights, ...), mean reward a second of each update)``, and ``act(weights, obs)``."""
    bare, params = ig.make(task)
    env = ig.wrappers.FlatAction(ig.wrappers.FlatObservation(bare))
    hidden = [nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh]
    actor, critic = (nn.Sequential([*hidden, nn.Dense(width)]) for width in (5, 1))
    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate))

    def apply(weights, obs):  # mean and log standard deviation of the action, value
        return 0.1 * actor.apply(weights[0], obs), weights[2], critic.apply(weights[1], obs)[..., 0]

    def log_prob(mean, log_std, action):
        return (-0.5 * jnp.square((action - mean) / jnp.exp(log_std)) - log_std).sum(-1)

    def second(carry, key):
        weights, obs, state = carry
        mean, log_std, value = apply(weights, obs)
        action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        after, state, reward, term, trunc, info = env.step(None, state, action, params)
        last = apply(weights, info["final_observation"])[2]  # a truncated episode goes on beyond its end
        row = obs, action, log_prob(mean, log_std, action), value, reward, term | trunc, last
        return (weights, after, state), row

    def loss(weights, batch):
        obs, action, before, advantage, target = batch
        *gaussian, value = apply(weights, obs)
        ratio = jnp.exp(log_prob(*gaussian, action) - before)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
        return 0.5 * jnp.square(value - target).mean() - gain

    def backwards(carry, row):
        value, reward, done, last = row
        carry = reward + GAMMA * last - value + GAMMA * LAMBDA * (1 - done) * carry
        return carry, carry

    def update(carry, key):
        weights, memory, obs, state = carry
        (_, obs, state), rows = jax.lax.scan(second, (weights, obs, state), jax.random.split(key, steps))
        seen, action, before, value, *ends = rows
        advantage = jax.lax.scan(backwards, jnp.zeros(envs), (value, *ends), reverse=True)[1]
        flat = [x.reshape(-1, *x.shape[2:]) for x in (seen, action, before, advantage, advantage + value)]

        def descend(carry, index):
            gradient = jax.grad(loss)(carry[0], [x[index] for x in flat])
            change, memory = optimiser.update(gradient, carry[1])
            return (optax.apply_updates(carry[0], change), memory), None

        orders = [jax.random.permutation(k, envs * steps) for k in jax.random.split(key, EPOCHS)]
        batches = jnp.stack(orders).reshape(EPOCHS * MINIBATCHES, -1)
        (weights, memory), _ = jax.lax.scan(descend, (weights, memory), batches)
        return (weights, memory, obs, state), rows[4].mean()

    def train(key):
        weights = [net.init(key, jnp.zeros(14)) for net in (actor, critic)] + [jnp.full(5, -0.5)]
        start = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, envs), params)
        first = weights, optimiser.init(weights), *start
        return jax.lax.scan(update, first, jax.random.split(key, updates))

    return train, lambda weights, obs: apply(weights, obs)[0]


if __name__ == "__main__":
    rewards = ig.jit(make_train(updates=int((sys.argv[1:] or [150])[0]))[0])(jax.random.key(0))[1]
    print(f"reward a second: first {rewards[:5].mean():.3f}, last {rewards[-5:].mean():.3f}")
