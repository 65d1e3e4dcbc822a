"""The fluid's quantities, and the time to first token that follows from them. Used by ``open_loop.py``, which moves
them.

``Flow, Inflow, Outlook -> FirstToken``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.staging import stage

SECOND_MS = 1000.0
TINY = 1e-6
NORMAL_PEAK = 0.39894228  # density of the standard normal at 0
STIFFEST = 0.75  # largest d ln T / d ln n that noise is allowed to build up by


class Inflow(NamedTuple):
    """Who waits, arrives and runs; requests and tokens."""

    running: jax.Array  # requests in decode at the start
    waiting: jax.Array  # requests waiting at the start
    arriving: jax.Array  # requests/ms
    prompt: jax.Array  # mean prompt of those that wait or arrive
    output: jax.Array  # their mean output
    own_prompt: jax.Array  # mean prompt of those that run
    own_output: jax.Array  # their mean output


class Outlook(NamedTuple):
    """What the second has to work with, and where n goes."""

    begin_ms: jax.Array  # a decode iteration a token of each, at the start
    end_ms: jax.Array  # the same at the n foreseen for the end
    slope: jax.Array  # ms a running request
    prefill_ms: jax.Array  # that a prompt adds to the iterations
    stall_ms: jax.Array  # the same, 0 where another GPU prefills
    output: jax.Array  # mean output of those that run in this second, tokens
    cap: jax.Array  # most requests that may run: slots, KV pool
    chunk: jax.Array  # prompt tokens that one iteration has room for
    memory_gb: jax.Array  # of those that run at the start
    request_gb: jax.Array  # of one more
    oom: jax.Array  # bool: those that run do not fit


class Flow(NamedTuple):
    """The fluid within the second; requests, request-ms, ms."""

    running: jax.Array
    waiting: jax.Array
    admitted: jax.Array
    completed: jax.Array
    busy: jax.Array  # integral of running
    mean_wait: jax.Array  # of the second's arrivals for admission
    longest_wait: jax.Array


class FirstToken(NamedTuple):
    """A part of the time to first token, ms."""

    mean: jax.Array
    p50: jax.Array
    p90: jax.Array
    p99: jax.Array


def decode_ms(outlook: Outlook, start: jax.Array, running: jax.Array) -> jax.Array:
    """t(n): ms a decode iteration for each token that it yields, on the line from the second's start to its end."""
    low, high = jnp.minimum(outlook.begin_ms, outlook.end_ms), jnp.maximum(outlook.begin_ms, outlook.end_ms)
    return jnp.clip(outlook.begin_ms + outlook.slope * (running - start), 0.8 * low, 1.5 * high)


@stage
def crowding(flow: Flow, inflow: Inflow, outlook: Outlook) -> FirstToken:
    """Wait for a slot that chance makes beside the fluid's: whole requests leave at random, the fluid's evenly.

    The linear noise approximation of the fluid's own equation (van Kampen, "Stochastic Processes in Physics and
    Chemistry", ch. X): arrivals and departures make the number present vary by ``2 A / (2 k)`` around the fluid, with
    ``k = (1 - g) / (O T)`` the rate at which the equation returns to balance and ``g = d ln T / d ln n``. The step
    draws the arrivals of every second, so half of it is unseen: a normal deviation of variance ``n / (2 (1 - g))``. Of
    that, what is above the ``cap`` waits, for ``O T / cap`` each. g is at most 3/4: slower returns than four lifetimes
    are the load's own history, which the step carries.
    """
    n, waiting = flow.busy / SECOND_MS, 0.5 * (inflow.waiting + flow.waiting)
    stay = decode_ms(outlook, inflow.running, n) * outlook.output + outlook.stall_ms * n
    stiffness = n * (outlook.slope * outlook.output + outlook.stall_ms) / stay
    sigma = jnp.sqrt(0.5 * n / (1.0 - jnp.clip(stiffness, 0.0, STIFFEST)))
    slack = outlook.cap - n
    z = jnp.abs(slack - waiting) / jnp.maximum(sigma, TINY)
    # E[max(Z - z, 0)] of a standard normal Z; to 4e-5
    beyond = NORMAL_PEAK * jnp.exp(-z * (1.25176 + z * (0.2919 + 0.0225 * z)))
    unit = stay / jnp.maximum(outlook.cap, 1.0)

    def quantile(deviations: float) -> jax.Array:
        return jnp.maximum(waiting - slack + deviations * sigma, 0.0) - jnp.maximum(waiting - slack, 0.0)

    return FirstToken(sigma * beyond * unit, jnp.zeros_like(unit), quantile(1.2816) * unit, quantile(2.3263) * unit)


@stage
def first_token(
    flow: Flow,
    inflow: Inflow,
    outlook: Outlook,
    per_iteration: jax.Array,
    disagg: jax.Array,
    alone: jax.Array,
    scv: jax.Array,
) -> FirstToken:
    """TTFT of a request that finds no queue: mean, median, 90th and 99th percentile, ms.

    The rest of the iteration under way, the prefills ahead, the prefill itself at its stand-alone cost ``alone``, and
    the decode iterations that it shares; on a GPU of its own (``disagg``) no iteration is waited for.

    - Rest of an iteration, if the engine is not idle: the mean of an inspected interval is E[T^2] / (2 E[T]); with a
      prefill every 1 / A ms, T has variance ``p^2 A T``. Idle with probability exp(-n) under Poisson arrivals
      (M/G/inf).
    - Prefills ahead: those that fit into the same iteration, ``A T p``, where it has room for several; and those
      queued at a prefill server of utilisation ``A S``, ``(A S)^2 S / (2 (1 - A S))`` (Pollaczek-Khinchine without the
      rest of the one in service, which the iteration holds); the longer of the two. Scaled by ``scv``, the squared
      coefficient of variation of the gaps between arrivals (Kingman). Within a second no mean wait exceeds half the
      spread of that second's arrivals, ``S sqrt(1 s / S) / 4``: longer ones are the queue's, which the step carries.
    """
    running, admission = flow.busy / SECOND_MS, jnp.maximum(flow.admitted, 0.0) / SECOND_MS
    iteration = decode_ms(outlook, inflow.running, running) * per_iteration
    prefill, room = outlook.stall_ms, outlook.chunk / inflow.prompt
    service = jnp.where(disagg, outlook.prefill_ms, iteration / room + outlook.prefill_ms)
    whole = iteration / (1.0 - jnp.minimum(admission * prefill, 0.95))
    even = jnp.minimum(running, 1.0)
    at_work = jnp.where(disagg, 0.0, even + scv * (1.0 - jnp.exp(-running) - even))
    rest = at_work * 0.5 * (whole + prefill * prefill * admission)
    busy = jnp.clip(admission * service, 0.0, 0.99)
    spread = 0.25 * jnp.sqrt(SECOND_MS * service)
    delay = 0.5 * service / (1.0 - busy)  # mean wait of those who wait
    beside = jnp.clip(room - 1.0, 0.0, 1.0) * admission * whole * prefill
    ahead = scv * jnp.maximum(beside, jnp.minimum(busy * busy * delay, spread))
    own = alone + jnp.where(disagg, 0.0, jnp.ceil(inflow.prompt / outlook.chunk) * iteration)

    log_busy = jnp.log(jnp.maximum(busy, TINY))

    def quantile(share: float) -> jax.Array:
        # an arrival falls into an iteration that holds a prefill with probability A (t + p)
        residue = jnp.maximum(share * whole, iteration + prefill - (1.0 - share) / jnp.maximum(admission, TINY))
        tail = jnp.maximum(log_busy - math.log(1.0 - share), 0.0)
        return jnp.where(at_work > 1.0 - share, residue, 0.0) + scv * jnp.minimum(tail * delay, 4.0 * spread) + own

    return FirstToken(rest + ahead + own, quantile(0.5), quantile(0.9), quantile(0.99))
