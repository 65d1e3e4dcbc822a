"""One second of a closed-loop task (1 to 3): up to ``batch_size`` waiting requests are served, unless memory runs out.

``state, action -> table row -> out of memory? -> queue -> metrics``. Memory is looked up before the batch leaves the
queue: an engine that dies serves nobody, and what was waiting still waits. Formulas: ENVIRONMENT.md, section 5.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from inferencegym_jax.models import QUEUE_CAPACITY, EnvParams, EnvState, MetricsSnapshot, ServeAction, WorkloadState
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.metrics import LATENCY_FLOOR_MS, count_violations, latency_noise
from inferencegym_jax.physics.speculation import drafting
from inferencegym_jax.table.lookup import TableGrid
from inferencegym_jax.traffic.calendar import (
    EMA_STEPS,
    WINDOW,
    class_arrivals,
    draw_prompt_len,
    is_burst_at,
    phase_at,
    prompt_bucket,
)


def serve_second(
    grid: TableGrid, state: EnvState, action: ServeAction, params: EnvParams
) -> tuple[WorkloadState, jax.Array, MetricsSnapshot, jax.Array]:
    """One second of a closed-loop task.

    Args:
        grid: the latency table.
        state: the episode before the second.
        action: knobs in force (locked ones already forced), as arrays.
        params: the task.

    Returns:
        Workload, class counts (int32[..., 3]) over the last 50 steps, metrics, and the out-of-memory flag (bool).
    """
    prompt_len = draw_prompt_len(state.seed, state.time, params)
    row = grid.lookup(action, prompt_len)
    oom = row["gpu_mem_gb"] > params.oom_limit_gb
    workload, class_counts = advance(state, jnp.where(oom, 0, action.batch_size), prompt_len, params)
    metrics = _measure(grid, row, oom, action, workload, state.seed, state.time, params)
    return workload, class_counts, metrics, oom


def simulate(
    grid: TableGrid,
    action: ServeAction,
    workload: WorkloadState,
    seed: jax.Array,
    step: jax.Array,
    params: EnvParams,
) -> tuple[MetricsSnapshot, jax.Array]:
    """What one second of serving measures, the second's traffic and queue being known.

    Args:
        grid: the latency table.
        action: knobs in force (locked ones already forced), as arrays.
        workload: the step's traffic, and the queue after service.
        seed: uint32, the episode's seed.
        step: int32, the step's number.
        params: the task.

    Returns:
        The metrics and the out-of-memory flag.
    """
    row = grid.lookup(action, workload.mean_prompt_len)
    oom = row["gpu_mem_gb"] > params.oom_limit_gb
    return _measure(grid, row, oom, action, workload, seed, step, params), oom


def _measure(
    grid: TableGrid,
    row: dict[str, jax.Array],
    oom: jax.Array,
    action: ServeAction,
    workload: WorkloadState,
    seed: jax.Array,
    step: jax.Array,
    params: EnvParams,
) -> MetricsSnapshot:
    """The second's metrics from its row of the table: acceptance, the queue's delay, noise, violations."""
    rate, _, gain = compile_unit(functools.partial(drafting, grid.table.reference_acceptance))(
        params, workload.prompt_len_bucket, action.spec_length
    )
    ttft_noise, tpot_noise = latency_noise(seed, step, params.noise_sigma)
    ttft_p50, ttft_p99 = _first_tokens(
        row["ttft_p50_ms"], row["ttft_p99_ms"], workload.queue_depth, action.batch_size, ttft_noise
    )
    violations = count_violations(ttft_p50, workload, action.batch_size, oom, jnp.asarray(params.slo_ms))
    return MetricsSnapshot(
        ttft_p50_ms=ttft_p50,
        ttft_p99_ms=ttft_p99,
        tpot_ms=jnp.maximum(row["tpot_ms"] / gain * tpot_noise, LATENCY_FLOOR_MS),
        tokens_per_sec=jnp.where(oom, 0.0, row["tps"] * gain),
        gpu_memory_gb=jnp.minimum(row["gpu_mem_gb"], params.oom_limit_gb),
        cost_per_1k=row["cost_per_1k"],
        spec_accept_rate=jnp.where(action.spec_length > 0, rate, 0.0),
        eviction_events=jnp.floor((1.0 - action.kv_budget) * workload.queue_depth).astype(jnp.int32),
        slo_violations=violations,
    )


@compile_unit
def _first_tokens(
    table_p50: jax.Array, table_p99: jax.Array, queue: jax.Array, batch_size: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """TTFT percentiles (ms) with the queue's delay and the second's noise."""
    delay = 1000.0 * queue / batch_size
    p50, p99 = ((ttft + delay) * noise for ttft in (table_p50, table_p99))
    return jnp.maximum(p50, LATENCY_FLOOR_MS), jnp.maximum(p99, LATENCY_FLOOR_MS)


def advance(
    state: EnvState, batch_size: jax.Array, prompt_len: jax.Array, params: EnvParams
) -> tuple[WorkloadState, jax.Array]:
    """One second of traffic and queueing.

    Arrivals join the queue, ``served = min(batch_size, queue)`` leave it for the engine, and of what is left 512 may
    wait; the rest is rejected. Requests are conserved: ``queue + arrivals = queue' + served + rejected``.

    Args:
        state: the episode before the step.
        batch_size: int32, most requests served in this second; 0 when memory runs out.
        prompt_len: float32, tokens, the step's draw.
        params: the task.

    Returns:
        The workload of the step and the new class counts (int32[..., 3]) over the last 50 steps.
    """
    step = state.time
    entering = class_arrivals(state.seed, step, params)
    arrivals, served, queue, rejected = _serve(state.queue, entering, batch_size)

    # what falls out of the window is drawn again instead of being stored: 3 draws cost less than a 50-step buffer
    leaving = class_arrivals(state.seed, step - WINDOW, params)
    class_counts, shares = _window(state.class_counts, entering, leaving, step, params)

    ema = state.arrival_ema + (2.0 / (EMA_STEPS + 1)) * (arrivals - state.arrival_ema)
    workload = WorkloadState(
        arrival_rate=ema,
        mean_prompt_len=prompt_len,
        prompt_len_bucket=prompt_bucket(prompt_len),
        queue_depth=queue,
        priority_distribution=shares,
        is_burst=is_burst_at(step, params),
        phase=phase_at(step, params),
        arrivals=arrivals,
        served=served,
        rejected=rejected,
    )
    return workload, class_counts


@compile_unit
def _serve(waiting: jax.Array, entering: tuple[jax.Array, ...], batch_size: jax.Array) -> tuple[jax.Array, ...]:
    """int32 (arrivals, served, queue after service, rejected)."""
    arrivals = entering[0] + entering[1] + entering[2]
    present = waiting + arrivals
    served = jnp.minimum(batch_size, present)
    left = present - served
    queue = jnp.minimum(left, QUEUE_CAPACITY)
    return arrivals, served, queue, left - queue


@compile_unit
def _window(
    counts: jax.Array,
    entering: tuple[jax.Array, ...],
    leaving: tuple[jax.Array, ...],
    step: jax.Array,
    params: EnvParams,
) -> tuple[jax.Array, jax.Array]:
    """Class counts (int32[..., 3]) over the last 50 steps, and class shares (float32[..., 3]), which are the task's
    own before anything arrived."""
    is_full = step >= WINDOW
    columns = [counts[..., i] + entering[i] - jnp.where(is_full, leaving[i], 0) for i in range(3)]
    seen = columns[0] + columns[1] + columns[2]
    scale = 1.0 / jnp.maximum(seen, 1).astype(jnp.float32)
    expected = jnp.asarray(params.class_shares)
    shares = [
        jnp.where(seen > 0, column.astype(jnp.float32) * scale, expected[..., i]) for i, column in enumerate(columns)
    ]
    return jnp.stack(columns, axis=-1), jnp.stack(shares, axis=-1)
