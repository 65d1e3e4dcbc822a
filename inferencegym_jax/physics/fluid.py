"""One second of a continuous-batching engine as a fluid of requests. Symbols: docs/physics.md.

``arrivals, knobs, engine -> iteration, prompts -> admission -> flow -> first token -> Second, engine``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams, EngineState
from inferencegym_jax.physics import admission, pool
from inferencegym_jax.physics.first_token import FirstToken, first_token
from inferencegym_jax.physics.flow import Step, mean_context, mix, occupancy, passage, propagate, total
from inferencegym_jax.physics.iteration import TINY, Iterations, iteration_ms, prompt_nodes, prompts_ms
from inferencegym_jax.physics.line import SECOND_MS


class Setting(NamedTuple):
    """The engine's configuration in force; float32 unless noted."""

    slots: jax.Array  # most running requests of one GPU
    budget: jax.Array  # share of the pool up to which prompts enter
    drafts: jax.Array  # k
    tier: jax.Array  # int32
    accepted: jax.Array  # tokens that a verification yields
    gpus: jax.Array  # engines that serve
    prefill_gpu: jax.Array  # bool: a second GPU takes the prompts
    pool: jax.Array  # tokens of one GPU's pool
    span_ms: jax.Array  # time served in the second


class Inflow(NamedTuple):
    """Requests that arrive in the second."""

    count: jax.Array
    prompt: jax.Array  # mean tokens
    output: jax.Array
    cv_prompt: jax.Array  # within the second
    cv_output: jax.Array


class Served(NamedTuple):
    """What the second came to."""

    admitted: jax.Array
    completed: jax.Array
    tokens: jax.Array  # output tokens
    running: jax.Array  # mean in decode
    iteration_ms: jax.Array  # t
    slowed_ms: jax.Array  # T
    tpot_ms: jax.Array
    capacity: jax.Array  # requests a ms that could enter, were there enough
    preempted: jax.Array
    first: FirstToken
    prompt_ms: jax.Array
    output: jax.Array


def serve(
    grid: Iterations, engine: EngineState, inflow: Inflow, setting: Setting, params: EngineParams
) -> tuple[Served, EngineState]:
    """Serve one second."""
    e, span = setting.gpus, setting.span_ms
    phases = tuple(engine.phases[..., i] for i in range(engine.phases.shape[-1]))
    waiting = engine.waiting[..., 0] + engine.waiting[..., 1] + engine.waiting[..., 2]
    n0 = total(phases)
    prompt = mix(waiting, engine.waiting_prompt, inflow.count, inflow.prompt)
    output = mix(waiting, engine.waiting_output, inflow.count, inflow.output)
    own_prompt = jnp.where(n0 > TINY, engine.prompt, prompt)
    own_output = jnp.where(n0 > TINY, engine.output, output)
    line = waiting + inflow.count
    width = setting.drafts + 1.0
    nodes = prompt_nodes(prompt, inflow.cv_prompt)
    per_gpu = n0 / e
    context = jnp.clip(engine.held / jnp.maximum(n0, TINY), 0.5 * own_prompt, own_prompt + own_output)
    context = jnp.where(n0 > 0.01, context, own_prompt)
    beside = jnp.minimum(per_gpu * width, params.token_budget - 1.0)
    prompts = prompts_ms(grid, nodes, beside, params.token_budget, params.prefix_share, setting.tier)
    p = jnp.where(setting.prefill_gpu, 0.0, prompts.mean_ms)
    passes = passage(own_output, inflow.cv_output)
    served = jnp.minimum(params.token_budget / jnp.maximum(n0 / e * width, 1.0), 1.0)
    tokens = setting.accepted * served
    passing = passes.phases_a_token * tokens
    mean = mean_context(
        own_prompt, own_output, inflow.cv_prompt, inflow.cv_output, params.length_correlation
    )
    freed = (own_prompt + own_output) / mean  # of a completion, over the mean of the running
    room = e * pool.watermark_room(setting.pool, setting.budget, prompt, inflow.cv_prompt, output)

    def enter(t: jax.Array, n: jax.Array, last: jax.Array, held: jax.Array, ctx: jax.Array):
        per_prompt = t * prompts.tokens / prompts.chunk
        further = prompts.tokens / prompts.chunk
        what = admission.Engine(
            gpus=e,
            slots=e * setting.slots,
            room=room,
            iteration=t,
            prompt_ms=p,
            prefill_ms=t * (1.0 + jnp.floor(further)) + prompts.mean_ms,
            least_ms=prompts.mean_ms + jnp.where(setting.prefill_gpu, 0.0, per_prompt),
            prompt=prompt,
            passing=passing,
            tokens=tokens,
        )
        bounds = admission.limits(what, line, n, last, held, freed * ctx, span)
        return what, bounds

    def move(t: jax.Array, a: jax.Array, what: admission.Engine) -> tuple[Step, jax.Array]:
        slow = admission.slowed(t, a, p, e)
        step = propagate(phases, passes.long, passing / slow, span)
        most = (what.slots - total(step.moved)) / (total(step.reach) + what.prefill_ms)
        return step, jnp.maximum(most, 0.0)

    t0 = iteration_ms(grid, per_gpu, context, setting.drafts, setting.tier, params)
    what, (by_line, by_budget, by_slots, by_memory) = enter(t0, n0, phases[-1], engine.held, context)
    a0 = jnp.maximum(jnp.minimum(jnp.minimum(by_line, by_budget), jnp.minimum(by_slots, by_memory)), 0.0)
    step, most = move(t0, a0, what)
    a1 = jnp.clip(jnp.minimum(jnp.minimum(by_line, by_budget), jnp.minimum(most, by_memory)), 0.0)
    n1 = total(step.moved) + a1 * total(step.reach)
    mid = 0.5 * (n0 + n1)
    mid_context = mix(n0, context, a1 * span, prompt + 0.5 * jnp.minimum(output, span / t0))
    t1 = iteration_ms(grid, mid / e, mid_context, setting.drafts, setting.tier, params)
    what, (by_line, by_budget, by_slots, by_memory) = enter(t1, n0, phases[-1], engine.held, context)
    _, most = move(t1, a1, what)
    a2 = jnp.minimum(jnp.minimum(by_line, by_budget), jnp.minimum(most, by_memory))
    a2 = jnp.maximum(a2, 0.0)
    step, most = move(t1, a2, what)
    a = jnp.minimum(a2, most)
    capacity = jnp.maximum(jnp.minimum(by_budget, jnp.minimum(most, by_memory)), 0.0)
    after = tuple(x + a * r for x, r in zip(step.moved, step.reach, strict=True))
    admitted = a * span
    completed, busy = occupancy(phases, after, admitted, passes.long, step.rate)
    slow = admission.slowed(t1, a, p, e)
    grown = tokens / slow * busy
    n = busy / SECOND_MS
    held = pool.held_after(engine.held, admitted * prompt, grown, completed / jnp.maximum(n, TINY), freed)
    is_full = (by_memory < by_line) & (by_memory <= jnp.minimum(by_budget, most))
    preempted = pool.preemptions(
        completed, grown, is_full, setting.pool, setting.budget, prompt, own_output, jnp.zeros_like(n)
    )
    spare = jnp.maximum(capacity * SECOND_MS - inflow.count, TINY)
    clear = 1.0 - jnp.clip(waiting / spare, 0.0, 1.0)
    first = first_token(
        prompts, t1, admitted, n / e, e, params.arrival_scv, params.path_ms, params.first_token_iterations, clear
    )
    n_after = total(after)
    result = Served(
        admitted, completed, grown, n, t1, slow, slow / tokens, capacity, preempted, first, prompts.mean_ms, own_output
    )
    return result, engine.replace(
        phases=jnp.stack(after, axis=-1),
        prompt=mix(n0, own_prompt, admitted, prompt),
        output=mix(n0, own_output, admitted, output),
        held=jnp.where(n_after > TINY, held, 0.0),
        waiting_prompt=prompt,
        waiting_output=output,
    )
