"""Counter-based draws: every random number of an episode is a pure function of (seed, step, purpose).

No key is split or carried, so any step can be regenerated without replaying the ones before it, and a trajectory
does not depend on which batch it ran in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Purposes: the third counter. A new use of randomness takes a new number; changing one changes every trajectory.
WORKLOAD = 1
CLASSES = 2
NOISE = 3
POLICY = 4
EPISODE = 5


def hash4(seed: jax.Array, step: jax.Array | int, purpose: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Four independent uint32 words from three counters.

    pcg4d of Jarzynski and Olano, "Hash Functions for GPU Rendering", JCGT 9(3), 2020: one linear congruential round
    and two rounds of cross-multiplication give four words for a dozen integer products, which vectorise.

    Args:
        seed: uint32[...].
        step: int32 or uint32[...], may be negative (wraps).
        purpose: one of this module's constants.

    Returns:
        Four uint32[...] arrays.
    """
    multiplier, increment = jnp.uint32(1664525), jnp.uint32(1013904223)
    x = jnp.asarray(seed).astype(jnp.uint32) * multiplier + increment
    y = jnp.asarray(step).astype(jnp.uint32) * multiplier + increment
    z = jnp.uint32(purpose) * multiplier + increment
    w = (x ^ y) * multiplier + increment
    x = x + y * w
    y = y + z * x
    z = z + x * y
    w = w + y * z
    x, y, z, w = (v ^ (v >> 16) for v in (x, y, z, w))
    x = x + y * w
    y = y + z * x
    z = z + x * y
    w = w + y * z
    return x, y, z, w


def uniform(word: jax.Array) -> jax.Array:
    """float32 in the open interval (0, 1) from the upper 23 bits of a uint32 word; never 0 and never 1."""
    return ((word >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)


def normal(word: jax.Array) -> jax.Array:
    """Standard normal float32 from one uint32 word, by the inverse CDF; |z| <= 5.3."""
    return jnp.float32(2.0**0.5) * jax.lax.erf_inv(2.0 * uniform(word) - 1.0)


def episode_seed(seed: jax.Array, episode: jax.Array) -> jax.Array:
    """Seed (uint32) of the episode that auto-reset starts after ``episode`` finished ones."""
    return hash4(seed, episode, EPISODE)[0]


def policy_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """A typed JAX key for a policy's own randomness at this step, without a threefry round."""
    first, second, _, _ = hash4(seed, step, POLICY)
    return jax.random.wrap_key_data(jnp.stack([first, second], axis=-1), impl="threefry2x32")


def seed_of_key(key: jax.Array) -> jax.Array:
    """uint32[...] seed from a JAX key, typed or raw uint32[..., 2]."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return hash4(data[..., 0], data[..., 1], EPISODE)[1]
