"""The pure step: traffic, physics, reward, observation of one second, without auto-reset."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from inferencegym_jax.models import (
    KNOBS,
    TRAFFIC_OF_TASK,
    EngineState,
    EnvParams,
    EnvState,
    ServeAction,
    ServeObservation,
)
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics import open_loop as engine
from inferencegym_jax.physics.closed_loop import serve_second
from inferencegym_jax.physics.metrics import kv_occupancy, violation_rate
from inferencegym_jax.physics.observation import initial_observation, observe
from inferencegym_jax.scoring.reward import Reward, of_each, request_reward, reward
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.table.lookup import TableGrid
from inferencegym_jax.tasks.draws import Draws, drawn
from inferencegym_jax.traffic.request_log import RequestLog

Dynamics: TypeAlias = Literal["mixed", "closed_loop", "open_loop"]
"""Which dynamics a step is compiled for: one of the two, or the choice of every environment's params."""


def initial(seed: jax.Array, episode: jax.Array, params: EnvParams) -> tuple[ServeObservation, EnvState]:
    """The state of an episode before its first step and what the agent sees of it: ``initial_observation``."""
    zero = jnp.zeros_like(seed, jnp.float32)
    none = jnp.zeros_like(seed, jnp.int32)
    shares = jnp.broadcast_to(jnp.asarray(params.class_shares, jnp.float32), (*jnp.shape(seed), 3))
    state = EnvState(
        seed=seed,
        episode=episode,
        time=none,
        queue=none,
        arrival_ema=zero,
        class_counts=jnp.zeros_like(shares, jnp.int32),
        cost_so_far=zero,
        engine=EngineState.empty(jnp.shape(seed)),
    )
    return initial_observation(shares), state


def effective_action(table: LatencyTable, action: ServeAction, params: EnvParams) -> ServeAction:
    """The knobs in force: locked ones at the baseline's value, traced ones outside their range clamped at the edge."""
    fields = {}
    for i, (name, knob) in enumerate(KNOBS.items()):
        value = getattr(action, name)
        if knob.kind != "bool":
            low, high = (jnp.asarray(end, value.dtype) for end in (knob.least, knob.most))
            value = jnp.clip(value, low, high)
        default = jnp.asarray(table.knob_defaults[name], value.dtype)
        fields[name] = jnp.where(params.active[..., i], value, default)
    return ServeAction(**fields)


def _closed_loop(
    grid: TableGrid, state: EnvState, action: ServeAction, params: EnvParams
) -> tuple[engine.Served, jax.Array]:
    """A second of the closed loop, and its class counts (int32[..., 3])."""
    traffic, counts, metrics, oom = serve_second(grid, state, action, params)
    served = engine.Served(
        workload=traffic,
        metrics=metrics,
        oom=oom,
        engine=state.engine,
        outcome=engine.no_outcome(traffic.priority_distribution),
        occupancy=kv_occupancy(grid, metrics.gpu_memory_gb, action.quant_tier, params),
        violation_rate=violation_rate(metrics, traffic.queue_depth),
        ttft_mean_ms=metrics.ttft_p50_ms,
        ttft_p90_ms=metrics.ttft_p99_ms,
    )
    return served, counts


def transition(
    grid: TableGrid,
    state: EnvState,
    action: ServeAction,
    params: EnvParams,
    trace: RequestLog | None = None,
    dynamics: Dynamics = "mixed",
    own_reward: Reward | None = None,
    draws: Draws | None = None,
    source: int | None = None,
) -> tuple[ServeObservation, EnvState, jax.Array, jax.Array, dict[str, Any]]:
    """The pure step: one second of serving, no auto-reset.

    Args:
        grid: the latency table.
        state: before the step; fields are scalars, batched under vmap.
        action: knobs as arrays.
        params: the task.
        trace: the request log that params may say is replayed.
        dynamics: which to compile, where it is known that all of ``params`` have one of them.
        own_reward: a user's, in place of ``scoring.reward``'s.
        draws: what is drawn anew for each episode, where the environment's task does.
        source: where requests come from in all of ``params``, if that is known (``TRAFFIC_*``).

    Returns:
        (observation, state after the step, reward float32, terminated bool, info).
    """
    if draws is not None:
        params = compile_unit(functools.partial(drawn, draws))(params, state.seed)
    action = compile_unit(functools.partial(effective_action, grid.table))(action, params)
    served, class_counts = None, state.class_counts
    if dynamics != "open_loop" or source in (None, TRAFFIC_OF_TASK):
        served, counts = _closed_loop(grid, state, action, params)
        # arrivals that are not the task's own draws are not counted by class
        own = params.engine.traffic == TRAFFIC_OF_TASK
        class_counts = counts if dynamics == "closed_loop" else jnp.where(own, counts, class_counts)
    if dynamics != "closed_loop":
        if draws is None:
            iterations, asked = engine.iterations_of(grid.table), action
        else:  # engine i of the stack is its tier i
            iterations, asked = draws.stack, action.replace(quant_tier=jnp.asarray(params.engine.table, jnp.int32))
        inputs = iterations, trace, grid.table.gpu_second_cost, state, asked, params
        if dynamics == "open_loop":
            served = engine.step(*inputs, served, source)
        elif served is not None:
            served = engine.apply(*inputs, served)
    assert served is not None
    traffic, metrics, oom = served.workload, served.metrics, served.oom
    after = EnvState(
        seed=state.seed,
        episode=state.episode,
        time=state.time + 1,
        queue=traffic.queue_depth,
        arrival_ema=traffic.arrival_rate,
        class_counts=class_counts,
        cost_so_far=state.cost_so_far + metrics.cost_per_1k,
        engine=served.engine,
    )
    observation = observe(
        metrics,
        traffic,
        kv_cache_occupancy=served.occupancy,
        slo_violation_rate=served.violation_rate,
        timestep=after.time,
        cost_so_far=after.cost_so_far,
    )
    info = {
        "timestep": after.time,
        "metrics": metrics,
        "workload": traffic,
        "oom": oom,
        "outcome": served.outcome,
        "violation_rate": observation.slo_violation_rate,
        "ttft_mean_ms": served.ttft_mean_ms,
        "ttft_p90_ms": served.ttft_p90_ms,
    }
    if own_reward is not None:
        value = of_each(own_reward, metrics, traffic, params, served.outcome)
    else:
        by_second = reward(metrics, traffic, params)
        by_request = request_reward(metrics, traffic, served.outcome, served.violation_rate, params)
        value = {
            "closed_loop": by_second,
            "open_loop": by_request,
            "mixed": jnp.where(params.engine.open_loop > 0, by_request, by_second),
        }[dynamics]
    return observation, after, value, jnp.zeros_like(oom), info
