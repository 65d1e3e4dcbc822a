"""A controller of the kind that engineers write: averages, thresholds, hysteresis, hold. Its thresholds are a plan's.

``observation, averages -> second GPU, drafts``. The load is what arrives in units of one GPU's capacity; a second GPU
is asked for above a threshold of it, of the waiting or of the running, and given back once all are below for a while;
a plan may begin with it, as nobody knows the load before the first second and a line grows while it starts.
Drafts get shorter as more requests run. ``training.headroom`` searches plans; those of autoscalers as shipped stand
there too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.episodes.policy import with_carry
from inferencegym_jax.models import Scalar, ServeAction, ServeObservation
from inferencegym_jax.policies.engine_units import Engine

NEVER = 1e9  # a threshold that nothing reaches
MOST_SLOTS = 512.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoadPlan:
    """Settings of the controller; scalars, or one an environment."""

    average_s: Scalar = 30.0  # float32, span of the load's moving average
    up_load: Scalar = 0.8  # float32, share of one GPU's capacity above which the second is asked for
    down_share: Scalar = 0.8  # float32, of each threshold, below which it is given back
    up_waiting: Scalar = NEVER  # float32, requests that wait
    up_running: Scalar = NEVER  # float32, requests that run on a GPU
    hold_s: Scalar = 60.0  # float32, seconds for which all must be below
    every_s: Scalar = 1.0  # float32, seconds between two looks
    few: Scalar = 16.0  # float32, running on a GPU, averaged, below which drafts are long
    many: Scalar = 64.0  # float32, from which there are none
    long_drafts: Scalar = 0  # int32
    short_drafts: Scalar = 0  # int32
    draft_average_s: Scalar = 5.0  # float32, span of the moving average of the running
    margin: Scalar = 0.1  # float32, hysteresis of ``few`` and ``many``, as a share
    batch_size: Scalar = 256  # int32
    kv_budget: Scalar = 1.0  # float32
    slots_share: Scalar = 0.0  # float32, of the most that run within the TPOT objective, in batch_size's place; 0: none
    least_slots: Scalar = 1.0  # float32, fewest that ``slots_share`` leaves: where one is too slow, few are no quicker
    # float32, seconds at the start for which the second GPU is asked for, before a load is known, where it takes longer
    # to start than a first token may take
    first_s: Scalar = 0.0

    def replace(self, **changes: Any) -> LoadPlan:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_arrays(self) -> LoadPlan:
        """Fields as NumPy arrays of their dtypes."""
        whole = ("long_drafts", "short_drafts", "batch_size")
        return LoadPlan(
            **{
                f.name: np.asarray(getattr(self, f.name), np.int32 if f.name in whole else np.float32)
                for f in dataclasses.fields(self)
            }
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What the controller remembers from one second to the next."""

    step: Scalar = 0  # int32
    load: Scalar = 0.0  # float32, averaged, share of one GPU's capacity
    running: Scalar = 0.0  # float32, averaged, on a GPU
    below_s: Scalar = 0.0  # float32, for which all have been below
    leased: Scalar = False  # bool
    drafts: Scalar = 0  # int32, 0 none, 1 short, 2 long

    @classmethod
    def start(cls) -> Memory:
        """Before the first second."""
        return cls(
            *(np.asarray(x) for x in (np.int32(0), np.float32(0), np.float32(0), np.float32(0), False, np.int32(2)))
        )


def act(
    engine: Engine, plan: LoadPlan, forecast: Any, observation: ServeObservation, memory: Memory
) -> tuple[ServeAction, Memory]:
    """One decision.

    Args:
        engine: see ``engine_units.engine_of``.
        plan: the settings.
        forecast: float32[seconds], the load to come, in place of the averaged one where it is a number; or [1], NaN.
        observation: of one environment.
        memory: of the second before.
    """
    age = memory.step.astype(jnp.float32)
    weight = jnp.maximum(1.0 / plan.average_s, 1.0 / (age + 1.0))
    now = engine.load(observation)
    load = memory.load + weight * (now - memory.load)
    foreseen = forecast[jnp.minimum(memory.step, forecast.shape[0] - 1)]
    seen = jnp.where(jnp.isnan(foreseen), load, foreseen)

    gpus = 1.0 + memory.leased
    running_now = engine.running(observation)
    quick = jnp.maximum(1.0 / plan.draft_average_s, 1.0 / (age + 1.0))
    running = memory.running + quick * (running_now - memory.running)

    waiting = observation.queue_depth
    pressure = jnp.maximum(
        jnp.maximum(seen / plan.up_load, waiting / plan.up_waiting), running * gpus / plan.up_running
    )
    looks = jnp.mod(age, plan.every_s) < 1.0
    up = looks & (pressure > 1.0)
    below = jnp.where(pressure < plan.down_share, memory.below_s + 1.0, 0.0)
    down = looks & (below >= plan.hold_s)
    # a line grows while a second GPU starts; where it starts sooner than a first token is late, asking then is enough
    starts_late = 1000.0 * engine.start_s > engine.ttft_objective_ms(observation)
    leased = jnp.where(memory.leased, ~down, up) | ((age < plan.first_s) & starts_late)

    few = plan.few * jnp.where(memory.drafts >= 2, 1.0 + plan.margin, 1.0)
    many = jnp.maximum(plan.few, plan.many) * jnp.where(memory.drafts >= 1, 1.0 + plan.margin, 1.0)
    drafts = jnp.where(running < few, 2, jnp.where(running < many, 1, 0)).astype(jnp.int32)
    length = jnp.where(drafts == 2, plan.long_drafts, jnp.where(drafts == 1, plan.short_drafts, 0))
    fewest = jnp.clip(plan.least_slots, 1.0, MOST_SLOTS)
    slots = jnp.clip(jnp.round(plan.slots_share * engine.slots(observation)), fewest, MOST_SLOTS).astype(jnp.int32)
    batch = jnp.asarray(plan.batch_size, jnp.int32)
    action = ServeAction(
        kv_budget=jnp.asarray(plan.kv_budget, jnp.float32),
        spec_length=length.astype(jnp.int32),
        batch_size=jnp.where(plan.slots_share > 0, slots, batch),
        prefill_disagg=leased,
        quant_tier=jnp.int32(0),
    )
    return action, Memory(memory.step + 1, load, running, below, leased, drafts)


def _nothing_seen(engine: Engine, plan: LoadPlan) -> Memory:
    del engine, plan
    return Memory.start()


@with_carry(_nothing_seen)
def follow_load(
    engine: Engine, plan: LoadPlan, key: jax.Array, observation: ServeObservation, memory: Memory
) -> tuple[ServeAction, Memory]:
    """The controller as a policy: ``jax.tree_util.Partial(follow_load, engine, plan)``, which carries its ``Memory``.

    Args:
        engine: see ``engine_units.engine_of``.
        plan: the settings, as arrays.
        key: not used.
        observation: of one environment.
        memory: of the second before.
    """
    del key
    return act(engine, plan, jnp.full(1, jnp.nan), observation, memory)
