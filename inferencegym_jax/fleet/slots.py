"""The GPUs of a fleet: who is asked for, starts, serves, drains, fails, and what is paid.

``slots, knobs -> resized slots -> one second's Configuration -> slots a second later``. The rules are those of the
single engine's second GPU (``physics.switching``), for each slot: paid from the asking, for ``lease_s`` at least;
serves after ``start_s``; given back it takes nothing new and is paid until it is empty; asked for again while it is
still there, it goes on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.fleet.action import GPUS
from inferencegym_jax.fleet.state import FleetParams
from inferencegym_jax.models import EngineState
from inferencegym_jax.numerics import draws
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.flow import total
from inferencegym_jax.physics.switching import DRAINED, SECOND_MS, Configuration

FAILURES = 40  # purpose of draws.hash4
INDEX = np.arange(GPUS, dtype=np.int32)
TINY = 1e-6


class Slots(NamedTuple):
    """The GPUs, slot by slot, float32[..., GPUS], and the engine that has most; see ``FleetState``."""

    start_s: jax.Array
    lease_s: jax.Array
    apart: jax.Array
    most: jax.Array  # float32[...]


def over_slots(values: Any) -> jax.Array:
    """Sum over the slots, written out: XLA hands a reduction over few numbers to a library."""
    parts = [values[..., i] for i in range(values.shape[-1])]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def running_of(engine: EngineState) -> jax.Array:
    """Requests that run on all engines, float32."""
    return total(tuple(engine.phases[..., i] for i in range(engine.phases.shape[-1])))


@compile_unit
def resize(
    slots: Slots,
    before: jax.Array,
    asked: jax.Array,
    prefill_before: jax.Array,
    prefill: jax.Array,
    is_first: jax.Array,
    running: jax.Array,
    params: FleetParams,
) -> Slots:
    """The slots after another number of GPUs is asked for; an episode's first is there at once.

    Args:
        slots: before.
        before: GPUs asked for before, int32.
        asked: and now.
        prefill_before: those for prompts until now.
        prefill: those for prompts from now on.
        is_first: bool, the episode's first decision.
        running: requests that run.
        params: times of starts, leases and changes of role.
    """
    was = (INDEX < before[..., None]) & ~is_first[..., None]
    active = INDEX < asked[..., None]
    there = (was | (slots.lease_s > 0) | (slots.apart > DRAINED)) & ~is_first[..., None]
    decodes = was & (slots.start_s <= 0) & (INDEX >= prefill_before[..., None])
    each = (running - over_slots(slots.apart)) / jnp.maximum(over_slots(decodes.astype(jnp.float32)), 1.0)
    apart = jnp.where(decodes & ~active, each[..., None], jnp.where(active | ~there, 0.0, slots.apart))
    new = active & ~there
    start = jnp.where(is_first, 0.0, params.start_s)[..., None]
    start_s = jnp.where(new, start, jnp.where(there, slots.start_s, 0.0))
    between = (INDEX >= jnp.minimum(prefill, prefill_before)[..., None]) & (
        INDEX < jnp.maximum(prefill, prefill_before)[..., None]
    )
    moved = between & active & was
    start_s = jnp.where(moved, jnp.maximum(start_s, jnp.asarray(params.role_s)[..., None]), start_s)
    lease_s = jnp.where(new, jnp.asarray(params.lease_s)[..., None], slots.lease_s)
    return Slots(start_s, lease_s, apart, slots.most)


@compile_unit
def fail(
    slots: Slots,
    asked: jax.Array,
    prefill: jax.Array,
    engine: EngineState,
    seed: jax.Array,
    time: jax.Array,
    chance: jax.Array,
    params: FleetParams,
) -> tuple[Slots, EngineState, jax.Array]:
    """GPUs fail at random: what ran on them is recomputed before anything else, and they start anew.

    Args:
        slots: after the asking.
        asked: GPUs asked for.
        prefill: of them, those for prompts; their prompts are computed again within the second.
        engine: all engines together.
        seed: of the draws.
        time: of the draws.
        chance: that a serving GPU fails in this decision.
        params: ``start_s``.

    Returns:
        Slots, engines, and how many failed.
    """
    words = draws.words(seed, time, FAILURES, GPUS)
    drawn = jnp.stack([draws.uniform(word) for word in words], axis=-1)
    serves = (INDEX < asked[..., None]) & (slots.start_s <= 0)
    failed = serves & (drawn < chance[..., None])
    decodes = INDEX >= prefill[..., None]
    lost = over_slots((failed & decodes).astype(jnp.float32))
    share = lost / jnp.maximum(over_slots((serves & decodes).astype(jnp.float32)), 1.0)
    running = running_of(engine)
    share = share * jnp.maximum(running - over_slots(slots.apart), 0.0) / jnp.maximum(running, TINY)
    waited = total(tuple(engine.preempted[..., i] for i in range(engine.preempted.shape[-1])))
    gone = running * share
    tokens = engine.held / jnp.maximum(running, TINY)
    mean = (waited * engine.preempted_tokens + gone * tokens) / jnp.maximum(waited + gone, TINY)
    kept = 1.0 - share
    engine = engine.replace(
        phases=engine.phases * kept[..., None],
        preempted=engine.preempted + engine.phases * share[..., None],
        preempted_tokens=jnp.where(gone > 0, mean, engine.preempted_tokens),
        held=engine.held * kept,
        had_ms=engine.had_ms * kept,
        had_tokens=engine.had_tokens * kept,
    )
    start_s = jnp.where(failed, jnp.asarray(params.start_s)[..., None], slots.start_s)
    return slots._replace(start_s=start_s), engine, over_slots(failed.astype(jnp.float32))


@compile_unit
def configure_fleet(
    slots: Slots, asked: jax.Array, prefill: jax.Array, running: jax.Array, tier: jax.Array
) -> Configuration:
    """Which engines serve in a second, and what is paid.

    A GPU that begins to serve within the second counts for its part of it. Where less than one engine serves, one does
    for a part of the second. Until a prefill GPU serves, the engines compute their own prompts.

    Args:
        slots: at the start of the second.
        asked: GPUs asked for.
        prefill: of them, those for prompts.
        running: requests that run.
        tier: int32, weight format.
    """
    active = INDEX < asked[..., None]
    serves = jnp.where(active, 1.0 - jnp.clip(slots.start_s, 0.0, 1.0), 0.0)
    prompt_gpus = over_slots(jnp.where(INDEX < prefill[..., None], serves, 0.0))
    engines = over_slots(serves) - prompt_gpus
    split = prompt_gpus > 0.5
    gpus = jnp.maximum(engines, 1.0)
    apart = over_slots(slots.apart)
    even = jnp.maximum(running - apart, 0.0) / gpus
    busy = (slots.apart > DRAINED).astype(jnp.float32)
    paid = active | (slots.lease_s > 0) | (slots.apart > DRAINED)
    return Configuration(
        tier=tier,
        span_ms=SECOND_MS * jnp.minimum(engines, 1.0),
        gpus=gpus,
        prefill_gpu=split,
        apart=apart,
        second_running=jnp.zeros_like(apart),
        stopped=jnp.zeros_like(split),
        paid=over_slots(paid.astype(jnp.float32)),
        prompt_gpus=jnp.where(split, prompt_gpus, gpus),
        pools=gpus + over_slots(busy),
        most_running=jnp.clip(slots.most, even, running),
    )


@compile_unit
def a_second_later(slots: Slots, configuration: Configuration, kept: jax.Array, running: jax.Array) -> Slots:
    """The slots after a second.

    New requests go to the engine that has fewest, so where some begin with none, the fullest only lose until all are
    even.

    Args:
        slots: before.
        configuration: of the second.
        kept: share of the running that did not finish.
        running: requests that run after it.
    """
    apart = slots.apart * kept[..., None]
    even = jnp.maximum(running - over_slots(apart), 0.0) / configuration.gpus
    most = jnp.zeros_like(even) if configuration.most_running is None else configuration.most_running
    return Slots(
        start_s=jnp.maximum(slots.start_s - 1.0, 0.0),
        lease_s=jnp.maximum(slots.lease_s - 1.0, 0.0),
        apart=jnp.where(apart > DRAINED, apart, 0.0),
        most=jnp.maximum(most * kept, even),
    )
