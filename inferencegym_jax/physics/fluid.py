"""One second of a continuous-batching engine as a fluid of requests. Symbols: docs/physics.md.

``Inflow -> iteration, prompts -> SecondPlan, Solution -> Flow``. Whole seconds are taken in one step: iteration time
and admission are solved together, twice, at the running number of the start and at that of the middle of the second.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams, EngineState, ServeAction
from inferencegym_jax.numerics.compile_units import compile_unit, once
from inferencegym_jax.physics import admission, pool
from inferencegym_jax.physics.chance import Chance
from inferencegym_jax.physics.flow import mean_context, occupancy, propagate, share_of_long
from inferencegym_jax.physics.inflow import Inflow, waiting_again
from inferencegym_jax.physics.iteration import (
    TINY,
    Apart,
    Prompts,
    iteration,
    over_nodes,
    prompt_nodes,
    prompts_ms,
    rough_iteration_ms,
)
from inferencegym_jax.physics.kernels import Iterations
from inferencegym_jax.physics.shared_iterations import shared_prompts
from inferencegym_jax.physics.solution import SecondPlan, Solution, limits_of, plan_second, rate_at_start, solve
from inferencegym_jax.physics.switching import SECOND_MS, Configuration


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
def finish(
    engine: EngineState,
    inflow: Inflow,
    demand: admission.Demand,
    plan: SecondPlan,
    solution: Solution,
    long: jax.Array,
    configuration: Configuration,
) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
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
    held = jnp.where(inflow.running + admitted > TINY, jnp.minimum(held, configuration.pools * inflow.pool), 0.0)
    return phases, admitted, again, completed, grown, busy, held


def flow(
    grid: Iterations,
    engine: EngineState,
    inflow: Inflow,
    prompts: Prompts,
    apart: Apart,
    action: ServeAction,
    configuration: Configuration,
    params: EngineParams,
    is_log: jax.Array | None = None,
) -> Flow:
    """Admit, run and let go for one second.

    Args:
        grid: the profile's lookups.
        engine: at the start.
        inflow: who may enter and who runs.
        prompts: what prompts add to the iterations.
        apart: what they take on a GPU of their own.
        action: knobs in force.
        configuration: GPUs that serve.
        params: the engine.
        is_log: see ``serving.serve_configured``.
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

    def shared(rate: jax.Array, iteration_ms: jax.Array) -> Prompts:
        return shared_prompts(
            grid, inflow, prompts, rate, iteration_ms, params.token_budget, params.prefix_share, configuration, is_log
        )

    at_start = prompts
    if is_log is not None:
        what = limits_of(inflow, prompts, begin, apart, inflow.own_output, long, action, configuration, params)
        at_start = shared(rate_at_start(inflow, what, demand)[1], begin)
    plan = plan_second(inflow, at_start, begin, apart, demand, long, action, configuration, params)
    slots = action.batch_size.astype(jnp.float32)
    at = iteration(grid, plan.middle * inflow.busiest, slots, plan.context, drafts, tier, params)
    at_middle = shared(plan.entering * demand.inverse_ms, at.ms)
    solution = solve(inflow, at_middle, at, apart, demand, plan, long, action, configuration, params)
    phases, admitted, again, completed, grown, busy, held = finish(
        engine, inflow, demand, plan, solution, long, configuration
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
        output=plan.output,
        held=held,
        preempted=solution.preempted * completed,
        chance=solution.chance,
    )


def prompts_of(
    grid: Iterations, inflow: Inflow, configuration: Configuration, params: EngineParams
) -> tuple[Prompts, Apart]:
    """What the prompts that may enter add, and what each would take on a GPU of its own."""
    nodes = prompt_nodes(inflow.prompt, inflow.square_cv)
    prompts = prompts_ms(grid, nodes, inflow.beside, params.token_budget, params.prefix_share, configuration.tier)
    empty = params.overhead_ms + grid.empty_ms(configuration.tier)
    unloaded_ms = tuple(p + (f + 1.0) * empty for p, f in zip(prompts.added_ms, prompts.further, strict=True))
    a_token = jnp.float32(grid.profile.kv_bytes_per_token / 1e6) / params.link_gb_s  # ms
    link = tuple(tokens * a_token for tokens in nodes)
    return prompts, Apart(unloaded_ms, link, over_nodes(unloaded_ms), over_nodes(link))
