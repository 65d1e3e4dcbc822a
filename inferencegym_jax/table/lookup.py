"""The latency table laid out for lookups: six metrics at any point, multilinear and clamped at the edges."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import ServeAction
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.numerics.interpolation import locate, trilinear
from inferencegym_jax.table.latency_table import CONTINUOUS, DISCRETE, METRICS, LatencyTable


@dataclass(frozen=True)
class TableGrid:
    """A latency table laid out for lookups; static, hashed by the table's content.

    One row of six metrics a node; rows run over (spec, quant, disagg) combinations, batch, kv budget and, fastest,
    prompt, so the two prompt corners of a lookup are neighbours: 48 bytes in one or two cache lines.
    """

    table: LatencyTable

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """float32[combinations * batch * kv * prompt, metrics]."""
        return np.ascontiguousarray(self.table.values).reshape(-1, len(METRICS))

    def __hash__(self) -> int:
        """Hash of the table's content."""
        return hash(self.table)

    def lookup(self, action: ServeAction, prompt_len: jax.Array) -> dict[str, jax.Array]:
        """All six metrics at (batch_size, kv_budget, prompt length): linear in the raw coordinates, clamped at the
        edges, exact on spec_length, quant_tier and prefill_disagg (a traced value that the table lacks takes the next
        lower one).

        Args:
            action: fields of any batch shape.
            prompt_len: float32, tokens, of the same shape.

        Returns:
            Metric name -> float32 of that shape.
        """
        cell, places = compile_unit(self._locate)(action, prompt_len)
        blended = compile_unit(self._blend)(cell, places)
        return {name: blended[..., i] for i, name in enumerate(METRICS)}

    def _locate(self, action: ServeAction, prompt_len: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Row of the cell's lower corner (int32), and the place in the cell on each continuous axis."""
        axes = self.table.axes
        row = jnp.zeros_like(prompt_len, jnp.int32)
        for name in DISCRETE:
            value = getattr(action, name)
            index = sum(((value >= node).astype(jnp.int32) for node in axes[name][1:]), jnp.zeros_like(row))
            row = row * len(axes[name]) + index
        places = []
        coordinates = (action.batch_size.astype(jnp.float32), action.kv_budget, prompt_len)
        for x, name in zip(coordinates, CONTINUOUS, strict=True):
            cell, place = locate(x, axes[name])
            row = row * len(axes[name]) + cell
            places.append(place)
        return row, tuple(places)

    def _blend(self, row: jax.Array, places: tuple[jax.Array, ...]) -> jax.Array:
        n0, n1, n2 = self.table.values.shape[3:6]
        return trilinear(jnp.asarray(self.rows), row, (n0, n1, n2), places)
