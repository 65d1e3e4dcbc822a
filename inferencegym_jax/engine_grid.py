"""The latency table taken apart into what one iteration of an engine does.

``LatencyTable -> EngineGrid``: decode time, what a prompt adds, memory, a prefill alone, the price of a second.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.interpolation import locate, trilinear
from inferencegym_jax.models import ServeAction
from inferencegym_jax.table import METRICS, LatencyTable

LEAST_GB = 1e-6  # a request's memory is never nothing: the pool is divided by it


@dataclass(frozen=True)
class EngineGrid:
    """The latency table taken apart into what an iteration does; static, hashed by the table's content.

    The table's colocated TPOT holds one prefill for each request that leaves, ``tpot = t + (n / O) p`` at its own mean output O;
    the disaggregated one holds none. So ``t = tpot_disagg`` and ``p = (tpot - tpot_disagg) O / n``. A table without
    prefill_disagg cannot be taken apart: its TPOT stands as it is and prompts add nothing, which is exact where the
    traffic's mean output is the table's.
    """

    table: LatencyTable

    def __hash__(self) -> int:
        """Hash of the table's content."""
        return hash(self.table)

    def _metric(self, name: str) -> np.ndarray:
        """float64[spec, quant, disagg, batch, kv, prompt]."""
        return self.table.values[..., METRICS.index(name)].astype(np.float64)

    @property
    def splits(self) -> bool:
        """Whether the table has both values of prefill_disagg."""
        return len(self.table.axes["prefill_disagg"]) == 2

    @functools.cached_property
    def decode(self) -> np.ndarray:
        """float32[spec, quant, batch, kv, prompt]: ms that n running requests take for a token of each, prefills apart."""
        return self._metric("tpot_ms")[:, :, -1].astype(np.float32)

    @functools.cached_property
    def memory(self) -> np.ndarray:
        """float32[spec, quant, batch, kv, prompt]: GB that n running requests need."""
        return self._metric("gpu_mem_gb")[:, :, 0].astype(np.float32)

    @functools.cached_property
    def request_memory(self) -> np.ndarray:
        """float32[spec, quant, 1, kv, prompt]: GB that one more request needs, the slope of ``memory`` over all batches."""
        batch = self.table.axes["batch_size"]
        slope = (self.memory[:, :, -1:] - self.memory[:, :, :1]) / max(batch[-1] - batch[0], 1.0)
        return np.maximum(slope, LEAST_GB).astype(np.float32)

    @functools.cached_property
    def prefill(self) -> np.ndarray:
        """float32[spec, quant, batch, kv, prompt]: ms that one prompt adds to the iterations of n running requests."""
        tpot = self._metric("tpot_ms")
        batch = np.asarray(self.table.axes["batch_size"])[:, None, None]
        added = (tpot[:, :, 0] - tpot[:, :, -1]) * self.table.output_length / batch
        return np.maximum(added, 0.0).astype(np.float32)

    @functools.cached_property
    def first_token(self) -> np.ndarray:
        """float32[quant, prompt]: ms of a prefill that nothing shares, the table's TTFT at its smallest batch.

        A disaggregated TTFT is prefill and transfer; a colocated one holds a decode iteration besides, which is taken off.
        """
        ttft, tpot = self._metric("ttft_p50_ms")[0, :, -1, 0, -1], self._metric("tpot_ms")[0, :, -1, 0, -1]
        alone = ttft if self.table.axes["prefill_disagg"][-1] == 1 else ttft - tpot
        return np.maximum(alone, 0.0).astype(np.float32)

    @functools.cached_property
    def cost_rate(self) -> np.ndarray:
        """float32[disagg]: cost a second of serving, ``cost_per_1k x tps / 1000``: the GPUs are paid for, busy or not."""
        rate = self._metric("cost_per_1k") * self._metric("tps") / 1000.0
        return np.median(rate, axis=(0, 1, 3, 4, 5)).astype(np.float32)

    def _index(self, name: str, value: jax.Array) -> jax.Array:
        nodes = self.table.axes[name][1:]
        return sum(((value >= node).astype(jnp.int32) for node in nodes), jnp.zeros_like(value, jnp.int32))

    def place(self, action: ServeAction) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Where the knobs put an engine in the grid: (spec, quant) combination, cell and place on the KV axis."""
        spec, quant = self._index("spec_length", action.spec_length), self._index("quant_tier", action.quant_tier)
        return spec * len(self.table.axes["quant_tier"]) + quant, locate(action.kv_budget, self.table.axes["kv_budget"])

    def look_up(self, values: np.ndarray, knobs: Any, running: jax.Array, prompt: jax.Array) -> jax.Array:
        """``values`` at (running requests, KV budget, prompt tokens), linear in the raw coordinates, clamped at the edges."""
        combination, (kv_cell, kv_place) = knobs
        nodes = self.table.axes["batch_size"] if values.shape[2] > 1 else (1.0,)
        batch_cell, batch_place = locate(running, nodes)
        prompt_cell, prompt_place = locate(prompt, self.table.axes["prompt_len_bucket"])
        shape = values.shape[2:]
        return trilinear(
            jnp.asarray(values).ravel(),
            combination * int(np.prod(shape)),
            (shape[0], shape[1], shape[2], 1),
            (batch_cell, kv_cell, prompt_cell),
            (batch_place, kv_place, prompt_place),
        )[0]

    def stand_alone_ms(self, quant_tier: jax.Array, prompt: jax.Array) -> jax.Array:
        """ms of a prefill that nothing shares, linear between the prompt lengths and growing in proportion beyond them."""
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
