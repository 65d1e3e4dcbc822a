"""Multilinear interpolation on a gridded table, written for vectorised lookups.

The table is one flat float32 array; a lookup finds its cell on the three continuous axes, picks the discrete
combination, and blends eight corners. Linear in the raw coordinates and clamped at the edges, as
``scipy.interpolate.RegularGridInterpolator(method="linear")`` is on clipped queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


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
    flat: jax.Array,
    offset: jax.Array,
    shape: tuple[int, int, int, int],
    cells: tuple[jax.Array, jax.Array, jax.Array],
    places: tuple[jax.Array, jax.Array, jax.Array],
) -> list[jax.Array]:
    """Blend the eight corners of a cell for every metric.

    Args:
        flat: float32[combinations * n0 * n1 * n2 * metrics], metrics fastest: the corners along the last axis are
            neighbours in memory, so a lookup touches four contiguous places.
        offset: int32[...], where the discrete combination starts in ``flat``.
        shape: (n0, n1, n2, metrics).
        cells: lower node's index on each axis, int32[...].
        places: place in the cell on each axis, float32[...] in [0, 1].

    Returns:
        One float32[...] array a metric.
    """
    n0, n1, n2, metrics = shape
    strides = (n1 * n2 * metrics if n0 > 1 else 0, n2 * metrics if n1 > 1 else 0, metrics if n2 > 1 else 0)
    base = offset + cells[0] * (n1 * n2 * metrics) + cells[1] * (n2 * metrics) + cells[2] * metrics
    u, v, w = places
    result = []
    for metric in range(metrics):
        at = [
            [
                [
                    flat.at[base + (a * strides[0] + b * strides[1] + c * strides[2] + metric)].get(
                        mode="promise_in_bounds"
                    )
                    for c in (0, 1)
                ]
                for b in (0, 1)
            ]
            for a in (0, 1)
        ]
        planes = [[at[a][b][0] + w * (at[a][b][1] - at[a][b][0]) for b in (0, 1)] for a in (0, 1)]
        lines = [planes[a][0] + v * (planes[a][1] - planes[a][0]) for a in (0, 1)]
        result.append(lines[0] + u * (lines[1] - lines[0]))
    return result


def grid_interpolate(values: np.ndarray | jax.Array, axes: Sequence[Sequence[float]], points: jax.Array) -> jax.Array:
    """Interpolate ``values`` at ``points`` on a three-axis grid: the lookup of the simulator as a plain function.

    Args:
        values: float[n0, n1, n2] or float[n0, n1, n2, metrics].
        axes: three strictly rising sequences.
        points: float[..., 3], raw coordinates, clamped at the edges.

    Returns:
        float32[...] or float32[..., metrics].
    """
    grid = jnp.asarray(values, jnp.float32)
    single = grid.ndim == 3
    if single:
        grid = grid[..., None]
    points = jnp.asarray(points, jnp.float32)
    found = [locate(points[..., i], [float(node) for node in axes[i]]) for i in range(3)]
    cells, places = zip(*found, strict=True)
    offset = jnp.zeros(points.shape[:-1], jnp.int32)
    n0, n1, n2, metrics = grid.shape
    columns = trilinear(grid.ravel(), offset, (n0, n1, n2, metrics), cells, places)
    return columns[0] if single else jnp.stack(columns, axis=-1)
