"""Admission and iteration time of a second, solved together: at its start, and again at its middle.

``Inflow, prompts, iteration time -> limits -> SecondPlan, Solution``. Symbols: docs/physics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import PHASES, EngineParams, ServeAction
from inferencegym_jax.numerics.compile_units import compile_unit, once
from inferencegym_jax.physics import admission, pool
from inferencegym_jax.physics.chance import Chance, near_pool, near_slots, normal_share, unseen
from inferencegym_jax.physics.flow import mix, phases_a_token, remainder
from inferencegym_jax.physics.inflow import Inflow
from inferencegym_jax.physics.iteration import TINY, Apart, Iteration, Prompts, over_nodes
from inferencegym_jax.physics.switching import Configuration

ONE_TWELFTH = 1.0 / 12.0  # variance of an even spread over 1


class Solution(NamedTuple):
    """How the second is served."""

    rate: jax.Array  # requests admitted a ms
    most: jax.Array  # the most that could have been
    pace: jax.Array  # iterations a ms
    passing: jax.Array  # phases that a running request passes a ms
    preempted: jax.Array  # requests for each that finishes
    chance: Chance


class SecondPlan(NamedTuple):
    """Where a first, rough solution sees the second go; requests, tokens, ms."""

    entering: jax.Array  # requests
    gone: jax.Array  # requests that finish
    most: jax.Array  # requests a ms for which there are slots
    middle: jax.Array  # running in the middle of the second
    context: jax.Array  # tokens that each holds there
    held: jax.Array  # tokens in the pools there
    output: jax.Array  # mean output of all that run
    residence_ms: jax.Array  # from a request's first to its last token


def limits_of(
    inflow: Inflow,
    prompts: Prompts,
    iteration_ms: jax.Array,
    apart: Apart,
    output: jax.Array,
    long: jax.Array,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
) -> admission.Engine:
    """What the limits of admission are made of, at an iteration of this time."""
    e, split = configuration.gpus, configuration.prefill_gpu
    room = pool.watermark_room(inflow.pool, action.kv_budget, inflow.prompt, params.prompt_cv, inflow.output)
    chunks = over_nodes(prompts.further) + 1.0
    added = prompts.mean_ms if prompts.shared_ms is None else prompts.shared_ms
    return admission.Engine(
        prompt_gpus=configuration.prompt_gpus,
        slots=e * action.batch_size.astype(jnp.float32),
        room=e * jnp.minimum(room, inflow.pool),
        pace=1.0 / iteration_ms,
        share_ms=jnp.where(split, 0.0, added / e),
        prefill_ms=jnp.where(
            split, apart.mean_prompt_ms + apart.mean_link_ms + iteration_ms, chunks * iteration_ms + prompts.mean_ms
        ),
        least_ms=jnp.where(
            split,
            jnp.maximum(apart.mean_prompt_ms, apart.mean_link_ms),
            added + iteration_ms * prompts.iterations,
        ),
        prompt=inflow.prompt,
        passing=phases_a_token(output, long) * inflow.tokens,
        tokens=inflow.tokens,
    )


def rate_at_start(inflow: Inflow, what: admission.Engine, demand: admission.Demand) -> tuple[jax.Array, jax.Array]:
    """Admissions a ms for which line, budget and memory allow at the second's start, and of them those with a slot."""
    others = jnp.minimum(
        jnp.minimum(inflow.line * demand.inverse_ms, admission.by_budget(what)), admission.by_memory(what, demand)
    )
    return others, jnp.maximum(jnp.minimum(others, admission.by_slots(what, demand)), 0.0)


@compile_unit
def plan_second(
    inflow: Inflow,
    prompts: Prompts,
    begin_ms: jax.Array,
    apart: Apart,
    demand: admission.Demand,
    long: jax.Array,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
) -> SecondPlan:
    """A first solution at the iteration time of the second's start: who enters, who is gone, and the middle."""
    span = configuration.span_ms
    what = limits_of(inflow, prompts, begin_ms, apart, inflow.own_output, long, action, configuration, params)
    others, first = rate_at_start(inflow, what, demand)
    others, pace = once(others, admission.pace_of(what, first))
    kept, reach = remainder(inflow.phases, long, what.passing * pace, span)
    most = most_admitted(what, inflow, demand, kept, reach, configuration)
    most, rate = once(most, jnp.maximum(jnp.minimum(others, most), 0.0))
    entering, end = rate * span, kept + rate * reach
    middle, gone = once(0.5 * (inflow.running + end), jnp.maximum(inflow.running + entering - end, 0.0))
    # half of the second's change of the tokens held
    grown = inflow.running * inflow.tokens * span * pace
    held = inflow.held + 0.5 * (entering * inflow.prompt + grown - gone * demand.freed)
    context = jnp.clip(held / jnp.maximum(middle, TINY), 0.5 * inflow.context, 2.0 * inflow.context)
    context = jnp.where(inflow.running > 1.0, context, inflow.prompt + 0.5 * jnp.minimum(inflow.output, span * pace))
    # outputs are mixed by what the running still have to get, so that tokens owed are conserved
    tokens_remaining = sum(x * float(PHASES - i) for i, x in enumerate(inflow.phases)) * (1.0 / (3.0 * long + 1.0))
    output = mix(tokens_remaining, inflow.own_output, entering, inflow.output)
    residence_ms = jnp.maximum(output - 1.0, 1.0) / (pace * inflow.tokens)
    return SecondPlan(entering, gone, most, middle, context, held, output, residence_ms)


def most_admitted(
    what: admission.Engine,
    inflow: Inflow,
    demand: admission.Demand,
    kept: jax.Array,
    reach: jax.Array,
    configuration: Configuration,
) -> jax.Array:
    """Admissions a ms with which the slots are taken at the second's end. Those that are recomputed come first and go
    on where they were, so that each holds a slot through the second."""
    free = jnp.maximum(what.slots - jnp.maximum(kept - configuration.apart, 0.0), 0.0)
    again = jnp.minimum(inflow.again, free)
    return again * demand.inverse_ms + (free - again) / (reach + what.prefill_ms)


@compile_unit
def solve(
    inflow: Inflow,
    prompts: Prompts,
    at: Iteration,
    apart: Apart,
    demand: admission.Demand,
    plan: SecondPlan,
    long: jax.Array,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
) -> Solution:
    """The second's solution at the iteration time of its middle."""
    what = limits_of(inflow, prompts, at.ms, apart, plan.output, long, action, configuration, params)
    memory, budget = once(admission.by_memory(what, demand), admission.by_budget(what))
    chance, full = near_limits(inflow, what, demand, plan, at.stiffness, memory <= plan.most, params)
    share = pool.preempted_share(inflow.pool, action.kv_budget, inflow.own_prompt, plan.output, full)
    again = share * plan.gone * demand.inverse_ms * what.share_ms  # of the time, by what is recomputed
    share, left = once(share, jnp.maximum(1.0 - again, 0.5))
    others = jnp.minimum(budget, memory) * left
    wanted, others = once(jnp.minimum(inflow.line * demand.inverse_ms, others), others)
    likely = jnp.maximum(jnp.minimum(wanted, plan.most), 0.0)
    (pace,) = once(what.pace * jnp.maximum(left - likely * what.share_ms, 1.0 - admission.BUSIEST))
    passing = what.passing * pace
    kept, reach = remainder(inflow.phases, long, passing, configuration.span_ms)
    most = most_admitted(what, inflow, demand, kept, reach, configuration)
    (most,) = once(jnp.maximum(jnp.minimum(others, most), 0.0))
    return Solution(jnp.clip(wanted, 0.0, most), most, pace, passing, share, chance)


def near_limits(
    inflow: Inflow,
    what: admission.Engine,
    demand: admission.Demand,
    plan: SecondPlan,
    stiffness: jax.Array,
    by_pool: jax.Array,
    params: EngineParams,
) -> tuple[Chance, jax.Array]:
    """What chance does at the nearer of slots and pool, all GPUs together, and the probability of a full pool."""
    waiting = jnp.maximum(0.5 * (inflow.waiting + inflow.line - plan.entering), 0.0)
    rate = plan.entering * demand.inverse_ms
    (sigma,) = once(unseen(plan.middle, params.output_cv, stiffness, rate * what.share_ms))
    prefill = rate * what.prefill_ms  # requests in their own
    slots = near_slots(what.slots - prefill, plan.middle, jnp.where(by_pool, 0.0, waiting), sigma, plan.residence_ms)
    spread = (inflow.own_prompt * params.prompt_cv) ** 2
    spread = spread + plan.output**2 * (0.5 * params.output_cv**2 + ONE_TWELFTH)
    tokens = sigma * jnp.sqrt(plan.context**2 + spread)
    line = jnp.where(by_pool, waiting, 0.0)
    room = jnp.maximum(what.room - prefill * what.prompt, what.prompt)
    memory = near_pool(room, plan.held, plan.context, line, inflow.prompt, tokens, plan.residence_ms)
    (slack,) = once(memory.slack)
    nearer = slack < slots.slack
    nearest = Chance(jnp.minimum(slack, slots.slack), jnp.where(nearer, memory.scale_ms, slots.scale_ms))
    return nearest, normal_share(-slack)
