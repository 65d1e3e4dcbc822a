"""Open-loop dynamics: one second of a continuous-batching engine as a fluid, on the same latency table. SPEC section 9.

``arrivals, knobs, engine -> Inflow -> Outlook -> sub-steps -> Second, engine``. A request that has arrived is admitted
while a slot, the KV pool and the iterations' token budget have room; its prompt rides along with the decode iterations
(chunked prefill); it then stays for as many iterations as it has output tokens. Throughput is what was asked for.

With n running requests, t(n) ms a decode iteration (the table's, and the engine's overhead c), p ms that a prompt
adds, O output tokens and A admissions a ms:

    iteration     T = t(n) / (1 - A p)              each iteration carries A T prompts
    decode        dn/dt = A - n / (O T)             a request leaves after O iterations
    steady state  n = A O T                         Little's law; with A = n / (O T): T = t(n) + (n / O) p, as the table
    admission     A <= k / (t(n) + k p)             k = (budget - n) / prompt: prompts that an iteration has room for

The equation is solved exactly for a t(n) that is constant over a sub-step, ``SUB_STEPS`` a second. t(n) is linear
between the n at the second's start and the n foreseen at its end, so that a second costs three lookups whatever the
sub-steps. Errors against a request-by-request engine: ``docs/fidelity.md``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EngineParams, EngineState, ServeAction
from inferencegym_jax.numerics.compile_units import stage
from inferencegym_jax.physics.first_token import (
    SECOND_MS,
    TINY,
    FirstToken,
    Flow,
    Inflow,
    Outlook,
    crowding,
    decode_ms,
    first_token,
)
from inferencegym_jax.table.iterations import EngineGrid

SUB_STEPS = 2
STEP_MS = SECOND_MS / SUB_STEPS
OOM_TOLERANCE = 0.02  # growth of the running requests' mean prompt that an engine absorbs by preemption


class Second(NamedTuple):
    """What one second of serving came to; float32 unless noted."""

    tokens: jax.Array  # output tokens
    tpot_ms: jax.Array
    ttft_mean_ms: jax.Array
    ttft_p50_ms: jax.Array
    ttft_p90_ms: jax.Array
    ttft_p99_ms: jax.Array
    memory_gb: jax.Array
    oom: jax.Array  # bool


def mix(amount: jax.Array, value: jax.Array, more: jax.Array, other: jax.Array) -> jax.Array:
    """Mean of ``amount`` requests at ``value`` and ``more`` at ``other``; ``other`` where there are none."""
    total = amount + more
    return jnp.where(total > TINY, (amount * value + more * other) / jnp.maximum(total, TINY), other)


@stage
def take_in(engine: EngineState, arrivals: jax.Array, prompt: jax.Array, output: jax.Array) -> Inflow:
    """The second's arrivals (float32, evenly over it; mean prompt and output in tokens) join those that wait."""
    x, q = engine.concurrency, engine.waiting
    in_prompt = mix(q, engine.waiting_prompt, arrivals, prompt)
    in_output = jnp.maximum(mix(q, engine.waiting_output, arrivals, output), 1.0)
    empty = x <= TINY
    own_prompt = jnp.where(empty, in_prompt, engine.running_prompt)
    own_output = jnp.where(empty, in_output, jnp.maximum(engine.owed / jnp.maximum(x, TINY), 1.0))
    return Inflow(x, q, arrivals / SECOND_MS, in_prompt, in_output, own_prompt, own_output)


def foresee(
    grid: EngineGrid,
    inflow: Inflow,
    action: ServeAction,
    gain: jax.Array,
    per_iteration: jax.Array,
    memory_limit_gb: jax.Array,
    params: EngineParams,
) -> Outlook:
    """Look the table up where the second starts and where it will end.

    Args:
        grid: the table, taken apart.
        inflow: who waits, arrives and runs.
        action: knobs in force.
        gain: tokens a verification yields over what the table assumes.
        per_iteration: tokens that one iteration yields for each request; 1 without drafts.
        memory_limit_gb: what the GPU has.
        params: the engine.
    """
    x, slots = inflow.running, action.batch_size.astype(jnp.float32)

    def context(prompt: jax.Array, output: jax.Array) -> jax.Array:
        # the table's decode attention reads prompt + O / 2 tokens of its own O
        return prompt + 0.5 * (output - grid.table.output_length)

    def token_ms(table_ms: jax.Array) -> jax.Array:
        return table_ms / gain + params.overhead_ms / per_iteration

    table_ms, memory = grid.look_up(grid.running, action, x, context(inflow.own_prompt, inflow.own_output))
    prefill, request_gb = grid.look_up(grid.joining, action, x, inflow.prompt)
    longer = 0.5 * (inflow.output - grid.table.output_length)
    request_gb = jnp.maximum(request_gb + action.kv_budget * grid.token_gb * longer, TINY)

    def plan() -> tuple[jax.Array, ...]:
        begin = token_ms(table_ms)
        stall = jnp.where(action.prefill_disagg, 0.0, prefill)
        pool = x + (memory_limit_gb - memory) / request_gb
        cap = jnp.minimum(slots, jnp.maximum(pool, 1.0))
        stay = begin * inflow.own_output + stall * jnp.maximum(x, 1.0)
        present = inflow.waiting + inflow.arriving * SECOND_MS
        leaving = x * jnp.minimum(1.0, SECOND_MS / stay)
        joining = jnp.minimum(present, jnp.maximum(cap - x, 0.0) + leaving)
        output = mix(x, inflow.own_output, joining, inflow.output)
        settled = jnp.minimum(present / SECOND_MS * stay, cap)
        change = (settled - x) * (1.0 - jnp.exp(-SECOND_MS / stay))
        # n that hardly moves still needs t's slope there: one request more, of those that run
        moves = jnp.abs(change) > 0.25
        span = jnp.where(moves, change, 1.0)
        end_prompt = jnp.where(moves, mix(x, inflow.own_prompt, joining, inflow.prompt), inflow.own_prompt)
        end_output = jnp.where(moves, output, inflow.own_output)
        return begin, stall, cap, output, change, span, context(end_prompt, end_output)

    begin, stall, cap, output, change, span, end_context = stage(plan)()
    end = token_ms(grid.look_up(grid.running, action, x + span, end_context)[0])
    return Outlook(
        begin_ms=begin,
        end_ms=end,
        slope=(end - begin) / span,
        prefill_ms=prefill,
        stall_ms=stall,
        output=output,
        cap=cap,
        chunk=jnp.maximum(params.token_budget - jnp.maximum(x, x + change) * per_iteration, 1.0),
        memory_gb=memory,
        request_gb=request_gb,
        oom=(memory > memory_limit_gb * (1.0 + OOM_TOLERANCE)) & (x > TINY),
    )


def decay(u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``1 - exp(-u)`` and ``1 - (1 - exp(-u)) / u`` without cancellation, for u > 0; by series below 0.2 (to 1e-7)."""
    tail = 1.0 - u / 3.0 * (1.0 - u / 4.0 * (1.0 - u / 5.0 * (1.0 - u / 6.0)))
    small = 0.5 * u * tail
    gone = jnp.where(u < 0.2, u * (1.0 - small), 1.0 - jnp.exp(-u))
    return gone, jnp.where(u < 0.2, small, 1.0 - gone / u)


@stage
def advance(flow: Flow, inflow: Inflow, outlook: Outlook, per_iteration: jax.Array, disagg: jax.Array) -> Flow:
    """One sub-step: admit what may enter, let the running decay exponentially towards balance."""
    x, q = flow.running, flow.waiting
    t = decode_ms(outlook, inflow.running, x)
    room = outlook.chunk / inflow.prompt
    prefill_bound = jnp.where(
        disagg,
        1.0 / jnp.maximum(outlook.prefill_ms, TINY),
        room / (t * per_iteration + room * outlook.prefill_ms),
    )
    slots_bound = jnp.maximum(outlook.cap - x, 0.0) / STEP_MS + x / (t * outlook.output + outlook.stall_ms * x)
    admission = jnp.minimum(jnp.minimum(q / STEP_MS + inflow.arriving, prefill_bound), slots_bound)
    rate = (1.0 - admission * outlook.stall_ms) / (t * outlook.output)
    gone, held = decay(rate * STEP_MS)
    kept, reach = 1.0 - gone, STEP_MS * (1.0 - held)
    admission = jnp.clip(admission, 0.0, jnp.maximum((outlook.cap - x * kept) / reach, 0.0))
    after = x * kept + admission * reach
    left = jnp.maximum(q + (inflow.arriving - admission) * STEP_MS, 0.0)
    drain = jnp.maximum(jnp.maximum(admission, x * rate), TINY)
    return Flow(
        running=after,
        waiting=left,
        admitted=flow.admitted + admission * STEP_MS,
        completed=flow.completed + jnp.maximum(x * gone + admission * STEP_MS * held, 0.0),
        busy=flow.busy + 0.5 * (x + after) * STEP_MS,
        mean_wait=flow.mean_wait + 0.5 * (q + left) / drain / SUB_STEPS,
        longest_wait=jnp.maximum(flow.longest_wait, left / drain),
    )


def serve_second(
    grid: EngineGrid,
    engine: EngineState,
    action: ServeAction,
    arrivals: jax.Array,
    prompt: jax.Array,
    output: jax.Array,
    gain: jax.Array,
    per_iteration: jax.Array,
    memory_limit_gb: jax.Array,
    params: EngineParams,
) -> tuple[Second, EngineState]:
    """One second of serving for one environment; arguments as ``take_in`` and ``foresee``.

    Returns:
        What the second came to, and the engine after it (``running`` and the waiting line's cap are the caller's).
    """
    inflow = take_in(engine, arrivals, prompt, output)
    outlook = foresee(grid, inflow, action, gain, per_iteration, memory_limit_gb, params)
    zero = jnp.zeros_like(inflow.running)
    flow = Flow(inflow.running, inflow.waiting, zero, zero, zero, zero, zero)
    for _ in range(SUB_STEPS):
        flow = advance(flow, inflow, outlook, per_iteration, action.prefill_disagg)
    alone = stage(grid.stand_alone_ms)(action.quant_tier, inflow.prompt)
    first = first_token(flow, inflow, outlook, per_iteration, action.prefill_disagg, alone, params.arrival_scv)
    return settle(engine, flow, inflow, outlook, first)


@stage
def settle(
    engine: EngineState, flow: Flow, inflow: Inflow, outlook: Outlook, first: FirstToken
) -> tuple[Second, EngineState]:
    """Metrics of the second and the engine after it; where memory ran out, the running requests are lost."""
    start, oom = inflow.running, outlook.oom
    output = mix(start, inflow.own_output, flow.admitted, inflow.output)
    tokens = flow.completed * output  # tokens owed are conserved: running x mean output, before and after
    load = jnp.minimum(flow.admitted / SECOND_MS * outlook.stall_ms, 0.95)
    idle_tpot = decode_ms(outlook, start, flow.busy / SECOND_MS) / (1.0 - load)
    crowd = crowding(flow, inflow, outlook)
    second = Second(
        tokens=tokens,
        tpot_ms=jnp.where(tokens > 1.0, flow.busy / jnp.maximum(tokens, TINY), idle_tpot),
        ttft_mean_ms=flow.mean_wait + crowd.mean + first.mean,
        ttft_p50_ms=flow.mean_wait + crowd.p50 + first.p50,
        ttft_p90_ms=jnp.maximum(flow.mean_wait, 0.9 * flow.longest_wait) + crowd.p90 + first.p90,
        ttft_p99_ms=jnp.maximum(flow.mean_wait, flow.longest_wait) + crowd.p99 + first.p99,
        memory_gb=outlook.memory_gb + jnp.where(oom, 0.0, outlook.request_gb * jnp.maximum(flow.running - start, 0.0)),
        oom=oom,
    )
    return second, engine.replace(
        concurrency=jnp.where(oom, 0.0, flow.running),
        owed=jnp.where(oom, 0.0, flow.running * output),
        running_prompt=jnp.where(oom, inflow.own_prompt, mix(start, inflow.own_prompt, flow.admitted, inflow.prompt)),
        waiting=jnp.where(oom, inflow.waiting + inflow.arriving * SECOND_MS, flow.waiting),
        waiting_prompt=inflow.prompt,
        waiting_output=inflow.output,
    )
