"""The seconds of one decision: requests, slots, the engines' fluid; and their sums.

``FleetState, knobs -> five times (requests -> Configuration -> physics.serving -> slots) -> Decision``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.fleet.action import FleetAction
from inferencegym_jax.fleet.slots import Slots, a_second_later, configure_fleet, running_of
from inferencegym_jax.fleet.state import DECISION_S, FleetParams
from inferencegym_jax.fleet.traffic import Coming, arrivals_of, engine_of
from inferencegym_jax.models import EngineState, RequestOutcome, ServeAction
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.kernels import Iterations
from inferencegym_jax.physics.serving import Second, serve_configured
from inferencegym_jax.physics.switching import Configuration, Switched

TINY = 1e-6


class Sums(NamedTuple):
    """What is added up over a decision's seconds; float32."""

    outcome: RequestOutcome  # present: of the last second; quality: added up
    arrivals: jax.Array  # requests
    prompt_tokens: jax.Array
    output_tokens: jax.Array
    tokens: jax.Array  # made
    entered: jax.Array  # requests
    completed: jax.Array
    preempted: jax.Array
    ttft: jax.Array  # ms, times requests
    ttft_p99: jax.Array  # ms, by second
    tpot: jax.Array  # ms, times tokens
    kv_use: jax.Array  # by second


def serve_decision(
    grid: Iterations,
    engine: EngineState,
    slots: Slots,
    asked: jax.Array,
    prefill: jax.Array,
    action: FleetAction,
    seed: jax.Array,
    time: jax.Array,
    of: Coming,
    params: FleetParams,
) -> tuple[EngineState, Slots, Sums]:
    """Serve the seconds of decision ``time``.

    Args:
        grid: the lookups of an engine's profile.
        engine: before.
        slots: before.
        asked: GPUs asked for, in force.
        prefill: of them, those for prompts.
        action: the other knobs in force.
        seed: uint32, of the episode.
        time: int32, decisions before this one.
        of: what the requests are drawn from.
        params: the task.
    """
    knobs = ServeAction(
        kv_budget=jnp.asarray(params.kv_budget, jnp.float32),
        spec_length=action.spec_length,
        batch_size=action.batch_size,
        prefill_disagg=prefill > 0,
        quant_tier=jnp.asarray(params.quant_tier, jnp.int32),
    )
    own = engine_of(of.mix, params.engine)

    def second(loop: tuple[EngineState, Slots, Sums], i: jax.Array) -> tuple[Any, None]:
        engine, slots, sums = loop
        arrivals = arrivals_of(seed, DECISION_S * time + i, of, params)
        configuration = configure_fleet(slots, asked, prefill, running_of(engine), knobs.quant_tier)
        zero = jnp.zeros_like(engine.held)
        switched = Switched(engine.preempted_tokens, zero, zero, zero)
        # the router looks at how many each engine has, not at prompts: half way between chance and turns, as the
        # request-by-request reference has it
        routed = own.replace(arrival_scv=own.arrival_scv + 0.5 * (configuration.prompt_gpus - 1.0))
        served, after = serve_configured(
            grid, engine, configuration, switched, knobs, arrivals, of.mix.shares, params.slo_ttft_ms, routed, of.short
        )
        after = after.replace(running=engine.running)
        return (after, *add_second(engine, slots, sums, served, after, arrivals, configuration)), None

    first = (engine, slots, no_sums(engine.held))
    return jax.lax.scan(second, first, jnp.arange(DECISION_S))[0]


def no_sums(like: jax.Array) -> Sums:
    """Zeros, in the batch shape of ``like``."""
    zero = jnp.zeros_like(like)
    classes = jnp.zeros((*like.shape, 3), jnp.float32)
    outcome = RequestOutcome(classes, classes, classes, classes, classes, classes, zero, zero, zero, zero)
    return Sums(outcome, *(zero,) * (len(Sums._fields) - 1))


def add_second(
    engine: EngineState,
    slots: Slots,
    sums: Sums,
    second: Second,
    after: EngineState,
    arrivals: Any,
    configuration: Configuration,
) -> tuple[Slots, Sums]:
    """Slots and sums after a second."""
    flow = second.flow
    running = running_of(engine)
    kept = 1.0 - jnp.minimum(second.completed / jnp.maximum(running + second.admitted, TINY), 1.0)
    slots = a_second_later(slots, configuration, kept, running_of(after))
    return slots, compile_unit(_add)(sums, second.outcome, arrivals, flow.admitted - flow.again, flow.grown, second)


def _add(
    sums: Sums, outcome: RequestOutcome, arrivals: Any, entered: jax.Array, grown: jax.Array, second: Second
) -> Sums:
    total = jax.tree.map(jnp.add, sums.outcome, outcome)
    return Sums(
        outcome=RequestOutcome(**{**total.__dict__, "present": outcome.present}),
        arrivals=sums.arrivals + arrivals.requests,
        prompt_tokens=sums.prompt_tokens + arrivals.requests * arrivals.prompt,
        output_tokens=sums.output_tokens + arrivals.requests * arrivals.output,
        tokens=sums.tokens + second.tokens,
        entered=sums.entered + entered,
        completed=sums.completed + second.completed,
        preempted=sums.preempted + second.preempted,
        ttft=sums.ttft + entered * second.ttft_mean_ms,
        ttft_p99=sums.ttft_p99 + second.ttft_p99_ms,
        tpot=sums.tpot + grown * second.tpot_ms,
        kv_use=sums.kv_use + second.occupancy,
    )
