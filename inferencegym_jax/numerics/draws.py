"""Counter-based draws: every random number of an episode is a pure function of (seed, step, purpose).

No key is split or carried, so any step can be regenerated without replaying the ones before it, and a trajectory
does not depend on which batch it ran in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Purposes: the third counter, below 256. A new use of randomness takes a new number; changing one changes every
# trajectory.
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


def words(seed: jax.Array, step: jax.Array | int, purpose: int, count: int) -> tuple[jax.Array, ...]:
    """As many independent uint32 words as are needed from three counters: ``hash4``'s, then those of further purposes
    256, 512, ... above this one.

    Args:
        seed: see ``hash4``.
        step: see ``hash4``.
        purpose: see ``hash4``.
        count: how many.

    Returns:
        ``count`` uint32[...] arrays.
    """
    blocks = [hash4(seed, step, purpose + 256 * block) for block in range(-(-count // 4))]
    return tuple(word for block in blocks for word in block)[:count]


def uniform(word: jax.Array) -> jax.Array:
    """float32 in the open interval (0, 1) from the upper 23 bits of a uint32 word; never 0 and never 1."""
    return ((word >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)


# log(1 + r) / r on [sqrt(1/2) - 1, sqrt(2) - 1] by rising powers of r; absolute error of the logarithm 2e-7
LOG_TERMS = (1.0000032, -0.5000196, 0.33303383, -0.24881433, 0.20603834, -0.18901202, 0.118291415)
# sqrt(2) erfinv(x) / x by rising powers of w - 3, where w = -log(1 - x^2) runs from 0 to 15.3; relative error 2.4e-6
QUANTILE_TERMS = (
    2.2960298,
    0.34171444,
    -8.103132e-3,
    -1.181251e-3,
    2.713669e-4,
    -1.7588036e-5,
    -1.9112447e-6,
    4.9192516e-7,
    -4.3778261e-8,
    1.8899966e-9,
    -3.2913335e-11,
)


def _horner(x: jax.Array, terms: tuple[float, ...]) -> jax.Array:
    result = jnp.full_like(x, terms[-1])
    for term in terms[-2::-1]:
        result = result * x + jnp.float32(term)
    return result


def whole(word: jax.Array, n: int) -> jax.Array:
    """int32 in 0 to n - 1 from the upper 16 bits of a uint32 word, the upper 23 where n is above 65536.

    The bias is at most n / 65536 (n / 2^23).
    """
    if n > 1 << 16:
        return jnp.minimum((uniform(word) * n).astype(jnp.int32), n - 1)
    return (((word >> 16) * jnp.uint32(n)) >> 16).astype(jnp.int32)


def normal(word: jax.Array) -> jax.Array:
    """Standard normal float32 from one uint32 word, by the inverse CDF; |z| <= 5.3, relative error 3e-6.

    ``z = x P(-log(1 - x^2))`` with x = 2u - 1: the variable of Giles, "Approximating the erfinv function", GPU
    Computing Gems (Jade), 2011, whose two polynomials and square root are here one minimax polynomial of degree 10; the
    logarithm is taken of exponent and mantissa. No branch, no division and no library call: a third of
    ``lax.erf_inv``'s time.
    """
    u = uniform(word)
    x = u + u - 1.0
    product = (4.0 * u) * (1.0 - u)  # 1 - x^2 without cancellation
    bits = jax.lax.bitcast_convert_type(product, jnp.int32)
    exponent = (
        bits - jnp.int32(0x3F3504F3)
    ) >> 23  # of the power of two that leaves a mantissa in [sqrt(1/2), sqrt(2))
    r = jax.lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1.0
    log = exponent.astype(jnp.float32) * jnp.float32(0.6931472) + r * _horner(r, LOG_TERMS)
    return x * _horner(-3.0 - log, QUANTILE_TERMS)


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
