"""Multilinear interpolation on a gridded table, written for vectorised lookups.

The table is one float32 array of rows; a lookup finds its cell on the three continuous axes, picks the discrete
combination, and blends eight corners. Linear in the raw coordinates and clamped at the edges, as
``scipy.interpolate.RegularGridInterpolator(method="linear")`` is on clipped queries.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def locate(x: jax.Array, nodes: Sequence[float]) -> tuple[jax.Array, jax.Array]:
    """Cell of ``x`` on a rising axis and its place in that cell.

    Nodes are few and known when compiling, so comparing with every inner node is cheaper than a search.

    Args:
        x: float32[...], raw coordinate; outside the axis it is clamped to the edge.
        nodes: the axis, strictly rising; one node alone gives cell 0, place 0.

    Returns:
        (int32[...] index of the lower node, float32[...] place in [0, 1]).
    """
    if len(nodes) == 1:
        return jnp.zeros_like(x, jnp.int32), jnp.zeros_like(x)
    cell = jnp.zeros_like(x, jnp.int32)
    lower = jnp.full_like(x, nodes[0])
    width = jnp.full_like(x, nodes[1] - nodes[0])
    for left, right in zip(nodes[1:-1], nodes[2:], strict=True):
        beyond = x >= left
        cell = cell + beyond.astype(jnp.int32)
        lower = jnp.where(beyond, jnp.float32(left), lower)
        width = jnp.where(beyond, jnp.float32(right - left), width)
    return cell, jnp.clip((x - lower) / width, 0.0, 1.0)


def trilinear(
    rows: jax.Array, corner: jax.Array, shape: tuple[int, int, int], places: tuple[jax.Array, ...]
) -> jax.Array:
    """Blend the eight corners of a cell, all metrics at once.

    Args:
        rows: float32[combinations * n0 * n1 * n2, metrics], last axis of the grid fastest: a corner's metrics lie side
            by side, and the corners along the last axis are neighbours, so a lookup touches four contiguous places.
        corner: int32[...], row of the cell's lower corner; must be a cell of the grid.
        shape: (n0, n1, n2).
        places: place in the cell on each axis, three float32[...] in [0, 1].

    Returns:
        float32[..., metrics].
    """
    n0, n1, n2 = shape
    steps = (n1 * n2 if n0 > 1 else 0, n2 if n1 > 1 else 0, 1 if n2 > 1 else 0)
    u, v, w = places

    def at(a: int, b: int, c: int) -> jax.Array:
        # unsigned, so that JAX adds no test for negative indices
        index = (corner + (a * steps[0] + b * steps[1] + c * steps[2])).astype(jnp.uint32)
        weight = (u if a else 1.0 - u) * (v if b else 1.0 - v) * (w if c else 1.0 - w)
        return rows.at[index].get(mode="promise_in_bounds") * weight[..., None]

    corners = [at(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    return functools.reduce(jnp.add, corners)
