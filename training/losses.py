"""PPO's losses: generalised advantage estimation and the clipped objective. Pure functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def advantages_and_targets(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: jax.Array | float,
    gae_lambda: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """GAE (Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2016, eq.
    16).

    ``delta_t = r_t + discount V(s_{t+1}) (1 - terminated_t) - V(s_t)``; ``A_t = delta_t + discount lambda A_{t+1}``
    within an episode.
    Truncation is no end of the process: the sum stops there, and the bootstrap value of the episode's final
    observation stays.

    Args:
        reward, value: float32[steps, ...].
        next_value: float32[steps, ...], value of the observation after the step; at an episode's end of its final
            observation, not of the one that reset gave.
        terminated, truncated: bool[steps, ...].
        discount, gae_lambda: in [0, 1].

    Returns:
        (advantages, value targets), float32[steps, ...].
    """
    delta = reward + discount * jnp.where(terminated, 0.0, next_value) - value
    onward = jnp.where(terminated | truncated, 0.0, discount * gae_lambda)

    def back(after: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, keep = row
        advantage = error + keep * after
        return advantage, advantage

    _, advantages = jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, onward), reverse=True)
    return advantages, advantages + value


def clipped_objective(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: jax.Array | float
) -> jax.Array:
    """``-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)``, to be minimised; float32[...] (Schulman et al., 2017, eq.
    7)."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)


def value_loss(value: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error, float32[...]."""
    return 0.5 * jnp.square(value - target)
