"""The open-loop step: traffic, engine, and the counts, metrics and flags that the closed loop reports too.

``state, action, params -> traffic -> serving.serve_second -> workload, metrics, outcome, engine``. ``apply`` runs it
in a loop whose number of turns is a param: none for a batch of closed-loop tasks, which then pay nothing for it, one
otherwise.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import (
    OBSERVATION,
    TRAFFIC_OF_TASK,
    EngineState,
    EnvParams,
    EnvState,
    MetricsSnapshot,
    Phase,
    RequestOutcome,
    ServeAction,
    WorkloadState,
)
from inferencegym_jax.numerics import draws
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.inflow import Arrivals
from inferencegym_jax.physics.kernels import Iterations
from inferencegym_jax.physics.metrics import LATENCY_FLOOR_MS
from inferencegym_jax.physics.serving import Second, serve_second
from inferencegym_jax.table import LatencyTable, TableError, profile_of
from inferencegym_jax.traffic import fitted as open_traffic
from inferencegym_jax.traffic.calendar import EMA_STEPS, WARMUP_STEPS, prompt_bucket
from inferencegym_jax.traffic.fitted import Requests
from inferencegym_jax.traffic.request_log import RequestLog
from inferencegym_jax.traffic.requests import requests_of

WHOLE = 1e-3  # a thousandth of a request is nobody: float32 rounding must not make one


class Served(NamedTuple):
    """What a step came to, from either loop."""

    workload: WorkloadState
    metrics: MetricsSnapshot
    oom: jax.Array  # bool
    engine: EngineState
    outcome: RequestOutcome  # zeros of the closed loop
    occupancy: jax.Array  # float32, share of the KV cache in use
    violation_rate: jax.Array  # float32, share
    ttft_mean_ms: jax.Array  # float32, of the open loop; the closed loop's median
    ttft_p90_ms: jax.Array  # float32, of the open loop; the closed loop's 99th percentile


@functools.lru_cache(maxsize=8)
def iterations_of(table: LatencyTable) -> Iterations:
    """The lookups of a table's engine profile, made once.

    Raises:
        TableError: the table says too little for the open loop; the message names what to add.
    """
    return Iterations(profile_of(table))


def serves(table: LatencyTable) -> bool:
    """Whether a table says enough of an engine for the open loop."""
    try:
        iterations_of(table)
    except TableError:
        return False
    return True


def no_outcome(shares: jax.Array) -> RequestOutcome:
    """The outcome of a second of the closed loop, which is not scored by request: zeros; float32[3] and scalars."""
    classes = jnp.zeros_like(shares)
    one = jnp.zeros_like(shares[..., 0])
    return RequestOutcome(classes, classes, classes, classes, classes, classes, one, one, one, one)


def apply(
    grid: Iterations,
    trace: RequestLog | None,
    price: float,
    state: EnvState,
    action: ServeAction,
    params: EnvParams,
    closed: Served,
) -> Served:
    """The open loop's answer where the task is one, the closed loop's otherwise.

    Args:
        grid: the lookups of the engine's profile.
        trace: the request log that params may say is replayed, or None.
        price: of a GPU-second, in the table's unit of cost.
        state: before the step.
        action: knobs in force, as arrays.
        params: the task.
        closed: what the closed loop came to; its draws of traffic serve the tasks that have no fitted traffic.
    """
    turns = jnp.asarray(params.engine.open_loop, jnp.int32)
    return jax.lax.fori_loop(
        0, turns, lambda _, served: step(grid, trace, price, state, action, params, served), closed
    )


def step(
    grid: Iterations,
    trace: RequestLog | None,
    price: float,
    state: EnvState,
    action: ServeAction,
    params: EnvParams,
    closed: Served | None,
    source: int | None = None,
) -> Served:
    """One second of an open-loop task.

    Args:
        grid: see ``apply``.
        trace: see ``apply``.
        price: see ``apply``.
        state: see ``apply``.
        action: see ``apply``.
        params: see ``apply``.
        closed: see ``apply``; None where ``source`` is not the task's own draws.
        source: where the requests of all such tasks come from, if known; see ``requests_of``.
    """
    task = None if closed is None else closed.workload
    requests, kinds = requests_of(trace, state, params, task, source)
    second, after = serve_second(
        grid,
        state.engine,
        action,
        Arrivals(requests.arrivals.astype(jnp.float32), requests.prompt, requests.output),
        state.time == 0,
        kinds.shares,
        jnp.asarray(params.slo_ms, jnp.float32),
        kinds.engine(params.engine),
        kinds.short,
        kinds.is_log,
    )
    workload, after = count(state, after, second, requests, kinds.shares, params, task)
    metrics, noise, violation_rate = compile_unit(functools.partial(measure, price))(state, second, params)
    served = Served(
        workload=workload,
        metrics=metrics,
        oom=jnp.zeros_like(workload.is_burst),
        engine=after,
        outcome=second.outcome,
        occupancy=second.occupancy,
        violation_rate=violation_rate,
        ttft_mean_ms=second.ttft_mean_ms * noise,
        ttft_p90_ms=second.ttft_p90_ms * noise,
    )
    return served if closed is None else _cast(served, closed)


def _cast(served: Served, like: Served) -> Served:
    return jax.tree.map(lambda x, y: jnp.broadcast_to(x, jnp.shape(y)).astype(jnp.result_type(y)), served, like)


@compile_unit
def count(
    state: EnvState,
    after: EngineState,
    second: Second,
    requests: Requests,
    shares: jax.Array,
    params: EnvParams,
    task: WorkloadState | None,
) -> tuple[WorkloadState, EngineState]:
    """Whole requests: arrived = finished + rejected + growth of waiting and running, to the request.

    Present are ``ceil(waiting + running)`` and waiting are ``ceil(waiting)`` of the fluid's real numbers, so both move
    by whole requests and none is made or lost. Preempted requests wait.
    """
    present = state.queue + state.engine.running + requests.arrivals
    waits = after.waiting[..., 0] + after.waiting[..., 1] + after.waiting[..., 2]
    runs = jnp.zeros_like(waits)
    for i in range(after.phases.shape[-1]):
        waits, runs = waits + after.preempted[..., i], runs + after.phases[..., i]
    remaining = jnp.clip(_ceiling(waits + runs), 0, present)
    waiting = jnp.clip(_ceiling(waits), 0, remaining)
    gone = present - remaining
    rejected = jnp.clip(jnp.round(second.rejected).astype(jnp.int32), 0, gone)
    burst = requests.multiplier > open_traffic.BURST
    phase = jnp.where(burst, Phase.BURST, jnp.where(state.time < WARMUP_STEPS, Phase.WARMUP, Phase.STEADY))
    if task is not None:
        own = params.engine.traffic == TRAFFIC_OF_TASK
        burst, phase = jnp.where(own, task.is_burst, burst), jnp.where(own, task.phase, phase)
        shares = jnp.where(own, task.priority_distribution, shares)
    arrivals = requests.arrivals
    workload = WorkloadState(
        arrival_rate=state.arrival_ema + (2.0 / (EMA_STEPS + 1)) * (arrivals - state.arrival_ema),
        mean_prompt_len=jnp.clip(
            requests.prompt, OBSERVATION["mean_prompt_len"].low, OBSERVATION["mean_prompt_len"].high
        ),
        prompt_len_bucket=prompt_bucket(requests.prompt),
        queue_depth=waiting,
        priority_distribution=shares,
        is_burst=burst,
        phase=phase,
        arrivals=arrivals,
        served=gone - rejected,
        rejected=rejected,
        running=remaining - waiting,
    )
    return workload, after.replace(running=remaining - waiting)


def _ceiling(requests: jax.Array) -> jax.Array:
    return jnp.ceil(requests - WHOLE).astype(jnp.int32)


def measure(
    price: float, state: EnvState, second: Second, params: EnvParams
) -> tuple[MetricsSnapshot, jax.Array, jax.Array]:
    """The second's metrics with noise on the latencies, the noise factor of TTFT, and the violation rate.

    A second costs its GPUs whether they are busy or not, so the cost of 1,000 tokens falls as more are asked for; a
    second with fewer tokens than one request gets is billed as if it had those. Preemptions and violations are real
    numbers in the fluid and whole ones here, rounded at random so that their means stay.
    """
    words = draws.hash4(state.seed, state.time, draws.NOISE)
    ttft_noise = 1.0 + params.noise_sigma * draws.normal(words[0])
    tpot_noise = 1.0 + params.noise_sigma * draws.normal(words[1])
    outcome = second.outcome
    asked, violated = jnp.zeros_like(second.tokens), jnp.zeros_like(second.tokens)
    for i in range(outcome.late.shape[-1]):
        asked = asked + outcome.asked[..., i]
        violated = violated + outcome.late[..., i] + outcome.rejected[..., i] + outcome.failed[..., i]
    metrics = MetricsSnapshot(
        ttft_p50_ms=jnp.maximum(second.ttft_p50_ms * ttft_noise, LATENCY_FLOOR_MS),
        ttft_p99_ms=jnp.maximum(second.ttft_p99_ms * ttft_noise, LATENCY_FLOOR_MS),
        tpot_ms=jnp.maximum(second.tpot_ms * tpot_noise, LATENCY_FLOOR_MS),
        tokens_per_sec=second.tokens,
        gpu_memory_gb=second.memory_gb,
        cost_per_1k=1000.0 * price * outcome.gpu_seconds / jnp.maximum(second.tokens, 1000.0 / second.tpot_ms),
        spec_accept_rate=second.accepted,
        eviction_events=_whole(second.preempted, words[2]),
        slo_violations=_whole(violated, words[3]),
    )
    return metrics, ttft_noise, jnp.clip(violated / jnp.maximum(asked, 1.0), 0.0, 1.0)


def _whole(amount: jax.Array, word: jax.Array) -> jax.Array:
    """int32 around ``amount``, with its mean."""
    return jnp.floor(amount + draws.uniform(word)).astype(jnp.int32)
