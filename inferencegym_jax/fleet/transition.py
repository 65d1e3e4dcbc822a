"""The pure step of a fleet: one decision, without auto-reset, and the state that an episode begins with."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax.fleet.action import FLEET_KNOBS, GPUS, FleetAction
from inferencegym_jax.fleet.observation import AVERAGES_S, FleetObservation, clipped
from inferencegym_jax.fleet.serving import Sums, serve_decision
from inferencegym_jax.fleet.slots import INDEX, Slots, fail, over_slots, resize, running_of
from inferencegym_jax.fleet.state import DECISION_S, FleetMetrics, FleetParams, FleetState, FleetWorkload
from inferencegym_jax.fleet.traffic import coming, day_scale
from inferencegym_jax.models import EngineState
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.kernels import Iterations
from inferencegym_jax.traffic import days

DECAY = tuple(math.exp(-DECISION_S / seconds) for seconds in AVERAGES_S)
TINY = 1e-6


def initial(
    seed: jax.Array, episode: jax.Array, params: FleetParams, log: jax.Array | None
) -> tuple[FleetObservation, FleetState]:
    """The state of an episode before its first decision, and what the agent sees of it.

    Nobody is there yet and no GPU; what the first decision asks for is there at once. The averages of the load are what
    the first second's rates make of it, as if the fleet had been serving them.
    """
    shape = jnp.shape(seed)
    zero = jnp.zeros(shape, jnp.float32)
    none = jnp.zeros(shape, jnp.int32)
    slots = jnp.zeros((*shape, GPUS), jnp.float32)
    scale = jnp.ones_like(zero) if log is not None else day_scale(seed, params)
    mix = coming(seed, none, scale, params, log).mix
    prompt = mix.rate * mix.prompt * params.prompt_gpus
    output = mix.rate * mix.output * params.output_gpus
    many = len(AVERAGES_S)
    state = FleetState(
        seed=seed,
        episode=episode,
        time=none,
        scale=scale,
        engine=EngineState.empty(shape),
        asked=none,
        prefill=none,
        start_s=slots,
        lease_s=slots,
        apart=slots,
        most=zero,
        prompt_load=jnp.stack([prompt] * many, axis=-1),
        output_load=jnp.stack([output] * many, axis=-1),
    )
    values = {
        "prompt_load": prompt,
        "output_load": output,
        "queue": zero,
        "kv_use": zero,
        "on_time_share": zero + 1.0,
        "ttft": zero,
        "tpot": zero,
    }
    return observe(state, values, params), state


def knobs_in_force(action: FleetAction, params: FleetParams) -> FleetAction:
    """Locked knobs at their default, traced ones outside their range clamped: at least one GPU decodes."""
    fields: dict[str, jax.Array] = {}
    for i, (name, knob) in enumerate(FLEET_KNOBS.items()):
        value = jnp.clip(getattr(action, name), int(knob.least), int(knob.most))
        fields[name] = jnp.where(jnp.asarray(params.active)[..., i], value, knob.default)
    gpus = jnp.minimum(fields["gpus"], jnp.asarray(params.gpus, jnp.int32))
    return FleetAction(**{**fields, "gpus": gpus, "prefill_gpus": jnp.minimum(fields["prefill_gpus"], gpus - 1)})


def observe(state: FleetState, values: dict[str, jax.Array], params: FleetParams) -> FleetObservation:
    """What the agent sees of a state and of the decision that led to it."""
    active = INDEX < state.asked[..., None]
    left = jnp.where(active, state.start_s, 0.0)
    serving = over_slots((active & (state.start_s <= 0)).astype(jnp.float32))
    asked = state.asked.astype(jnp.float32)
    there = ~active & ((state.lease_s > 0) | (state.apart > 0))
    last = jnp.maximum(state.asked - 1, 0)[..., None]
    engine = params.engine
    second = DECISION_S * state.time
    hour = days.hour_at(state.seed, second, engine.day)
    averaged = {
        f"{kind}_load_{over}": load[..., i]
        for kind, load in (("prompt", state.prompt_load), ("output", state.output_load))
        for i, over in enumerate(("15s", "2min", "10min"))
    }
    return clipped(
        {
            **values,
            **averaged,
            "running": running_of(state.engine),
            "bare_ttft": params.bare_ttft,
            "bare_tpot": params.bare_tpot,
            "asked": asked,
            "serving": serving,
            "starting": asked - serving,
            "draining": over_slots(there.astype(jnp.float32)),
            "start_left_s": left.max(axis=-1),
            "lease_left_s": jnp.take_along_axis(state.lease_s, last, axis=-1)[..., 0],
            "start_s": params.start_s,
            "clock": engine.day.clock,
            "hour": hour - 24.0 * jnp.floor(hour / 24.0),
            "timestep": state.time.astype(jnp.float32),
        }
    )


def transition(
    grid: Iterations, log: jax.Array | None, state: FleetState, action: FleetAction, params: FleetParams
) -> tuple[FleetObservation, FleetState, jax.Array, dict[str, Any]]:
    """The pure step: one decision of one fleet, no auto-reset.

    Args:
        grid: the lookups of an engine's profile.
        log: float32[seconds, 3] of a request log that is replayed, or None.
        state: before the step.
        action: knobs as arrays.
        params: the task.

    Returns:
        (observation, state after the step, reward float32, info).
    """
    knobs = compile_unit(knobs_in_force)(action, params)
    is_first = state.time == 0
    slots = resize(
        Slots(state.start_s, state.lease_s, state.apart, state.most),
        state.asked,
        knobs.gpus,
        state.prefill,
        knobs.prefill_gpus,
        is_first,
        running_of(state.engine),
        params,
    )
    chance = jnp.asarray(params.failures, jnp.float32) * jnp.float32(DECISION_S / 3600.0)
    slots, engine, failed = fail(
        slots, knobs.gpus, knobs.prefill_gpus, state.engine, state.seed, state.time, chance, params
    )
    of = coming(state.seed, state.time, state.scale, params, log)
    engine, slots, sums = serve_decision(
        grid, engine, slots, knobs.gpus, knobs.prefill_gpus, knobs, state.seed, state.time, of, params
    )
    return compile_unit(functools.partial(close_decision))(state, knobs, slots, engine, sums, failed, is_first, params)


def close_decision(
    state: FleetState,
    knobs: FleetAction,
    slots: Slots,
    engine: EngineState,
    sums: Sums,
    failed: jax.Array,
    is_first: jax.Array,
    params: FleetParams,
) -> tuple[FleetObservation, FleetState, jax.Array, dict[str, Any]]:
    """Averages, observation, reward and info of a decision."""
    each = jnp.float32(1.0 / DECISION_S)
    prompt = sums.prompt_tokens * each * params.prompt_gpus
    output = sums.output_tokens * each * params.output_gpus

    def averaged(before: jax.Array, now: jax.Array) -> jax.Array:
        return jnp.stack([now + k * (before[..., i] - now) for i, k in enumerate(DECAY)], axis=-1)

    after = state.replace(
        time=state.time + 1,
        engine=engine,
        asked=knobs.gpus,
        prefill=knobs.prefill_gpus,
        start_s=slots.start_s,
        lease_s=slots.lease_s,
        apart=slots.apart,
        most=slots.most,
        prompt_load=averaged(state.prompt_load, prompt),
        output_load=averaged(state.output_load, output),
    )
    outcome = sums.outcome
    good = over_classes(outcome.on_time)
    bad = over_classes(outcome.late) + over_classes(outcome.rejected) + over_classes(outcome.failed)
    judged = good + bad
    ttft = jnp.where(sums.entered > TINY, sums.ttft / jnp.maximum(sums.entered, TINY), 0.0)
    tpot = jnp.where(sums.tokens > TINY, sums.tpot / jnp.maximum(sums.tokens, TINY), 0.0)
    values = {
        "prompt_load": prompt,
        "output_load": output,
        "queue": over_classes(engine.waiting),
        "kv_use": sums.kv_use * each,
        "on_time_share": jnp.where(judged > TINY, good / jnp.maximum(judged, TINY), 1.0),
        "ttft": ttft / jnp.asarray(params.slo_ttft_ms)[..., 0],
        "tpot": tpot / jnp.asarray(params.engine.slo_tpot_ms)[..., 0],
    }
    observation = observe(after, values, params)
    price = jnp.asarray(params.late_price) * params.work_s
    full = DECISION_S * jnp.asarray(params.gpus, jnp.float32)
    reward = -(outcome.gpu_seconds + price * bad) / full
    changed = jnp.where(is_first, 0, jnp.abs(knobs.gpus - state.asked)).astype(jnp.float32)
    metrics = FleetMetrics(
        ttft_mean_ms=ttft,
        ttft_p99_ms=sums.ttft_p99 * each,
        tpot_ms=tpot,
        tokens=sums.tokens,
        first_tokens=sums.entered,
        completed=sums.completed,
        preempted=sums.preempted,
        running=running_of(engine),
        queue=over_classes(engine.waiting),
        kv_use=sums.kv_use * each,
        asked=observation.asked,
        prefill=knobs.prefill_gpus.astype(jnp.float32),
        serving=observation.serving,
        starting=observation.starting,
        draining=observation.draining,
        failures=failed,
        changed=changed,
    )
    workload = FleetWorkload(sums.arrivals, sums.prompt_tokens, sums.output_tokens, prompt + output, observation.hour)
    info = {
        "timestep": after.time,
        "metrics": metrics,
        "workload": workload,
        "outcome": outcome,
        "oom": jnp.zeros_like(is_first),
        "violation_rate": 1.0 - values["on_time_share"],
    }
    return observation, after, reward, info


def over_classes(values: jax.Array) -> jax.Array:
    """Sum over the three classes."""
    return values[..., 0] + values[..., 1] + values[..., 2]
