"""A choice between two trees by a flag an environment."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def select(flag: jax.Array, yes: Any, no: Any) -> Any:
    """Leaf by leaf, ``yes`` where the flag is set, else ``no``.

    Args:
        flag: bool[...], an entry an environment; the leaves' leading axes are its.
        yes: a pytree.
        no: one of the same structure and shapes.
    """

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = jnp.reshape(flag, jnp.shape(flag) + (1,) * (jnp.ndim(b) - jnp.ndim(flag)))
        return jnp.where(wide, a, b)

    return jax.tree.map(one, yes, no)
