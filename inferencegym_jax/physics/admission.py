"""How many requests a second may enter: the least of line, token budget, slots and memory.

Every admitted prompt lengthens the iterations, and longer iterations let fewer requests in and out. Each limit is
solved together with ``T = t / (1 - A p / e)`` in closed form; iterating the two against each other oscillates.
Symbols: docs/physics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.iteration import TINY

BUSIEST = 0.97  # share of the time that prompts may take of the iterations


class Engine(NamedTuple):
    """What the limits are made of; requests, tokens, ms. Totals over the GPUs that serve."""

    gpus: jax.Array  # e: GPUs among which requests and prompts are shared
    slots: jax.Array  # most running requests
    room: jax.Array  # tokens that the pool may hold when the last prompt has entered
    iteration: jax.Array  # t: ms of an iteration without a prompt
    prompt_ms: jax.Array  # p: what one prompt adds to the iterations of the decode GPU
    prefill_ms: jax.Array  # ms from a request's admission to the end of its last chunk
    least_ms: jax.Array  # ms of prefill work that a prompt makes, where the token budget binds
    prompt: jax.Array  # P: tokens that it takes of the pool
    passing: jax.Array  # phases that a running request passes in an iteration
    tokens: jax.Array  # tokens that it gets in an iteration


@compile_unit
def slowed(iteration: jax.Array, admission: jax.Array, prompt_ms: jax.Array, gpus: jax.Array) -> jax.Array:
    """T: mean iteration (ms) where ``admission`` prompts a ms are shared by ``gpus`` engines."""
    return iteration / jnp.maximum(1.0 - admission * prompt_ms / gpus, 1.0 - BUSIEST)


@compile_unit
def limits(
    engine: Engine,
    line: jax.Array,
    running: jax.Array,
    leaving: jax.Array,
    held: jax.Array,
    freed: jax.Array,
    span_ms: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Admissions a ms that each limit allows: (line, token budget, slots, memory).

    Args:
        engine: what the limits are made of.
        line: requests that wait or arrive in the second.
        running: n, requests in decode at the start.
        leaving: of those, requests in their last phase.
        held: K, tokens in the pool at the start.
        freed: tokens that a completion frees.
        span_ms: time served in the second.
    """
    span = jnp.maximum(span_ms, TINY)
    share = engine.prompt_ms / engine.gpus
    by_line = line / span
    by_budget = engine.gpus / jnp.maximum(engine.least_ms, TINY)
    # completions a ms are y (1 - A p / e): fewer where prompts slow the iterations
    y = leaving * engine.passing / engine.iteration
    by_slots = ((engine.slots - running) / span + y) / (1.0 + share * y + engine.prefill_ms / span)
    z = freed * y - running * engine.tokens / engine.iteration
    by_memory = ((engine.room - held) / span + z) / jnp.maximum(engine.prompt + share * z, 0.25 * engine.prompt)
    return by_line, by_budget, by_slots, by_memory
