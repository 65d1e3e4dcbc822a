"""Open-loop dynamics: one second of a continuous-batching engine as a fluid, on the same latency table. SPEC section 9.

``arrivals, knobs, engine state -> admissions, completions, tokens, TTFT -> engine state``. A request that has arrived is
admitted while a slot, the KV pool and the iterations' token budget have room; its prompt rides along with the decode
iterations (chunked prefill); it then stays for as many iterations as it has output tokens. Throughput is what was asked for.

With n running requests, t(n) ms a decode iteration (table, plus the engine's overhead c), p ms that a prompt adds, O output
tokens and A admissions a ms:

    iteration    T = t(n) / (1 - A p)                 each iteration carries A T prompts
    decode       dn/dt = A - n / (O T)                each request leaves after O iterations
    steady state n = A O T                            Little's law; with A = n / (O T): T = t(n) + (n / O) p, the table's TPOT
    admission    A <= k / (t(n) + k p),  k = (budget - n) / prompt      prompts that one iteration has room for

The equation is solved exactly for a t(n) that is constant over a sub-step, ``SUB_STEPS`` a second; t(n) is linear between
the n at the second's start and the n foreseen at its end, so that a second costs two lookups.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.engine_grid import EngineGrid
from inferencegym_jax.engine_models import EngineParams, EngineState
from inferencegym_jax.models import ServeAction

SUB_STEPS = 4
SECOND_MS = 1000.0
OOM_TOLERANCE = 0.02  # drift of the running prompts' mean that an engine absorbs by preemption
TINY = 1e-6


class Second(NamedTuple):
    """What one second of serving came to; float32 unless noted."""

    admitted: jax.Array  # requests, a real number
    completed: jax.Array  # requests, a real number
    tokens: jax.Array  # output tokens
    tpot_ms: jax.Array
    iteration_ms: jax.Array
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


def serve_second(
    grid: EngineGrid,
    engine: EngineState,
    action: ServeAction,
    arrivals: jax.Array,
    prompt: jax.Array,
    output: jax.Array,
    gain: jax.Array,
    tokens_an_iteration: jax.Array,
    memory_limit_gb: jax.Array,
    params: EngineParams,
) -> tuple[Second, EngineState]:
    """One second of serving for one environment.

    Args:
        grid: the table, taken apart.
        engine: before the second; of its counts only the real numbers are read.
        action: knobs in force, as arrays.
        arrivals: float32, requests that arrive, evenly over the second.
        prompt: float32, their mean prompt, tokens.
        output: float32, their mean output, tokens, at least 1.
        gain: float32, tokens a verification yields over what the table assumes.
        tokens_an_iteration: float32, tokens that one iteration yields for each request; 1 without drafts.
        memory_limit_gb: float32.
        params: the engine.

    Returns:
        What the second came to, and the engine after it (``running`` and the waiting line's cap are the caller's).
    """
    dt = SECOND_MS / SUB_STEPS
    knobs = grid.place(action)
    slots = action.batch_size.astype(jnp.float32)
    x, q = engine.concurrency, engine.waiting
    arriving = arrivals / SECOND_MS
    in_prompt = mix(q, engine.waiting_prompt, arrivals, prompt)
    in_output = jnp.maximum(mix(q, engine.waiting_output, arrivals, output), 1.0)

    def token_ms(table_ms: jax.Array) -> jax.Array:
        return table_ms / gain + params.overhead_ms / tokens_an_iteration

    def longer(mean_output: jax.Array) -> jax.Array:
        # the table's decode attention reads prompt + O / 2 tokens of its own O
        return 0.5 * (mean_output - grid.table.output_length)

    # where the second starts
    own_prompt = jnp.where(x > TINY, engine.running_prompt, in_prompt)
    own_output = jnp.where(x > TINY, jnp.maximum(engine.owed / jnp.maximum(x, TINY), 1.0), in_output)
    begin_ms = token_ms(grid.look_up(grid.decode, knobs, x, own_prompt + longer(own_output)))
    begin_memory = grid.look_up(grid.memory, knobs, x, own_prompt)
    request_memory = grid.look_up(grid.request_memory, knobs, x, in_prompt)
    prefill_ms = grid.look_up(grid.prefill, knobs, x, in_prompt)
    decode_share = jnp.where(action.prefill_disagg, 0.0, prefill_ms)  # what a prompt takes from decoding
    oom = (begin_memory > memory_limit_gb * (1.0 + OOM_TOLERANCE)) & (x > TINY)
    pool = x + (memory_limit_gb - begin_memory) / request_memory
    cap = jnp.minimum(slots, jnp.maximum(pool, 1.0))

    # what it will bring: which requests run in it, and where n goes
    stay = begin_ms * own_output + decode_share * jnp.maximum(x, 1.0)
    leaving = x * jnp.minimum(1.0, SECOND_MS / stay)
    expected = jnp.minimum(q + arrivals, jnp.maximum(cap - x, 0.0) + leaving)
    mean_output = mix(x, own_output, expected, in_output)
    settled = jnp.minimum((q + arrivals) / SECOND_MS * stay, cap)
    change = (settled - x) * (1.0 - jnp.exp(-SECOND_MS / stay))
    mean_prompt = mix(x, own_prompt, expected, in_prompt)
    end_ms = token_ms(grid.look_up(grid.decode, knobs, x + change, mean_prompt + longer(mean_output)))
    slope = jnp.where(jnp.abs(change) > 0.25, (end_ms - begin_ms) / jnp.where(change == 0, 1.0, change), 0.0)

    def foreseen_ms(running: jax.Array) -> jax.Array:
        low, high = jnp.minimum(begin_ms, end_ms), jnp.maximum(begin_ms, end_ms)
        return jnp.clip(begin_ms + slope * (running - begin), 0.8 * low, 1.5 * high)

    chunk = jnp.maximum(params.token_budget - jnp.maximum(x, x + change) * tokens_an_iteration, 1.0)
    room = chunk / in_prompt  # prompts that one iteration has room for

    begin = x
    admitted = completed = busy = mean_wait = longest_wait = jnp.zeros_like(x)
    for _ in range(SUB_STEPS):
        t = foreseen_ms(x)
        capacity = jnp.where(
            action.prefill_disagg,
            1.0 / jnp.maximum(prefill_ms, TINY),
            room / (t * tokens_an_iteration + room * prefill_ms),
        )
        full = jnp.maximum(cap - x, 0.0) / dt + x / (t * mean_output + decode_share * x)
        admission = jnp.minimum(jnp.minimum(q / dt + arriving, capacity), full)
        rate = (1.0 - admission * decode_share) / (t * mean_output)
        kept = jnp.exp(-rate * dt)
        reach = (1.0 - kept) / rate
        admission = jnp.clip(admission, 0.0, jnp.maximum((cap - x * kept) / reach, 0.0))
        after = x * kept + admission * reach
        left = jnp.maximum(q + (arriving - admission) * dt, 0.0)
        drain = jnp.maximum(jnp.maximum(admission, x * rate), TINY)
        mean_wait = mean_wait + 0.5 * (q + left) / drain / SUB_STEPS
        longest_wait = jnp.maximum(longest_wait, left / drain)
        completed = completed + x + admission * dt - after
        admitted = admitted + admission * dt
        busy = busy + 0.5 * (x + after) * dt
        x, q = after, left

    output_mean = mix(begin, own_output, admitted, in_output)
    tokens = completed * output_mean
    t = foreseen_ms(busy / SECOND_MS)
    load = jnp.minimum(admitted / SECOND_MS * decode_share, 0.95)
    tpot = jnp.where(tokens > 1.0, busy / jnp.maximum(tokens, TINY), t / (1.0 - load))
    alone = grid.stand_alone_ms(action.quant_tier, in_prompt)
    first = first_token_times(
        iteration=t * tokens_an_iteration,
        prefill=decode_share,
        service=jnp.where(action.prefill_disagg, prefill_ms, t * tokens_an_iteration / room + prefill_ms),
        chunks=jnp.ceil(in_prompt / chunk),
        alone=alone,
        colocated=~action.prefill_disagg,
        admission=jnp.maximum(admitted, 0.0) / SECOND_MS,
        running=busy / SECOND_MS,
        room=room,
        scv=params.arrival_scv,
    )
    memory = begin_memory + request_memory * jnp.maximum(x - begin, 0.0)
    result = Second(
        admitted=admitted,
        completed=completed,
        tokens=tokens,
        tpot_ms=tpot,
        iteration_ms=t * tokens_an_iteration / (1.0 - load),
        ttft_mean_ms=mean_wait + first[0],
        ttft_p50_ms=mean_wait + first[1],
        ttft_p90_ms=jnp.maximum(mean_wait, 0.9 * longest_wait) + first[2],
        ttft_p99_ms=jnp.maximum(mean_wait, longest_wait) + first[3],
        memory_gb=jnp.where(oom, begin_memory, memory),
        oom=oom,
    )
    after_second = engine.replace(
        concurrency=x,
        owed=x * output_mean,
        running_prompt=mix(begin, own_prompt, admitted, in_prompt),
        waiting=q,
        waiting_prompt=in_prompt,
        waiting_output=in_output,
    )
    crashed = engine.replace(
        concurrency=jnp.zeros_like(x),
        owed=jnp.zeros_like(x),
        running_prompt=own_prompt,
        waiting=engine.waiting + arrivals,
        waiting_prompt=in_prompt,
        waiting_output=in_output,
    )
    return result, jax.tree.map(lambda lost, kept: jnp.where(oom, lost, kept), crashed, after_second)


def first_token_times(
    *,
    iteration: jax.Array,
    prefill: jax.Array,
    service: jax.Array,
    chunks: jax.Array,
    alone: jax.Array,
    colocated: jax.Array,
    admission: jax.Array,
    running: jax.Array,
    room: jax.Array,
    scv: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """TTFT of a request that finds no queue: mean, median, 90th and 99th percentile, ms.

    The rest of the iteration under way, the prefills ahead, the prefill itself at its stand-alone cost, and the decode
    iterations that it shares.

    - Rest of an iteration, if the engine is not idle: the mean of an inspected interval is E[T^2] / (2 E[T]); with a prefill
      every 1 / A ms, T has variance ``p^2 A T``. Idle with probability exp(-n) under Poisson arrivals (M/G/infinity).
    - Prefills ahead: those that fit into the same iteration, ``A T p``, where it has room for several; and those queued at
      a prefill server of utilisation ``A S``, ``(A S)^2 S / (2 (1 - A S))`` (Pollaczek-Khinchine without the rest of the one in
      service, which the iteration holds); the longer of the two. Scaled by the gaps' squared coefficient of variation
      (Kingman). Within a second no mean wait exceeds half the spread of that second's arrivals, ``S sqrt(1 s / S) / 4``:
      longer ones are the queue's, which the step carries.

    Args:
        iteration: a decode iteration without prefill.
        prefill: ms that a prompt adds to it; 0 where another GPU prefills.
        service: ms a prompt when the engine does nothing but admit.
        chunks: iterations that a prompt is spread over.
        alone: ms of the prefill alone.
        colocated: whether the prefill shares the decode iterations; on a GPU of its own no iteration is waited for.
        admission: requests a ms.
        running: requests in decode.
        room: prompts that one iteration has room for.
        scv: squared coefficient of variation of the gaps between arrivals.
    """
    load = jnp.minimum(admission * prefill, 0.95)
    whole = iteration / (1.0 - load)
    even = jnp.minimum(running, 1.0)
    at_work = jnp.where(colocated, even + scv * (1.0 - jnp.exp(-running) - even), 0.0)
    rest = at_work * 0.5 * whole * (1.0 + prefill * prefill * admission / whole)
    busy = jnp.clip(admission * service, 0.0, 0.99)
    spread = 0.25 * jnp.sqrt(SECOND_MS * service)
    beside = jnp.clip(room - 1.0, 0.0, 1.0) * admission * whole * prefill
    ahead = scv * jnp.maximum(beside, jnp.minimum(0.5 * busy * busy / (1.0 - busy) * service, spread))
    own = alone + jnp.where(colocated, chunks * iteration, 0.0)

    def quantile(share: float) -> jax.Array:
        # an arrival falls into an iteration that holds a prefill with probability A (t + p)
        residue = jnp.maximum(share * whole, iteration + prefill - (1.0 - share) / jnp.maximum(admission, TINY))
        residue = jnp.where(colocated, jnp.where(1.0 - share < at_work, residue, 0.0), 0.0)
        tail = jnp.maximum(jnp.log(jnp.maximum(busy, TINY) / (1.0 - share)), 0.0)
        wait = scv * jnp.minimum(tail * 0.5 / (1.0 - busy) * service, 4.0 * spread)
        return residue + wait + own

    return rest + ahead + own, quantile(0.5), quantile(0.9), quantile(0.99)
