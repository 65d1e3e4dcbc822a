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
import numpy as np

from inferencegym_jax import registry
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import KNOBS, Knob, ServeAction, ServeObservation
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.policies.reactive_control import ReactivePlan, act
from inferencegym_jax.policies.reactive_plans import plan_for
from inferencegym_jax.table.latency_table import load_table


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


def reactive(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """``reactive_for`` on the shipped table where nobody says which task: the plan of task 2 while the engine is seen
    to hold 16-bit weights, that of task 3 otherwise.

    ``reactive_for(table, params)`` plans for a task, and for a table of one's own.
    """
    base_memory, gpu_memory, plans = _shipped_plans()
    # occupancy = (memory - base) / (GPU - base) tells what weights and runtime take, whatever the tier
    share = observation.kv_cache_occupancy
    base = (observation.gpu_memory_used_gb - gpu_memory * share) / jnp.maximum(1.0 - share, 1e-3)
    lighter = (observation.timestep > 0) & (share < 0.999) & (base < base_memory)
    plan = jax.tree.map(lambda heavy, light: jnp.where(lighter, light, heavy), *plans)
    action = act(plan, key, observation, carry)
    return action.replace(quant_tier=plans[1].quant_tier)


@functools.cache
def _shipped_plans() -> tuple[float, float, tuple[ReactivePlan, ReactivePlan]]:
    """Memory (GB) between that of 16-bit weights and the next lighter ones, that of the tasks' GPU, and the plans of
    tasks 2 and 3 as NumPy arrays."""
    table = load_table()
    plans = [jax.tree.map(np.asarray, plan_for(table, registry.make(task, table=table)[1])) for task in (2, 3)]
    heavy, light = table.base_memory_gb[:2]
    return (heavy + light) / 2.0, float(registry.make(2)[1].oom_limit_gb), (plans[0], plans[1])
