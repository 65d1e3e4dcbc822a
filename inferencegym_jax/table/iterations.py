"""The latency table taken apart into what one iteration of an engine does.

``LatencyTable -> EngineGrid``: decode time, what a prompt adds, memory, a prefill alone, the price of a second.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import ServeAction
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.numerics.interpolation import locate, trilinear
from inferencegym_jax.table.latency_table import CONTINUOUS, METRICS, LatencyTable

LEAST_DECODE = 0.1  # of a TPOT is decode, whatever the metadata says of prompts
LEAST_GB = 1e-6  # a request's memory is never nothing: the pool is divided by it


@dataclass(frozen=True)
class EngineGrid:
    """The latency table taken apart into what an iteration does; static, hashed by the table's content.

    The table's colocated TPOT holds one prefill for each request that leaves, ``tpot = t + (n / O) p`` at its own mean
    output O; the disaggregated one holds none. So ``t = tpot_disagg`` and ``p = (tpot - tpot_disagg) O / n``. A table
    without prefill_disagg is taken apart by the ``p`` in its metadata (``prefill_ms``, as ``measure`` writes it), at
    least a tenth of the TPOT being t. Without that either, its TPOT stands as it is and prompts add nothing, which is
    exact where the traffic's mean output is the table's.
    """

    table: LatencyTable

    def __hash__(self) -> int:
        """Hash of the table's content."""
        return hash(self.table)

    def _metric(self, name: str) -> np.ndarray:
        """float64[spec, quant, disagg, batch, kv, prompt]."""
        return self.table.values[..., METRICS.index(name)].astype(np.float64)

    @functools.cached_property
    def parts_ms(self) -> tuple[np.ndarray, np.ndarray]:
        """t and p (ms), float64[spec, quant, batch, kv, prompt] each: a decode iteration, and what one prompt adds."""
        tpot, disagg = self._metric("tpot_ms"), self.table.axes["prefill_disagg"]
        batch, output = np.asarray(self.table.axes["batch_size"])[:, None, None], self.table.output_length
        if len(disagg) == 1 and disagg[0] == 0 and self.table.prefill_ms:
            whole = tpot[:, :, 0]
            added = np.broadcast_to(np.asarray(self.table.prefill_ms), whole.shape)
            return np.maximum(whole - batch / output * added, LEAST_DECODE * whole), added
        return tpot[:, :, -1], np.maximum((tpot[:, :, 0] - tpot[:, :, -1]) * output / batch, 0.0)

    @functools.cached_property
    def running(self) -> np.ndarray:
        """float32[rows, 2]: ms that n running requests take for a token of each, prefills apart, and GB that they need.

        Rows are (spec, quant, batch, kv, prompt), the last fastest.
        """
        both = (self.parts_ms[0], self._metric("gpu_mem_gb")[:, :, 0])
        return np.stack(both, axis=-1).astype(np.float32).reshape(-1, 2)

    @functools.cached_property
    def joining(self) -> np.ndarray:
        """float32[rows, 2]: ms that one prompt adds to the iterations of n running requests, and GB that one more
        request needs (the slope of memory over all batches). Rows as ``running``."""
        memory, batch = self._metric("gpu_mem_gb")[:, :, 0], self.table.axes["batch_size"]
        slope = (memory[:, :, -1:] - memory[:, :, :1]) / max(batch[-1] - batch[0], 1.0)
        slope = np.broadcast_to(np.maximum(slope, LEAST_GB), memory.shape)
        return np.stack([self.parts_ms[1], slope], axis=-1).astype(np.float32).reshape(-1, 2)

    @functools.cached_property
    def token_gb(self) -> float:
        """GB that one more token of one request's context needs at a KV budget of 1."""
        memory = self._metric("gpu_mem_gb")[0, 0, 0, :, -1]
        batch, prompt = self.table.axes["batch_size"], self.table.axes["prompt_len_bucket"]
        if len(batch) < 2 or len(prompt) < 2:
            return 0.0
        corners = memory[-1, -1] - memory[-1, 0] - memory[0, -1] + memory[0, 0]
        whole = (batch[-1] - batch[0]) * (prompt[-1] - prompt[0]) * self.table.axes["kv_budget"][-1]
        return max(float(corners) / whole, 0.0)

    @functools.cached_property
    def first_token(self) -> np.ndarray:
        """float32[quant, prompt]: ms of a prefill that nothing shares, the table's TTFT at its smallest batch.

        A disaggregated TTFT is prefill and transfer; a colocated one holds a decode iteration besides, which is taken
        off.
        """
        ttft = self._metric("ttft_p50_ms")[0, :, -1, 0, -1]
        alone = ttft if self.table.axes["prefill_disagg"][-1] == 1 else ttft - self.parts_ms[0][0, :, 0, -1]
        return np.maximum(alone, 0.0).astype(np.float32)

    @functools.cached_property
    def cost_rate(self) -> np.ndarray:
        """float32[disagg]: cost a second of serving, ``cost_per_1k x tps / 1000``: the GPUs are paid for, busy or
        not."""
        rate = self._metric("cost_per_1k") * self._metric("tps") / 1000.0
        return np.median(rate, axis=(0, 1, 3, 4, 5)).astype(np.float32)

    def _index(self, name: str, value: jax.Array) -> jax.Array:
        nodes = self.table.axes[name][1:]
        return sum(((value >= node).astype(jnp.int32) for node in nodes), jnp.zeros_like(value, jnp.int32))

    def look_up(
        self, rows: np.ndarray, action: ServeAction, running: jax.Array, prompt: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Both columns of ``rows`` for n running requests of a mean prompt (tokens) under the knobs, linear in the raw
        coordinates and clamped at the edges."""
        corner, places = compile_unit(self._locate)(action, running, prompt)
        found = compile_unit(functools.partial(self._blend, rows))(corner, places)
        return found[..., 0], found[..., 1]

    def _locate(
        self, action: ServeAction, running: jax.Array, prompt: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        axes = self.table.axes
        corner = self._index("spec_length", action.spec_length) * len(axes["quant_tier"])
        corner = corner + self._index("quant_tier", action.quant_tier)
        places = []
        for x, name in zip((running, action.kv_budget, prompt), CONTINUOUS, strict=True):
            cell, place = locate(x, axes[name])
            corner = corner * len(axes[name]) + cell
            places.append(place)
        return corner, tuple(places)

    def _blend(self, rows: np.ndarray, corner: jax.Array, places: tuple[jax.Array, ...]) -> jax.Array:
        batches, budgets, prompts = self.table.values.shape[3:6]
        return trilinear(jnp.asarray(rows), corner, (batches, budgets, prompts), places)

    def stand_alone_ms(self, quant_tier: jax.Array, prompt: jax.Array) -> jax.Array:
        """ms of a prefill that nothing shares, linear between the prompt lengths and clamped at the longest."""
        nodes = self.table.axes["prompt_len_bucket"]
        cell, place = locate(prompt, nodes)
        flat = jnp.asarray(self.first_token).ravel()
        base = self._index("quant_tier", quant_tier) * len(nodes) + cell
        low, high = flat[base], flat[base + (1 if len(nodes) > 1 else 0)]
        return low + place * (high - low)


@functools.lru_cache(maxsize=8)
def engine_grid(table: LatencyTable) -> EngineGrid:
    """The grid of a table, made once."""
    return EngineGrid(table)
