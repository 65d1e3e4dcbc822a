"""One second of a continuous-batching engine as a fluid of requests. Symbols: docs/physics.md.

``arrivals, configuration, engine -> Inflow -> iteration, prompts -> admission, flow -> Flow -> engine``. Whole seconds
are taken in one step: iteration time and admission are solved together, twice, at the running number of the start and
at that of the middle of the second.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import PHASES, EngineParams, EngineState, ServeAction
from inferencegym_jax.numerics.compile_units import compile_unit, once
from inferencegym_jax.physics import admission, pool
from inferencegym_jax.physics.chance import Chance, near_pool, near_slots, normal_share, unseen
from inferencegym_jax.physics.flow import (
    mean_context,
    mix,
    occupancy,
    phases_a_token,
    propagate,
    remainder,
    share_of_long,
    total,
)
from inferencegym_jax.physics.iteration import (
    TINY,
    Iteration,
    Iterations,
    Prompts,
    iteration,
    over_nodes,
    prompt_nodes,
    prompts_ms,
    rough_iteration_ms,
)
from inferencegym_jax.physics.switching import DRAINED, SECOND_MS, Configuration

ONE_TWELFTH = 1.0 / 12.0  # variance of an even spread over 1
OVERSHOOT = 0.65  # tokens, for each above one that a verification yields: E[X^2] / (2 E[X]) - 1/2 of a cut geometric X


class Arrivals(NamedTuple):
    """Requests that come in the second, evenly over it; float32."""

    requests: jax.Array
    prompt: jax.Array  # mean tokens
    output: jax.Array  # mean tokens


class Inflow(NamedTuple):
    """Who may enter and who runs at the start; requests, tokens."""

    phases: tuple[jax.Array, ...]
    running: jax.Array
    waiting: jax.Array
    again: jax.Array  # preempted requests that wait to be recomputed
    line: jax.Array  # all that wait or arrive
    prompt: jax.Array  # mean prompt of those that may enter
    output: jax.Array  # mean output of those that wait or arrive
    square_cv: jax.Array  # squared coefficient of variation of prompts within the second
    own_prompt: jax.Array  # of the running
    own_output: jax.Array
    context: jax.Array  # tokens that a running request holds
    held: jax.Array  # tokens in the pools
    here: jax.Array  # of the running, those on GPUs that take new requests
    busiest: jax.Array  # share of the running on the GPU that has most
    tokens: jax.Array  # that an iteration yields a request
    beside: jax.Array  # decode tokens of an iteration on one GPU
    pool: jax.Array  # tokens of one GPU's pool


class Flow(NamedTuple):
    """What the second came to; requests, tokens, ms."""

    phases: tuple[jax.Array, ...]
    admitted: jax.Array  # recomputed ones among them
    again: jax.Array  # of the admitted, those that are recomputed
    completed: jax.Array
    grown: jax.Array  # tokens decoded
    running: jax.Array  # mean number
    busy_ms: jax.Array  # request-ms of the running
    iteration_ms: jax.Array  # t
    slowed_ms: jax.Array  # T
    stiffness: jax.Array  # g: how much of a change of n the iteration takes on, d ln t / d ln n
    capacity: jax.Array  # requests a ms that could have entered, were there enough
    output: jax.Array  # mean output of all that run
    held: jax.Array  # tokens in the pools at the end
    preempted: jax.Array
    chance: Chance


@compile_unit
def take_in(
    engine: EngineState,
    arrivals: Arrivals,
    action: ServeAction,
    tokens: jax.Array,
    pool_tokens: jax.Array,
    configuration: Configuration,
    params: EngineParams,
) -> Inflow:
    """The second's arrivals join those that wait; what is to be recomputed goes first.

    Args:
        engine: at the start of the second.
        arrivals: of the second.
        action: knobs in force.
        tokens: AL, tokens of a verification; 1 without drafts.
        pool_tokens: of one GPU.
        configuration: GPUs that serve.
        params: the engine.
    """
    phases = once(*(jnp.where(configuration.stopped, 0.0, engine.phases[..., i]) for i in range(PHASES)))
    waiting = engine.waiting[..., 0] + engine.waiting[..., 1] + engine.waiting[..., 2]
    running, waiting, again = once(total(phases), waiting, total(waiting_again(engine, configuration.stopped)))
    some = waiting + arrivals.requests
    share, inverse = once(
        jnp.where(some > TINY, waiting / jnp.maximum(some, TINY), 0.0), 1.0 / jnp.maximum(running, TINY)
    )
    prompt = arrivals.prompt + share * (engine.waiting_prompt - arrivals.prompt)
    output = jnp.maximum(arrivals.output + share * (engine.waiting_output - arrivals.output), 1.0)
    none = running <= TINY
    own_prompt = jnp.where(none, prompt, engine.prompt)
    own_output = jnp.where(none, output, engine.output)
    prompt, output, own_prompt, own_output = once(prompt, output, own_prompt, own_output)
    held = jnp.where(configuration.stopped, 0.0, engine.held)
    context = jnp.where(running > 0.01, jnp.clip(held * inverse, 0.5 * own_prompt, own_prompt + own_output), own_prompt)
    second = configuration.second_running
    busiest = jnp.where(none, 1.0, jnp.maximum(running - second, second) * inverse)
    width = action.spec_length.astype(jnp.float32) + 1.0
    (decode,) = once(jnp.maximum(running * busiest * width, 1.0))
    served = jnp.minimum(params.token_budget / decode, 1.0)
    # the last verification of a request yields more than it still wants
    wanted = jnp.maximum(own_output - 1.0, 1.0)
    used = wanted / (wanted + OVERSHOOT * (tokens - 1.0))
    # the means of seconds carry a part of the dispersion; variances of the logarithm add up
    square, several = params.prompt_cv**2, jnp.maximum(some, 1.0)
    within = square * (several - 1.0) / (several + square)
    longer = (some * prompt + again * engine.preempted_tokens) / jnp.maximum(some + again, TINY)
    return Inflow(
        phases=phases,
        running=running,
        waiting=waiting,
        again=again,
        line=some + again,
        prompt=jnp.where(again > TINY, longer, prompt),
        output=output,
        square_cv=within,
        own_prompt=own_prompt,
        own_output=own_output,
        context=context,
        held=held,
        here=jnp.maximum(running - configuration.apart, 0.0),
        busiest=busiest,
        tokens=tokens * served * used,
        beside=jnp.where(configuration.prefill_gpu, 1.0, jnp.minimum(decode, params.token_budget - 1.0)),
        pool=pool_tokens,
    )


def waiting_again(engine: EngineState, stopped: jax.Array) -> tuple[jax.Array, ...]:
    """Requests to recompute, by the phase they were in: those of before, and all that ran where the engine stops."""
    return tuple(engine.preempted[..., i] + jnp.where(stopped, engine.phases[..., i], 0.0) for i in range(PHASES))


class Solution(NamedTuple):
    """How the second is served."""

    rate: jax.Array  # requests admitted a ms
    most: jax.Array  # the most that could have been
    pace: jax.Array  # iterations a ms
    passing: jax.Array  # phases that a running request passes a ms
    preempted: jax.Array  # requests for each that finishes
    chance: Chance


class Outlook(NamedTuple):
    """Where a first, rough solution sees the second go; requests, tokens, ms."""

    entering: jax.Array  # requests
    gone: jax.Array  # requests that finish
    most: jax.Array  # requests a ms for which there are slots
    middle: jax.Array  # running in the middle of the second
    context: jax.Array  # tokens that each holds there
    held: jax.Array  # tokens in the pools there
    output: jax.Array  # mean output of all that run
    stay_ms: jax.Array  # from a request's first to its last token


def limits_of(
    inflow: Inflow,
    prompts: Prompts,
    iteration_ms: jax.Array,
    alone_ms: jax.Array,
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
    return admission.Engine(
        gpus=e,
        slots=e * action.batch_size.astype(jnp.float32),
        room=e * jnp.minimum(room, inflow.pool),
        pace=1.0 / iteration_ms,
        share_ms=jnp.where(split, 0.0, prompts.mean_ms / e),
        prefill_ms=jnp.where(split, alone_ms, chunks * iteration_ms + prompts.mean_ms),
        least_ms=jnp.where(split, alone_ms, prompts.mean_ms + iteration_ms * prompts.iterations),
        prompt=inflow.prompt,
        passing=phases_a_token(output, long) * inflow.tokens,
        tokens=inflow.tokens,
    )


@compile_unit
def look_ahead(
    inflow: Inflow,
    prompts: Prompts,
    begin_ms: jax.Array,
    alone_ms: jax.Array,
    demand: admission.Demand,
    long: jax.Array,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
) -> Outlook:
    """A first solution at the iteration time of the second's start: who enters, who is gone, and the middle."""
    span = configuration.span_ms
    what = limits_of(inflow, prompts, begin_ms, alone_ms, inflow.own_output, long, action, configuration, params)
    others = jnp.minimum(
        jnp.minimum(inflow.line * demand.inverse_ms, admission.by_budget(what)), admission.by_memory(what, demand)
    )
    first = jnp.maximum(jnp.minimum(others, admission.by_slots(what, demand)), 0.0)
    others, pace = once(others, admission.pace_of(what, first))
    kept, reach = remainder(inflow.phases, long, what.passing * pace, span)
    most = most_admitted(what, kept, reach, configuration)
    most, rate = once(most, jnp.maximum(jnp.minimum(others, most), 0.0))
    entering, end = rate * span, kept + rate * reach
    middle, gone = once(0.5 * (inflow.running + end), jnp.maximum(inflow.running + entering - end, 0.0))
    # half of the second's change of the tokens held
    grown = inflow.running * inflow.tokens * span * pace
    held = inflow.held + 0.5 * (entering * inflow.prompt + grown - gone * demand.freed)
    context = jnp.clip(held / jnp.maximum(middle, TINY), 0.5 * inflow.context, 2.0 * inflow.context)
    context = jnp.where(inflow.running > 1.0, context, inflow.prompt + 0.5 * jnp.minimum(inflow.output, span * pace))
    # outputs are mixed by what the running still have to get, so that tokens owed are conserved
    owing = sum(x * float(PHASES - i) for i, x in enumerate(inflow.phases)) * (1.0 / (3.0 * long + 1.0))
    output = mix(owing, inflow.own_output, entering, inflow.output)
    stay = jnp.maximum(output - 1.0, 1.0) / (pace * inflow.tokens)
    return Outlook(entering, gone, most, middle, context, held, output, stay)


def most_admitted(what: admission.Engine, kept: jax.Array, reach: jax.Array, configuration: Configuration) -> jax.Array:
    """Admissions a ms with which the slots are taken at the second's end."""
    free = what.slots - jnp.maximum(kept - configuration.apart, 0.0)
    return jnp.maximum(free / (reach + what.prefill_ms), 0.0)


@compile_unit
def solve(
    inflow: Inflow,
    prompts: Prompts,
    at: Iteration,
    alone_ms: jax.Array,
    demand: admission.Demand,
    outlook: Outlook,
    long: jax.Array,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
) -> Solution:
    """The second's solution at the iteration time of its middle."""
    what = limits_of(inflow, prompts, at.ms, alone_ms, outlook.output, long, action, configuration, params)
    memory, budget = once(admission.by_memory(what, demand), admission.by_budget(what))
    chance, full = near_limits(inflow, what, outlook, at.stiffness, memory <= outlook.most, params)
    share = pool.preempted_share(inflow.pool, action.kv_budget, inflow.own_prompt, outlook.output, full)
    again = share * outlook.gone * demand.inverse_ms * what.share_ms  # of the time, by what is recomputed
    share, left = once(share, jnp.maximum(1.0 - again, 0.5))
    others = jnp.minimum(budget, memory) * left
    wanted, others = once(jnp.minimum(inflow.line * demand.inverse_ms, others), others)
    likely = jnp.maximum(jnp.minimum(wanted, outlook.most), 0.0)
    (pace,) = once(what.pace * jnp.maximum(left - likely * what.share_ms, 1.0 - admission.BUSIEST))
    passing = what.passing * pace
    kept, reach = remainder(inflow.phases, long, passing, configuration.span_ms)
    (most,) = once(jnp.maximum(jnp.minimum(others, most_admitted(what, kept, reach, configuration)), 0.0))
    return Solution(jnp.clip(wanted, 0.0, most), most, pace, passing, share, chance)


def near_limits(
    inflow: Inflow,
    what: admission.Engine,
    outlook: Outlook,
    stiffness: jax.Array,
    by_pool: jax.Array,
    params: EngineParams,
) -> tuple[Chance, jax.Array]:
    """What chance does at the nearer of slots and pool, all GPUs together, and the probability of a full pool."""
    waiting = jnp.maximum(0.5 * (inflow.waiting + inflow.line - outlook.entering), 0.0)
    (sigma,) = once(unseen(outlook.middle, params.output_cv, stiffness))
    slots = near_slots(what.slots, outlook.middle, jnp.where(by_pool, 0.0, waiting), sigma, outlook.stay_ms)
    spread = (inflow.own_prompt * params.prompt_cv) ** 2
    spread = spread + outlook.output**2 * (0.5 * params.output_cv**2 + ONE_TWELFTH)
    tokens = sigma * jnp.sqrt(outlook.context**2 + spread)
    line = jnp.where(by_pool, waiting, 0.0)
    memory = near_pool(what.room, outlook.held, outlook.context, line, inflow.prompt, tokens, outlook.stay_ms)
    (slack,) = once(memory.slack)
    nearer = slack < slots.slack
    nearest = Chance(jnp.minimum(slack, slots.slack), jnp.where(nearer, memory.scale_ms, slots.scale_ms))
    return nearest, normal_share(-slack)


@compile_unit
def finish(
    engine: EngineState,
    inflow: Inflow,
    demand: admission.Demand,
    outlook: Outlook,
    solution: Solution,
    long: jax.Array,
    configuration: Configuration,
) -> tuple[jax.Array, ...]:
    """Carry the solution out.

    Returns:
        (requests in each phase, admitted, of them recomputed, completed, tokens decoded, request-ms, tokens held).
    """
    rate, pace, passing = solution.rate, solution.pace, solution.passing
    span = configuration.span_ms
    admitted = rate * span
    again = jnp.minimum(inflow.again, admitted)
    new = admitted - again
    step = propagate(inflow.phases, long, passing, span)
    ends = once(*(x + new * demand.inverse_ms * r for x, r in zip(step.moved, step.reach, strict=True)))
    completed, busy = once(*occupancy(inflow.phases, ends, new, long, passing))
    back = again / jnp.maximum(inflow.again, TINY)
    waited = waiting_again(engine, configuration.stopped)
    phases = tuple(x + back * y for x, y in zip(ends, waited, strict=True))
    grown = inflow.tokens * pace * busy
    freed = demand.freed / inflow.context * SECOND_MS / jnp.maximum(busy, TINY)
    held = pool.held_after(inflow.held, admitted * inflow.prompt + grown, completed * freed)
    pools = jnp.maximum(configuration.gpus, 1.0 + (configuration.apart > DRAINED))
    held = jnp.where(inflow.running + admitted > TINY, jnp.minimum(held, pools * inflow.pool), 0.0)
    return phases, admitted, again, completed, grown, busy, held


def flow(
    grid: Iterations,
    engine: EngineState,
    inflow: Inflow,
    prompts: Prompts,
    alone_ms: jax.Array,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
) -> Flow:
    """Admit, run and let go for one second.

    Args:
        grid: the profile's lookups.
        engine: at the start.
        inflow: who may enter and who runs.
        prompts: what prompts add to the iterations.
        alone_ms: ms of a prompt on a GPU of its own.
        action: knobs in force.
        configuration: GPUs that serve.
        params: the engine.
    """
    drafts, tier = action.spec_length.astype(jnp.float32), configuration.tier
    long = share_of_long(params.output_cv)
    mean = mean_context(
        inflow.own_prompt, inflow.own_output, params.prompt_cv, params.output_cv, params.length_correlation
    )
    held, freed, inverse = once(
        inflow.held * inflow.here / jnp.maximum(inflow.running, TINY),
        (inflow.own_prompt + inflow.own_output) / mean * inflow.context,
        1.0 / jnp.maximum(configuration.span_ms, TINY),
    )
    demand = admission.Demand(inflow.line, inflow.here, inflow.phases[-1], held, freed, inverse)
    begin = rough_iteration_ms(grid, inflow.running * inflow.busiest, inflow.context, drafts, tier, params)
    outlook = look_ahead(inflow, prompts, begin, alone_ms, demand, long, action, configuration, params)
    at = iteration(grid, outlook.middle * inflow.busiest, outlook.context, drafts, tier, params)
    solution = solve(inflow, prompts, at, alone_ms, demand, outlook, long, action, configuration, params)
    phases, admitted, again, completed, grown, busy, held = finish(
        engine, inflow, demand, outlook, solution, long, configuration
    )
    return Flow(
        phases=phases,
        admitted=admitted,
        again=again,
        completed=completed,
        grown=grown,
        running=busy * jnp.float32(1.0 / SECOND_MS),
        busy_ms=busy,
        iteration_ms=at.ms,
        slowed_ms=1.0 / solution.pace,
        stiffness=at.stiffness,
        capacity=solution.most,
        output=outlook.output,
        held=held,
        preempted=solution.preempted * completed,
        chance=solution.chance,
    )


def prompts_of(
    grid: Iterations, inflow: Inflow, configuration: Configuration, params: EngineParams
) -> tuple[Prompts, tuple[jax.Array, ...]]:
    """What the prompts that may enter add, and the ms that each would take alone, at the three nodes."""
    nodes = prompt_nodes(inflow.prompt, inflow.square_cv)
    prompts = prompts_ms(grid, nodes, inflow.beside, params.token_budget, params.prefix_share, configuration.tier)
    empty = params.overhead_ms + grid.empty_ms(configuration.tier)
    alone = tuple(p + (f + 1.0) * empty for p, f in zip(prompts.added_ms, prompts.further, strict=True))
    return prompts, alone
