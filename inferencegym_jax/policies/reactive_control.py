"""A hand-written controller: follow the load, keep the worst case in memory.

``table, params -> ReactivePlan -> policy``. What the controller knows of a GPU and a model is read off its latency
table when the plan is made (``reactive_plans``); what it then does in a second is a few comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import KNOBS, Scalar, ServeAction, ServeObservation

SIZES = int(KNOBS["batch_size"].high)
DEVIATIONS = 3.0  # of a second's Poisson arrivals, kept as headroom above their mean


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReactivePlan:
    """What the controller is told of table and task.

    Attributes:
        least_batch: float32, never fewer slots.
        most_batch: float32, never more.
        busy_rate: float32, requests/s above which a burst is on, and all slots are open; infinite where none is known.
        queue_weight: float32, slots for each waiting request: 1000 over the strictest TTFT objective (ms), at least 1.
        kv_budget: float32[512], by batch size from 1.
        spec_length: int32[512], by batch size from 1, or by requests/s from 1 where ``by_rate`` is set.
        quant_tier: int32.
        by_rate: bool.
    """

    least_batch: Scalar
    most_batch: Scalar
    busy_rate: Scalar
    queue_weight: Scalar
    kv_budget: Scalar
    spec_length: Scalar
    quant_tier: Scalar
    by_rate: Scalar

    @classmethod
    def empty(cls) -> ReactivePlan:
        """NumPy zeros of a plan's shapes and types, which ``act`` must not be given."""
        one, many = np.float32(0), np.zeros(SIZES, np.float32)
        return cls(one, one, one, one, many, many.astype(np.int32), np.int32(0), np.bool_(False))


def act(plan: ReactivePlan, key: jax.Array, observation: ServeObservation, carry: Any = None) -> ServeAction:
    """The controller: as many slots as requests are expected, with headroom, more where some wait, all of them while
    a burst is on, within the plan's bounds; KV budget and drafts as planned; no second GPU, which doubles the bill."""
    del key, carry
    headroom = DEVIATIONS * jnp.sqrt(observation.arrival_rate)
    wanted = plan.queue_weight * observation.queue_depth + observation.arrival_rate + headroom
    # the average lags behind a burst by ten seconds: waiting for it would leave some in the queue in each of them
    wanted = jnp.where(observation.arrival_rate > plan.busy_rate, plan.most_batch, wanted)
    batch = jnp.clip(jnp.floor(wanted), plan.least_batch, plan.most_batch).astype(jnp.int32)
    rate = jnp.clip(jnp.ceil(observation.arrival_rate), 1, SIZES).astype(jnp.int32)
    return ServeAction(
        kv_budget=plan.kv_budget[batch - 1],
        spec_length=plan.spec_length[jnp.where(plan.by_rate, rate, batch) - 1],
        batch_size=batch,
        prefill_disagg=False,
        quant_tier=plan.quant_tier,
    )
