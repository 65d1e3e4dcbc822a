"""One second of a continuous-batching engine as a fluid of requests. Symbols: docs/physics.md.

``arrivals, configuration, engine -> Inflow -> iteration, prompts -> admission, flow -> Flow -> engine``. Whole seconds
are taken in one step: iteration time and admission are solved together, twice, at the running number of the start and
at that of the middle of the second.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams, EngineState, ServeAction
from inferencegym_jax.physics import admission, pool
from inferencegym_jax.physics.chance import Chance, near_pool, near_slots, unseen
from inferencegym_jax.physics.flow import Passage, mean_context, mix, occupancy, passage, propagate, total
from inferencegym_jax.physics.iteration import (
    TINY,
    Iteration,
    Iterations,
    Prompts,
    iteration,
    over_nodes,
    prompt_nodes,
    prompts_ms,
)
from inferencegym_jax.physics.switching import DRAINED, SECOND_MS, Configuration

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
    cv_prompt: jax.Array  # within a second
    own_prompt: jax.Array  # of the running
    own_output: jax.Array
    context: jax.Array  # tokens that a running request holds
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
    phases = tuple(engine.phases[..., i] for i in range(engine.phases.shape[-1]))
    running = total(phases)
    waiting = engine.waiting[..., 0] + engine.waiting[..., 1] + engine.waiting[..., 2]
    again = total(tuple(engine.preempted[..., i] for i in range(engine.preempted.shape[-1])))
    prompt = mix(waiting, engine.waiting_prompt, arrivals.requests, arrivals.prompt)
    output = jnp.maximum(mix(waiting, engine.waiting_output, arrivals.requests, arrivals.output), 1.0)
    none = running <= TINY
    own_prompt = jnp.where(none, prompt, engine.prompt)
    own_output = jnp.where(none, output, engine.output)
    context = engine.held / jnp.maximum(running, TINY)
    context = jnp.where(running > 0.01, jnp.clip(context, 0.5 * own_prompt, own_prompt + own_output), own_prompt)
    line = waiting + arrivals.requests
    first, second = running - engine.second_running, engine.second_running
    busiest = jnp.where(running > TINY, jnp.maximum(first, second) / jnp.maximum(running, TINY), 1.0)
    width = action.spec_length.astype(jnp.float32) + 1.0
    decode = jnp.maximum(running * busiest * width, 1.0)
    served = jnp.minimum(params.token_budget / decode, 1.0)
    # the last verification of a request yields more than it still wants
    wanted = jnp.maximum(own_output - 1.0, 1.0)
    used = wanted / (wanted + OVERSHOOT * (tokens - 1.0))
    # the means of seconds carry a part of the dispersion; variances of the logarithm add up
    square, several = params.prompt_cv**2, jnp.maximum(line, 1.0)
    within = square * (1.0 - 1.0 / several) / (1.0 + square / several)
    return Inflow(
        phases=phases,
        running=running,
        waiting=waiting,
        again=again,
        line=line + again,
        prompt=jnp.where(again > TINY, mix(line, prompt, again, engine.preempted_tokens), prompt),
        output=output,
        cv_prompt=jnp.sqrt(within),
        own_prompt=own_prompt,
        own_output=own_output,
        context=context,
        busiest=busiest,
        tokens=tokens * served * used,
        beside=jnp.where(configuration.prefill_gpu, 1.0, jnp.minimum(decode, params.token_budget - 1.0)),
        pool=pool_tokens,
    )


def plan(
    inflow: Inflow,
    prompts: Prompts,
    iteration_ms: jax.Array,
    alone_ms: jax.Array,
    output: jax.Array,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
) -> tuple[admission.Engine, Passage]:
    """What the limits of admission are made of, at an iteration of this time."""
    e = configuration.gpus
    per_prompt = iteration_ms * prompts.tokens / prompts.chunk
    passes = passage(output, params.output_cv)
    room = pool.watermark_room(inflow.pool, action.kv_budget, inflow.prompt, params.prompt_cv, output)
    room = jnp.minimum(room, inflow.pool)
    chunks = over_nodes(prompts.further) + 1.0
    split = configuration.prefill_gpu
    return admission.Engine(
        gpus=e,
        slots=e * action.batch_size.astype(jnp.float32),
        room=e * room,
        iteration=iteration_ms,
        prompt_ms=jnp.where(split, 0.0, prompts.mean_ms),
        prefill_ms=jnp.where(split, alone_ms, chunks * iteration_ms + prompts.mean_ms),
        least_ms=jnp.where(split, alone_ms, prompts.mean_ms + per_prompt),
        prompt=inflow.prompt,
        passing=passes.phases_a_token * inflow.tokens,
        tokens=inflow.tokens,
    ), passes


def least(bounds: tuple[jax.Array, ...]) -> jax.Array:
    """The least of the limits, at least 0."""
    smallest = bounds[0]
    for bound in bounds[1:]:
        smallest = jnp.minimum(smallest, bound)
    return jnp.maximum(smallest, 0.0)


def near_limits(
    inflow: Inflow,
    what: admission.Engine,
    at: Iteration,
    running: jax.Array,
    waiting: jax.Array,
    by_pool: jax.Array,
    held: jax.Array,
    context: jax.Array,
    output: jax.Array,
    slowed_ms: jax.Array,
    params: EngineParams,
) -> tuple[Chance, Chance]:
    """What chance does at the slots and at the pool, all GPUs together."""
    stay = jnp.maximum(output - 1.0, 1.0) * slowed_ms / inflow.tokens
    sigma = unseen(running, params.output_cv, at.stiffness)
    slots = near_slots(what.slots, running, jnp.where(by_pool, 0.0, waiting), sigma, stay)
    by_prompt, by_output = inflow.own_prompt * params.prompt_cv, output * jnp.sqrt(0.5 * params.output_cv**2 + 0.083)
    cv = jnp.sqrt(by_prompt**2 + by_output**2) / jnp.maximum(context, 1.0)
    line = jnp.where(by_pool, waiting, 0.0)
    return slots, near_pool(what.room, held, context, cv, line, inflow.prompt, sigma, stay)


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
    span, drafts, tier = configuration.span_ms, action.spec_length.astype(jnp.float32), configuration.tier
    start, phases = inflow.running, inflow.phases
    apart = configuration.apart
    here = jnp.maximum(start - apart, 0.0)  # of the running, those on GPUs that take new requests
    held_here = engine.held * here / jnp.maximum(start, TINY)

    def look(running: jax.Array, context: jax.Array) -> Iteration:
        return iteration(grid, running * inflow.busiest, context, drafts, tier, params)

    def enter(what: admission.Engine, freed: jax.Array) -> tuple[jax.Array, ...]:
        return admission.limits(what, inflow.line, here, phases[-1], held_here, freed * inflow.context, span)

    def move(what: admission.Engine, passes: Passage, rate: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        slow = admission.slowed(what.iteration, rate, what.prompt_ms, what.gpus)
        step = propagate(phases, passes.long, what.passing / slow, span)
        free = what.slots - jnp.maximum(total(step.moved) - apart, 0.0)
        return step, jnp.maximum(free / (total(step.reach) + what.prefill_ms), 0.0), slow

    def freed_of(output: jax.Array) -> jax.Array:
        mean = mean_context(inflow.own_prompt, output, params.prompt_cv, params.output_cv, params.length_correlation)
        return (inflow.own_prompt + output) / mean

    freed = freed_of(inflow.own_output)
    what, passes = plan(
        inflow, prompts, look(start, inflow.context).ms, alone_ms, inflow.own_output, action, configuration, params
    )
    by_line, by_budget, by_slots, by_memory = enter(what, freed)
    step, most, slow = move(what, passes, least((by_line, by_budget, by_slots, by_memory)))
    guess = least((by_line, by_budget, most, by_memory))
    entering = guess * span
    end = total(step.moved) + guess * total(step.reach)
    middle = 0.5 * (start + end)
    # half of the second's change of the tokens held
    grown = start * inflow.tokens * span / slow
    gone = jnp.maximum(start + entering - end, 0.0) * freed * inflow.context
    held = engine.held + 0.5 * (entering * inflow.prompt + grown - gone)
    context = jnp.clip(held / jnp.maximum(middle, TINY), 0.5 * inflow.context, 2.0 * inflow.context)
    context = jnp.where(start > 1.0, context, inflow.prompt + 0.5 * jnp.minimum(inflow.output, span / slow))
    # outputs are mixed by what the running still have to get, so that tokens owed are conserved
    owing = sum(phases[i] * float(len(phases) - i) for i in range(len(phases))) / (3.0 * passes.long + 1.0)
    output = mix(owing, inflow.own_output, entering, inflow.output)

    at_middle = look(middle, context)
    waiting = jnp.maximum(0.5 * (inflow.waiting + inflow.line - entering), 0.0)
    by_pool = by_memory <= most
    chance = near_limits(inflow, what, at_middle, middle, waiting, by_pool, held, context, output, slow, params)
    share = pool.preempted_share(inflow.pool, action.kv_budget, inflow.own_prompt, output, chance[1].full)
    recomputed = share * jnp.maximum(start + entering - end, 0.0) / jnp.maximum(span, TINY)
    slower = 1.0 / jnp.maximum(1.0 - recomputed * what.prompt_ms / what.gpus, 0.5)
    what, passes = plan(inflow, prompts, at_middle.ms, alone_ms, output, action, configuration, params)
    what = what._replace(iteration=what.iteration * slower, prompt_ms=what.prompt_ms * slower)
    by_line, by_budget, by_slots, by_memory = enter(what, freed)
    _, most, _ = move(what, passes, guess)
    rate = least((by_line, by_budget, most, by_memory))
    step, most, slow = move(what, passes, rate)
    rate = jnp.minimum(rate, most)
    admitted = rate * span
    again = jnp.minimum(inflow.again, admitted)
    new = admitted - again
    back = again / jnp.maximum(inflow.again, TINY)
    ends = [x + new / jnp.maximum(span, TINY) * r for x, r in zip(step.moved, step.reach, strict=True)]
    completed, busy = occupancy(phases, tuple(ends), new, passes.long, step.rate)
    ends = [x + back * engine.preempted[..., i] for i, x in enumerate(ends)]
    grown = inflow.tokens / slow * busy
    running = busy / SECOND_MS
    held = pool.held_after(engine.held, admitted * inflow.prompt, grown, completed / jnp.maximum(running, TINY), freed)
    pools = jnp.maximum(configuration.gpus, 1.0 + (apart > DRAINED))
    return Flow(
        phases=tuple(ends),
        admitted=admitted,
        again=again,
        completed=completed,
        grown=grown,
        running=running,
        busy_ms=busy,
        iteration_ms=at_middle.ms,
        slowed_ms=slow,
        stiffness=at_middle.stiffness,
        capacity=least((by_budget, most, by_memory)),
        output=output,
        held=jnp.where(total(tuple(ends)) > TINY, jnp.minimum(held, pools * inflow.pool), 0.0),
        preempted=share * completed,
        chance=jax.tree.map(functools.partial(jnp.where, chance[1].slack < chance[0].slack), chance[1], chance[0]),
    )


def prompts_of(
    grid: Iterations, inflow: Inflow, configuration: Configuration, params: EngineParams
) -> tuple[Prompts, tuple[jax.Array, ...]]:
    """What the prompts that may enter add, and the ms that each would take alone, at the three nodes."""
    nodes = prompt_nodes(inflow.prompt, inflow.cv_prompt)
    prompts = prompts_ms(grid, nodes, inflow.beside, params.token_budget, params.prefix_share, configuration.tier)
    one = jnp.ones_like(inflow.prompt)
    empty = params.overhead_ms + grid.products_ms(one, configuration.tier) + grid.head_ms(one)
    alone = tuple(p + (f + 1.0) * empty for p, f in zip(prompts.added_ms, prompts.further, strict=True))
    return prompts, alone
