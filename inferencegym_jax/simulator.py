"""GPU physics of one second: look the table up, correct for acceptance, add the queue's delay and noise, count
violations.

Data flows ``action, workload -> table -> metrics``. SPEC section 4, steps 2 to 4.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax import random
from inferencegym_jax.interpolation import locate, trilinear
from inferencegym_jax.models import EnvParams, MetricsSnapshot, ServeAction, WorkloadState
from inferencegym_jax.staging import stage
from inferencegym_jax.table import CONTINUOUS, DISCRETE, METRICS, LatencyTable

LATENCY_FLOOR_MS = 1.0


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
        cell, places = stage(self._locate)(action, prompt_len)
        blended = stage(self._blend)(cell, places)
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


def tokens_per_verification(acceptance: jax.Array | float, spec_length: jax.Array) -> jax.Array:
    """Expected tokens that one verification of ``spec_length`` drafts yields, ``(1 - a^(k+1)) / (1 - a)``.

    Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", ICML 2023, eq. 1.
    Written as the sum 1 + a + ... + a^k over the allowed lengths, which needs no division and holds at a = 1.
    """
    a = jnp.asarray(acceptance, jnp.float32)
    square = a * a
    fourth = square * square
    two = 1.0 + a
    three = two + square
    five = 1.0 + a * (two * (1.0 + square))
    nine = five + fourth * a * (two * (1.0 + square))
    options = ((1, two), (2, three), (4, five), (8, nine))
    result = jnp.ones_like(a * spec_length)
    for length, tokens in options:
        result = jnp.where(spec_length >= length, tokens, result)
    return result


def accept_rate(params: EnvParams, bucket: jax.Array, spec_length: jax.Array) -> jax.Array:
    """Accepted share of drafted tokens: ``base (1 - 0.1 bucket) / (1 + 0.15 k)``, floored at 0 (SPEC 4); any k."""
    rate = params.acceptance * (1.0 - 0.1 * bucket) / (1.0 + 0.15 * spec_length)
    return jnp.maximum(rate, 0.0)


@stage
def latency_noise(seed: jax.Array, step: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two independent factors N(1, sigma): one for both TTFT percentiles of the second (so that p99 stays above p50),
    one for TPOT."""
    first, second, _, _ = random.hash4(seed, step, random.NOISE)
    return 1.0 + sigma * random.normal(first), 1.0 + sigma * random.normal(second)


def simulate(
    grid: TableGrid,
    action: ServeAction,
    workload: WorkloadState,
    seed: jax.Array,
    step: jax.Array,
    params: EnvParams,
) -> tuple[MetricsSnapshot, jax.Array]:
    """What one second of serving measures.

    Args:
        grid: the latency table.
        action: knobs in force (locked ones already forced), as arrays.
        workload: the step's traffic and queue.
        seed: uint32, the episode's seed.
        step: int32, the step's number.
        params: the task.

    Returns:
        The metrics and the out-of-memory flag.
    """
    found = grid.lookup(action, workload.mean_prompt_len)
    rate, _, gain = stage(functools.partial(drafting, grid.table.reference_acceptance))(
        params, workload.prompt_len_bucket, action.spec_length
    )
    ttft_noise, tpot_noise = latency_noise(seed, step, params.noise_sigma)
    ttft_p50, ttft_p99 = _first_tokens(
        found["ttft_p50_ms"], found["ttft_p99_ms"], workload.queue_depth, action.batch_size, ttft_noise
    )
    tpot = jnp.maximum(found["tpot_ms"] / gain * tpot_noise, LATENCY_FLOOR_MS)
    oom = found["gpu_mem_gb"] > params.oom_limit_gb
    violations = count_violations(ttft_p50, workload, action.batch_size, oom, jnp.asarray(params.slo_ms))
    metrics = MetricsSnapshot(
        ttft_p50_ms=ttft_p50,
        ttft_p99_ms=ttft_p99,
        tpot_ms=tpot,
        tokens_per_sec=jnp.where(oom, 0.0, found["tps"] * gain),
        gpu_memory_gb=jnp.minimum(found["gpu_mem_gb"], params.oom_limit_gb),
        cost_per_1k=found["cost_per_1k"],
        spec_accept_rate=jnp.where(action.spec_length > 0, rate, 0.0),
        eviction_events=jnp.floor((1.0 - action.kv_budget) * workload.queue_depth).astype(jnp.int32),
        slo_violations=violations,
    )
    return metrics, oom


def drafting(
    reference: float, params: EnvParams, bucket: jax.Array, spec_length: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Acceptance, tokens a verification yields, and that over what the table's reference acceptance gives; float32."""
    rate = accept_rate(params, bucket, spec_length)
    tokens = tokens_per_verification(rate, spec_length)
    return rate, tokens, tokens / tokens_per_verification(reference, spec_length)


@stage
def _first_tokens(
    table_p50: jax.Array, table_p99: jax.Array, queue: jax.Array, batch_size: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """TTFT percentiles (ms) with the queue's delay and the second's noise."""
    delay = 1000.0 * queue / batch_size
    p50, p99 = ((ttft + delay) * noise for ttft in (table_p50, table_p99))
    return jnp.maximum(p50, LATENCY_FLOOR_MS), jnp.maximum(p99, LATENCY_FLOOR_MS)


@stage
def count_violations(
    ttft_p50: jax.Array, workload: WorkloadState, batch_size: jax.Array, oom: jax.Array, slo_ms: jax.Array
) -> jax.Array:
    """int32 requests of classes whose SLO is missed, and rejected ones; out of memory the whole batch at least."""
    shares = workload.priority_distribution
    over = [jnp.where(ttft_p50 > slo_ms[..., i], shares[..., i], 0.0) for i in range(3)]
    over_share = over[0] + over[1] + over[2]
    # an ulp below a whole number must not lose a request
    late = jnp.floor(workload.queue_depth * over_share + 1e-3).astype(jnp.int32) + workload.rejected
    return jnp.where(oom, jnp.maximum(batch_size, 5 * late), late)


def kv_occupancy(grid: TableGrid, memory_gb: jax.Array, quant_tier: jax.Array, params: EnvParams) -> jax.Array:
    """Share of the memory left beside weights and runtime that is in use, in [0, 1]."""
    base = jnp.zeros_like(memory_gb)
    for node, memory in zip(grid.table.axes["quant_tier"], grid.table.base_memory_gb, strict=True):
        base = jnp.where(quant_tier >= node, jnp.float32(memory), base)
    return jnp.clip((memory_gb - base) / jnp.maximum(params.oom_limit_gb - base, 1e-3), 0.0, 1.0)
