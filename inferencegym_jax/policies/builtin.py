"""Policies by name: the fixed baseline, uniformly random, the best static action, a hand-written controller, the
trained ones that ship.

Every policy is ``policy(key, observation, carry) -> ServeAction`` for one environment and runs under jit and vmap.
Knobs that a task locks are forced to the baseline's value by the environment, so a policy may set them all.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax import registry
from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.models import KNOBS, Knob, ServeAction, ServeObservation
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.numerics.compile_units import compile_unit


def baseline(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """The fixed action of "naive vLLM defaults": batch 32, full KV budget, no drafts, FP16, one GPU."""
    del key, observation, carry
    return ServeAction()


def random(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """Every knob uniform over its range."""
    del observation, carry
    data = jax.random.key_data(key)
    return _uniform_action(_policy_words(data[..., 0], data[..., 1]))


@compile_unit
def _policy_words(high: jax.Array, low: jax.Array) -> tuple[jax.Array, ...]:
    return counters.words(high, low, counters.POLICY, len(_OWN_WORD))


def _own_word() -> tuple[str, ...]:
    """Knobs that take a word of their own: all but one that comes after a switch, which leaves it all of its bits but
    the first."""
    names: list[str] = []
    switch = False
    for name, knob in KNOBS.items():
        if not switch:
            names.append(name)
        switch = not switch and knob.kind == "bool"
    return tuple(names)


_OWN_WORD = _own_word()


def _uniform_action(words: tuple[jax.Array, ...]) -> ServeAction:
    """The action whose knobs are drawn from uint32 words, one for each of ``_OWN_WORD``."""
    action: dict[str, jax.Array] = {}
    fresh = iter(words)
    word = words[0]
    for name, knob in KNOBS.items():
        word = next(fresh) if name in _OWN_WORD else word << 1
        action[name] = _uniform(knob, word)
    return ServeAction(**action)


def _uniform(knob: Knob, word: jax.Array) -> jax.Array:
    """A uniform value of a knob from the upper bits of a uint32 word."""
    if knob.kind == "float":
        return knob.low + (knob.high - knob.low) * counters.uniform(word)
    if knob.kind == "int":
        return int(knob.low) + counters.whole(word, int(knob.high - knob.low) + 1)
    if knob.kind == "bool":
        return (word >> 31).astype(jnp.bool_)
    slot = counters.whole(word, len(knob.choices))
    in_order = knob.choices == tuple(range(len(knob.choices)))
    return slot if in_order else jnp.asarray(knob.choices, jnp.int32)[slot]


@functools.cache
def static(action: ServeAction) -> Policy:
    """The policy that always takes one action (of Python numbers)."""

    def policy(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
        del key, observation, carry
        return action

    return policy


def best_static(task: int | str, **where: Any) -> Policy:
    """The static action with the highest mean score of an exhaustive search on a task's table and traffic.

    Args:
        task: id or name.
        where: ``table``, ``trace`` and ``dynamics`` as for ``registry.problem``; default: the shipped table and the
            task's own traffic, whose search is in ``data/calibration.json``.
    """
    return static(registry.problem(task, **where).best_static)


# What an engineer would write down for the deployment that the reactive controller looks after.
LONGEST_REQUEST_GB = (8192 + 128) * 131072e-9  # KV cache of the longest prompt and its answer, Llama-3-8B
SLOT_GB = 0.038  # workspace of one batch slot
GPU_GB = 40.0
PLANNED_GB = 35.8  # planned peak: just under the strictest task's limit of 36
FP16_BASE_GB = 18.6  # weights and runtime, until the first observation tells
HEADROOM = 24  # requests: three standard deviations of a busy second's arrivals
SMALLEST_BATCH, OVERLOAD_BATCH, OVERLOAD_KV = 64, 320, 0.5


def reactive(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """A hand-written controller: follow the load, keep the worst case in memory, gamble only when overloaded.

    Batch follows queue and arrival rate with headroom, up to what fits if the next prompts are the longest there are;
    the KV budget is the largest that then fits (evicting costs recompute). When what waits and arrives is
    more than 1.2 times the safe batch, the controller stops planning for the longest prompt and opens the batch: most
    prompts are short. Drafts only at small batches, where decoding is bound by reading weights; INT8, which is faster
    than FP16 at every batch size on the measured kernels; no second GPU, which doubles the bill.
    """
    del key, carry
    # occupancy = (memory - base) / (GPU - base) tells what weights and runtime take, whatever the tier
    share = observation.kv_cache_occupancy
    seen = (observation.gpu_memory_used_gb - GPU_GB * share) / jnp.maximum(1.0 - share, 1e-3)
    base = jnp.where((observation.timestep > 0) & (share < 0.999), seen, FP16_BASE_GB)

    least_kv = KNOBS["kv_budget"].low
    safe = jnp.floor((PLANNED_GB - base) / (SLOT_GB + least_kv * LONGEST_REQUEST_GB))
    wanted = 4.0 * observation.queue_depth + observation.arrival_rate + HEADROOM
    overloaded = observation.queue_depth + observation.arrival_rate > 1.2 * safe
    batch = jnp.where(overloaded, OVERLOAD_BATCH, jnp.minimum(jnp.maximum(wanted, SMALLEST_BATCH), safe))
    batch = jnp.clip(batch, 1, KNOBS["batch_size"].high)
    fitting = (PLANNED_GB - base - SLOT_GB * batch) / (batch * LONGEST_REQUEST_GB)
    return ServeAction(
        kv_budget=jnp.where(overloaded, OVERLOAD_KV, jnp.clip(fitting, least_kv, 1.0)),
        spec_length=jnp.where(batch <= 8, 2, 0),
        batch_size=batch.astype(jnp.int32),
        prefill_disagg=False,
        quant_tier=1,
    )
