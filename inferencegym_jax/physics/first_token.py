"""The fluid's quantities, and the time to first token that follows from them. Used by ``open_loop.py``, which moves
them.

``Flow, Inflow, Outlook -> FirstToken``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.numerics.compile_units import stage

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


def met(others: jax.Array, service: jax.Array) -> jax.Array:
    """``rho / (1 - rho)`` of Pollaczek-Khinchine where a second's arrivals are counted, not a rate.

    ``others`` requests (m) come at independent moments of the second, each needs ``service`` ms, a share r of it: the
    k-th term ``rho^k`` of the series is then ``m (m - 1) ... (m - k + 1) r^k``, since a request meets k different ones.
    Averaged over Poisson counts these are the powers of the true rate, whatever it is, and the sum is finite at any
    load. Two terms are taken as they are; the rest is ``int exp(-x) (1 + r x)^m dx``, a Mills ratio to second order in
    log(1 + r x), by its bound in Abramowitz and Stegun 7.1.13. To 4 % (``tests/physics/test_open_loop.py``).
    """
    r = service / SECOND_MS
    fewer, fewest = jnp.maximum(others - 1.0, 0.0), jnp.maximum(others - 2.0, 0.0)
    idle = 1.0 - fewest * r
    rest = 2.0 / (idle + jnp.sqrt(idle * idle + (8.0 / math.pi) * fewest * r * r))
    return others * r * (1.0 + fewer * r * rest)


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

    The rest of the iteration under way, the prefills ahead, the prefill itself at its stand-alone cost ``alone``, the
    decode iterations that it shares, and the prompts that its last iteration takes in behind it; on a GPU of its own
    (``disagg``) no iteration is waited for.

    A request meets the others of its second: A is one request a second less than what is admitted. ``scv``, the squared
    coefficient of variation of the gaps between arrivals, blends between this (1) and even arrivals (0), which wait for
    the rest of an iteration only, at the full rate: the mean of an inspected interval is E[T^2] / (2 E[T]); with a
    prefill every 1 / A ms, T has variance ``p^2 A T``.

    - Rest of a decode iteration, t / 2, if the engine is not idle: probability 1 - exp(-n) under Poisson arrivals
      (M/G/inf).
    - Prefills ahead, whichever is longer: where all that came during one iteration fit into the next,
      ``(p / 2 + t) A p / (1 - A p)``, from the stationary moments of ``T' = t + p N(T)``; or those queued at a prefill
      server that takes ``S = p + t / k`` for each, ``(S / 2) A S / (1 - A S)`` (Pollaczek-Khinchine). Both ratios are
      ``met``'s.
    - Behind: those that come until its last iteration begins, as far as that has room left, for f prompts: f times the
      probability that one comes where f is at most 1, ``f (1 - exp(-m / f))`` of the m expected where it is more.
    """
    running, admission = flow.busy / SECOND_MS, jnp.maximum(flow.admitted, 0.0) / SECOND_MS
    iteration = decode_ms(outlook, inflow.running, running) * per_iteration
    prefill, room = outlook.stall_ms, outlook.chunk / inflow.prompt
    service = jnp.where(disagg, outlook.prefill_ms, iteration / room + outlook.prefill_ms)
    seen = jnp.maximum(admission - scv / SECOND_MS, 0.0)
    load = jnp.minimum(seen * prefill, 0.95)
    whole = iteration / (1.0 - load)
    even = jnp.minimum(running, 1.0)
    at_work = jnp.where(disagg, 0.0, even + scv * (1.0 - jnp.exp(-running) - even))
    others = seen * SECOND_MS
    queued = 0.5 * service * met(others, service)
    ahead = scv * jnp.maximum((0.5 * prefill + iteration) * met(others, prefill), queued)
    chunks = jnp.ceil(inflow.prompt / outlook.chunk)
    left = jnp.maximum(chunks * room - 1.0, TINY)
    until = (at_work * 0.5 * iteration + ahead) / (1.0 + load) + (chunks - 1.0) * (iteration + prefill * room)
    behind = scv * prefill * left * (1.0 - jnp.exp(-seen * until / jnp.maximum(left, 1.0)))
    evenly = whole - iteration + prefill * prefill * seen
    rest = at_work * 0.5 * (iteration + (1.0 - scv) * evenly)
    own = alone + jnp.where(disagg, 0.0, chunks * iteration) + behind

    busy = jnp.clip(seen * service, TINY, 0.99)
    delay = queued / busy  # mean wait of those who wait
    log_busy = jnp.log(busy)

    def quantile(share: float) -> jax.Array:
        # an arrival falls into an iteration that holds a prefill with probability A (t + p)
        residue = jnp.maximum(share * whole, iteration + prefill - (1.0 - share) / jnp.maximum(seen, TINY))
        tail = jnp.maximum(log_busy - math.log(1.0 - share), 0.0)
        return jnp.where(at_work > 1.0 - share, residue, 0.0) + scv * tail * delay + own

    return FirstToken(rest + ahead + own, quantile(0.5), quantile(0.9), quantile(0.99))
