"""The open-loop step: traffic, engine, and the counts, metrics and flags that the closed loop reports too. SPEC
section 9.

``state, action, params -> traffic -> open_loop.serve_second -> workload, metrics, oom, engine``. ``apply`` runs it in
a loop whose number of turns is a param: none for a batch of closed-loop tasks, which then pay nothing for it, one
otherwise.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import (
    OBSERVATION,
    TRAFFIC_OF_TASK,
    EngineState,
    EnvParams,
    EnvState,
    MetricsSnapshot,
    Phase,
    ServeAction,
    WorkloadState,
)
from inferencegym_jax.numerics.compile_units import stage
from inferencegym_jax.physics.fluid import Second, serve_second
from inferencegym_jax.physics.metrics import LATENCY_FLOOR_MS, count_violations, latency_noise
from inferencegym_jax.physics.speculation import drafting
from inferencegym_jax.table.iterations import EngineGrid
from inferencegym_jax.traffic import fitted as open_traffic
from inferencegym_jax.traffic.calendar import EMA_STEPS, WARMUP_STEPS, prompt_bucket
from inferencegym_jax.traffic.fitted import Requests
from inferencegym_jax.traffic.requests import requests_of

WHOLE = 1e-3  # a thousandth of a request is nobody: float32 rounding must not make one


class Served(NamedTuple):
    """What a step came to, from either loop."""

    workload: WorkloadState
    metrics: MetricsSnapshot
    oom: jax.Array  # bool
    engine: EngineState
    ttft_mean_ms: jax.Array  # float32, of the open loop; the closed loop's median
    ttft_p90_ms: jax.Array  # float32, of the open loop; the closed loop's 99th percentile


def apply(
    grid: EngineGrid, trace: np.ndarray | None, state: EnvState, action: ServeAction, params: EnvParams, closed: Served
) -> Served:
    """The open loop's answer where the task is one, the closed loop's otherwise.

    Args:
        grid: the table, taken apart.
        trace: float32[seconds, 3] of a request log, or None.
        state: before the step.
        action: knobs in force, as arrays.
        params: the task.
        closed: what the closed loop came to; its draws of traffic serve the tasks that have no fitted traffic.
    """
    turns = jnp.asarray(params.engine.open_loop, jnp.int32)
    return jax.lax.fori_loop(0, turns, lambda _, served: step(grid, trace, state, action, params, served), closed)


def step(
    grid: EngineGrid, trace: np.ndarray | None, state: EnvState, action: ServeAction, params: EnvParams, closed: Served
) -> Served:
    """One second of an open-loop task; arguments as ``apply``."""
    before = jax.tree.map(lambda x: jnp.where(state.time == 0, jnp.zeros_like(x), x), state.engine)
    requests = requests_of(trace, state, params, closed.workload)
    bucket = stage(prompt_bucket)(requests.prompt)
    rate, tokens_an_iteration, gain = stage(functools.partial(drafting, grid.table.reference_acceptance))(
        params, bucket, action.spec_length
    )
    second, after = serve_second(
        grid,
        before,
        action,
        requests.arrivals.astype(jnp.float32),
        requests.prompt,
        requests.output,
        gain,
        tokens_an_iteration,
        jnp.asarray(params.oom_limit_gb, jnp.float32),
        params.engine,
    )
    workload, after = count(state, before, after, second, requests, params, closed.workload)
    workload = WorkloadState(**{**vars(workload), "prompt_len_bucket": bucket})
    metrics = stage(functools.partial(measure, grid))(state, action, second, workload, rate, params)
    noise = metrics.ttft_p50_ms / jnp.maximum(second.ttft_p50_ms, LATENCY_FLOOR_MS)
    return _cast(
        Served(workload, metrics, second.oom, after, second.ttft_mean_ms * noise, second.ttft_p90_ms * noise), closed
    )


def _cast(served: Served, like: Served) -> Served:
    return jax.tree.map(lambda x, y: jnp.broadcast_to(x, jnp.shape(y)).astype(jnp.result_type(y)), served, like)


@stage
def count(
    state: EnvState,
    before: EngineState,
    after: EngineState,
    second: Second,
    requests: Requests,
    params: EnvParams,
    task: WorkloadState,
) -> tuple[WorkloadState, EngineState]:
    """Whole requests: arrived = finished + rejected + growth of waiting and running, to the request.

    Present are ``ceil(waiting + running)`` and waiting are ``ceil(waiting)`` of the fluid's real numbers, so both move
    by whole requests and none is made or lost. Of the waiting, ``queue_capacity`` may; the rest is rejected. When
    memory runs out, the running are lost and count as rejected.
    """
    present = state.queue + before.running + requests.arrivals
    ceiling = jnp.ceil(jnp.stack([after.waiting, after.waiting + after.concurrency]) - WHOLE).astype(jnp.int32)
    remaining = jnp.clip(ceiling[1], 0, present)
    waiting = jnp.clip(ceiling[0], 0, remaining)
    overflow = jnp.maximum(waiting - params.engine.queue_capacity, 0)
    gone = present - remaining
    engine = params.engine
    drawn = engine.traffic != TRAFFIC_OF_TASK
    burst = jnp.where(drawn, requests.multiplier > open_traffic.BURST, task.is_burst)
    quiet = jnp.where(state.time < WARMUP_STEPS, Phase.WARMUP, Phase.STEADY)
    arrivals = requests.arrivals
    workload = WorkloadState(
        arrival_rate=state.arrival_ema + (2.0 / (EMA_STEPS + 1)) * (arrivals - state.arrival_ema),
        mean_prompt_len=jnp.clip(
            requests.prompt, OBSERVATION["mean_prompt_len"].low, OBSERVATION["mean_prompt_len"].high
        ),
        prompt_len_bucket=task.prompt_len_bucket,
        queue_depth=waiting - overflow,
        priority_distribution=jnp.where(drawn, params.class_shares, task.priority_distribution),
        is_burst=burst,
        phase=jnp.where(drawn, jnp.where(burst, Phase.BURST, quiet), task.phase),
        arrivals=arrivals,
        served=jnp.where(second.oom, 0, gone),
        rejected=overflow + jnp.where(second.oom, gone, 0),
        running=remaining - waiting,
    )
    return workload, after.replace(running=remaining - waiting, waiting=after.waiting - overflow.astype(jnp.float32))


def measure(
    grid: EngineGrid,
    state: EnvState,
    action: ServeAction,
    second: Second,
    workload: WorkloadState,
    rate: jax.Array,
    params: EnvParams,
) -> MetricsSnapshot:
    """The second's metrics; noise, violations, memory and cost by the closed loop's rules (SPEC section 4).

    A second costs its GPUs whether they are busy or not, so the cost of 1,000 tokens falls as more are asked for; a
    second with fewer tokens than one request gets is billed as if it had those.
    """
    ttft_noise, tpot_noise = latency_noise(state.seed, state.time, params.noise_sigma)
    ttft_p50 = jnp.maximum(second.ttft_p50_ms * ttft_noise, LATENCY_FLOOR_MS)
    # a ServeAction's bool is the index: every table has one or both values
    rates = jnp.asarray(grid.cost_rate)
    price = jnp.where(action.prefill_disagg, rates[-1], rates[0])
    return MetricsSnapshot(
        ttft_p50_ms=ttft_p50,
        ttft_p99_ms=jnp.maximum(second.ttft_p99_ms * ttft_noise, LATENCY_FLOOR_MS),
        tpot_ms=jnp.maximum(second.tpot_ms * tpot_noise, LATENCY_FLOOR_MS),
        tokens_per_sec=jnp.where(second.oom, 0.0, second.tokens),
        gpu_memory_gb=jnp.minimum(second.memory_gb, params.oom_limit_gb),
        cost_per_1k=1000.0 * price / jnp.maximum(second.tokens, 1000.0 / second.tpot_ms),
        spec_accept_rate=jnp.where(action.spec_length > 0, rate, 0.0),
        eviction_events=jnp.floor((1.0 - action.kv_budget) * workload.queue_depth).astype(jnp.int32),
        slo_violations=count_violations(ttft_p50, workload, action.batch_size, second.oom, jnp.asarray(params.slo_ms)),
    )
