"""How many requests a second may enter: the least of line, token budget, slots and memory.

Every admitted prompt lengthens the iterations, and longer iterations let fewer requests in and out. Each limit is
solved together with ``T = t / (1 - A p / e)`` in closed form; iterating the two against each other oscillates.
Symbols: docs/physics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.physics.iteration import TINY

BUSIEST = 0.97  # share of the time that prompts may take of the iterations


class Engine(NamedTuple):
    """What the limits are made of; requests, tokens, ms. Totals over the GPUs that serve."""

    prompt_gpus: jax.Array  # GPUs among which prompts are shared
    slots: jax.Array  # most running requests
    room: jax.Array  # tokens that the pool may hold when the last prompt has entered
    pace: jax.Array  # 1 / t: iterations a ms, those that hold no prompt
    share_ms: jax.Array  # p / e: what one prompt adds to the iterations of the decode GPUs
    prefill_ms: jax.Array  # ms from a request's admission to the end of its last chunk
    least_ms: jax.Array  # ms of prefill work that a prompt makes, where the token budget binds
    prompt: jax.Array  # P: tokens that it takes of the pool
    passing: jax.Array  # phases that a running request passes in an iteration
    tokens: jax.Array  # tokens that it gets in an iteration


class Demand(NamedTuple):
    """Who may enter and who is in the way at the start of the second; requests, tokens."""

    line: jax.Array  # requests that wait or arrive
    running: jax.Array  # n, in decode
    leaving: jax.Array  # of those, in their last phase
    held: jax.Array  # K, tokens in the pool
    freed: jax.Array  # tokens that a completion frees
    inverse_ms: jax.Array  # 1 / the time served in the second


def pace_of(engine: Engine, admission: jax.Array) -> jax.Array:
    """1 / T: iterations a ms where ``admission`` prompts a ms lengthen them, ``(1 - A p / e) / t``."""
    return engine.pace * jnp.maximum(1.0 - admission * engine.share_ms, 1.0 - BUSIEST)


def by_budget(engine: Engine) -> jax.Array:
    """Admissions a ms for which the iterations have room."""
    return engine.prompt_gpus / jnp.maximum(engine.least_ms, TINY)


def by_slots(engine: Engine, demand: Demand) -> jax.Array:
    """Admissions a ms for which there are slots: free ones, and those of the requests that finish, ``y (1 - A p / e)``
    a ms, less one for each request in its own prefill."""
    y = demand.leaving * engine.passing * engine.pace
    free = (engine.slots - demand.running) * demand.inverse_ms + y
    return free / (1.0 + engine.share_ms * y + engine.prefill_ms * demand.inverse_ms)


def by_memory(engine: Engine, demand: Demand) -> jax.Array:
    """Admissions a ms for which the pool has room: what is free, and what those that finish free beyond the growth of
    the others, less a prompt for each request in its own prefill."""
    z = (demand.freed * demand.leaving * engine.passing - demand.running * engine.tokens) * engine.pace
    free = (engine.room - demand.held) * demand.inverse_ms + z
    taken = engine.prompt * (1.0 + engine.prefill_ms * demand.inverse_ms)
    return free / jnp.maximum(taken + engine.share_ms * z, 0.25 * engine.prompt)
