"""Policies by name: the fixed baseline, uniformly random, the best static action, a hand-written controller, the
trained ones that ship.

Every policy is ``policy(key, observation, carry) -> ServeAction`` for one environment and runs under jit and vmap.
Knobs that a task locks are forced to the baseline's value by the environment, so a policy may set all five.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.models import KNOBS, ServeAction, ServeObservation
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.numerics.compile_units import stage
from inferencegym_jax.policies.reactive_control import ReactivePlan, act, plan_for
from inferencegym_jax.registry import make
from inferencegym_jax.table.latency_table import load_table
from inferencegym_jax.tasks import calibration, get_task


def baseline(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """The fixed action of "naive vLLM defaults": batch 32, full KV budget, no drafts, FP16, one GPU."""
    del key, observation, carry
    return ServeAction()


def random(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """Every knob uniform over its range."""
    del observation, carry
    data = jax.random.key_data(key)
    first, second, third, fourth = _words(data[..., 0], data[..., 1])
    spec = jnp.asarray(KNOBS["spec_length"].choices, jnp.int32)
    low, high = KNOBS["kv_budget"].low, KNOBS["kv_budget"].high
    most = int(KNOBS["batch_size"].high)
    return ServeAction(
        kv_budget=low + (high - low) * counters.uniform(first),
        spec_length=spec[_below(second, len(KNOBS["spec_length"].choices))],
        batch_size=1 + _below(third, most),
        prefill_disagg=(fourth >> 31).astype(jnp.bool_),
        quant_tier=_below(fourth << 1, len(KNOBS["quant_tier"].choices)),
    )


@stage
def _words(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    return counters.hash4(high, low, counters.POLICY)


def _below(word: jax.Array, n: int) -> jax.Array:
    """int32 in 0 to n - 1 from the upper 16 bits of a word; the bias is at most n / 65536."""
    return (((word >> 16) * jnp.uint32(n)) >> 16).astype(jnp.int32)


@functools.cache
def static(action: ServeAction) -> Policy:
    """The policy that always takes one action (of Python numbers)."""

    def policy(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
        del key, observation, carry
        return action

    return policy


def best_static(task: int | str) -> Policy:
    """The static action with the highest mean score of an exhaustive search on the shipped table
    (``data/calibration.json``)."""
    return static(ServeAction(**calibration()["tasks"][get_task(task).name]["best_static"]["action"]))


def reactive(key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """``reactive_for`` on the shipped table, for whoever does not say which task: the plan of task 2 while the engine is
    seen to hold 16-bit weights, that of task 3 otherwise.

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
    with jax.ensure_compile_time_eval():  # the first call may come while a rollout is traced
        plans = [jax.tree.map(np.asarray, plan_for(table, make(task, table=table)[1])) for task in (2, 3)]
    heavy, light = table.base_memory_gb[:2]
    return (heavy + light) / 2.0, float(make(2)[1].oom_limit_gb), (plans[0], plans[1])
