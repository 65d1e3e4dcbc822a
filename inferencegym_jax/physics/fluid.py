"""One second of a continuous-batching engine as a fluid of requests. Symbols: docs/physics.md.

``arrivals, configuration, engine -> Inflow -> iteration, prompts -> admission, flow -> Flow -> engine``. Whole seconds
are taken in one step: iteration time and admission are solved together, twice, at the running number of the start and
at that of the middle of the second.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams, EngineState, ServeAction
from inferencegym_jax.physics import admission, pool
from inferencegym_jax.physics.flow import Passage, mean_context, mix, occupancy, passage, propagate, total
from inferencegym_jax.physics.iteration import (
    TINY,
    Iterations,
    Prompts,
    iteration_ms,
    over_nodes,
    prompt_nodes,
    prompts_ms,
)
from inferencegym_jax.physics.switching import SECOND_MS, Configuration


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
    capacity: jax.Array  # requests a ms that could have entered, were there enough
    output: jax.Array  # mean output of all that run
    held: jax.Array  # tokens in the pools at the end
    preempted: jax.Array


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
    within = jnp.sqrt(1.0 - 1.0 / jnp.maximum(line, 1.0))
    return Inflow(
        phases=phases,
        running=running,
        waiting=waiting,
        again=again,
        line=line + again,
        prompt=mix(line, prompt, again, engine.preempted_tokens),
        output=output,
        cv_prompt=params.prompt_cv * within,
        own_prompt=own_prompt,
        own_output=own_output,
        context=context,
        busiest=busiest,
        tokens=tokens * served,
        beside=jnp.where(configuration.prefill_gpu, 1.0, jnp.minimum(decode, params.token_budget - 1.0)),
        pool=pool_tokens,
    )


def plan(
    inflow: Inflow,
    prompts: Prompts,
    iteration: jax.Array,
    alone_ms: jax.Array,
    output: jax.Array,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
) -> tuple[admission.Engine, Passage]:
    """What the limits of admission are made of, at an iteration of this time."""
    e = configuration.gpus
    per_prompt = iteration * prompts.tokens / prompts.chunk
    passes = passage(output, params.output_cv)
    room = pool.watermark_room(inflow.pool, action.kv_budget, inflow.prompt, params.prompt_cv, output)
    room = jnp.minimum(room, inflow.pool)
    chunks = over_nodes(prompts.further) + 1.0
    split = configuration.prefill_gpu
    return admission.Engine(
        gpus=e,
        slots=e * action.batch_size.astype(jnp.float32),
        room=e * room,
        iteration=iteration,
        prompt_ms=jnp.where(split, 0.0, prompts.mean_ms),
        prefill_ms=jnp.where(split, alone_ms, chunks * iteration + prompts.mean_ms),
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

    def look(running: jax.Array, context: jax.Array) -> jax.Array:
        return iteration_ms(grid, running * inflow.busiest, context, drafts, tier, params)

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
        inflow, prompts, look(start, inflow.context), alone_ms, inflow.own_output, action, configuration, params
    )
    by_line, by_budget, by_slots, by_memory = enter(what, freed)
    step, most, _ = move(what, passes, least((by_line, by_budget, by_slots, by_memory)))
    guess = least((by_line, by_budget, most, by_memory))
    middle = 0.5 * (start + total(step.moved) + guess * total(step.reach))
    young = inflow.prompt + 0.5 * jnp.minimum(inflow.output, span / what.iteration)
    context = mix(start, inflow.context, guess * span, young)
    # outputs are mixed by what the running still have to get, so that tokens owed are conserved
    owing = sum(phases[i] * float(len(phases) - i) for i in range(len(phases))) / (3.0 * passes.long + 1.0)
    output = mix(owing, inflow.own_output, guess * span, inflow.output)

    what, passes = plan(inflow, prompts, look(middle, context), alone_ms, output, action, configuration, params)
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
    is_full = (by_memory < by_line) & (by_memory <= jnp.minimum(by_budget, most))
    preempted = pool.preemptions(
        completed,
        grown,
        is_full,
        inflow.pool,
        action.kv_budget,
        inflow.own_prompt,
        inflow.own_output,
        jnp.zeros_like(running),
    )
    return Flow(
        phases=tuple(ends),
        admitted=admitted,
        again=again,
        completed=completed,
        grown=grown,
        running=running,
        busy_ms=busy,
        iteration_ms=what.iteration,
        slowed_ms=slow,
        capacity=least((by_budget, most, by_memory)),
        output=output,
        held=jnp.where(total(tuple(ends)) > TINY, jnp.minimum(held, 2.0 * inflow.pool), 0.0),
        preempted=preempted,
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
