"""A learned correction of the reactive controller of closed-loop tasks: a network moves slots, drafts, the second GPU
and how far the memory is filled.

``observation -> network -> corrections -> reactive_control.act, moved -> action``. With all corrections 0 it is the
controller. The KV budget is the largest that holds the traffic's longest prompts at the slots and drafts asked for,
within the task's limit, or as far beyond it as is asked for, up to what the GPU has: no correction runs out of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from inferencegym_jax.episodes.policy import Policy, with_carry
from inferencegym_jax.models import KNOBS, EnvParams, ServeAction, ServeObservation
from inferencegym_jax.policies.corrected import mean_positions, sampled_positions
from inferencegym_jax.policies.memory import NetworkCarry
from inferencegym_jax.policies.network import PolicyNetwork, forward, start_of
from inferencegym_jax.policies.reactive_control import SIZES, ReactivePlan, act
from inferencegym_jax.policies.reactive_plans import budgets_by_drafts, plan_for
from inferencegym_jax.table.latency_table import LatencyTable

QUEUE_RANGES: dict[str, float] = {"slots": 1.5, "drafts": 2.0, "second_gpu": 1.0, "memory": 1.0}
"""Correction -> how far it goes at a position of 1: of the logarithm of the batch size; of the place among the draft
lengths; a second GPU is asked for above ``ASKED``; of the memory between the task's limit and the GPU's."""
QUEUE_CORRECTIONS = tuple(QUEUE_RANGES)
ASKED = 0.3  # position from which the second GPU is asked for


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QueuePlan:
    """The controller that is corrected, and what memory holds beside it.

    Attributes:
        reactive: the controller's plan.
        lengths: int32[lengths], drafts that may be chosen, rising.
        budgets: float32[2, lengths, 512], the largest KV budget within the task's limit and within the GPU's memory, by
            batch size from 1; the least that there is where none fits.
        most: float32[2, lengths], the most slots that fit, likewise.
        may_lease: bool, the task leaves the second GPU to the agent.
    """

    reactive: ReactivePlan
    lengths: Any
    budgets: Any
    most: Any
    may_lease: Any


def queue_plan_for(table: LatencyTable, params: EnvParams) -> QueuePlan:
    """The plan of a closed-loop task on a table.

    Raises:
        ValueError: no action fits into the task's memory, or the task is open-loop.
    """
    if int(params.engine.open_loop):
        raise ValueError("dynamics = 'open_loop': this controller follows closed-loop tasks")
    reactive = jax.tree.map(np.asarray, plan_for(table, params))
    lengths, budgets = budgets_by_drafts(table, params, int(reactive.quant_tier))
    most = np.where(budgets > 0, np.arange(1, SIZES + 1), 0).max(axis=2).astype(np.float32)
    usable = most[0] > 0
    leases = np.asarray(params.active)[list(KNOBS).index("prefill_disagg")]
    budgets = np.maximum(budgets[:, usable], np.float32(KNOBS["kv_budget"].low))
    return QueuePlan(reactive, lengths[usable], budgets, most[:, usable], np.bool_(leases))


def follow_queue(plan: QueuePlan, positions: jax.Array, observation: ServeObservation) -> ServeAction:
    """The corrected controller's action of one second.

    Args:
        plan: see ``queue_plan_for``.
        positions: float32[..., corrections] in the order of ``QUEUE_CORRECTIONS``, clipped to [-1, 1].
        observation: of one environment.
    """
    plan = jax.tree.map(jnp.asarray, plan)
    at = {name: jnp.clip(positions[..., i], -1.0, 1.0) * QUEUE_RANGES[name] for i, name in enumerate(QUEUE_CORRECTIONS)}
    own = act(plan.reactive, jnp.zeros(2, jnp.uint32), observation)
    place = jnp.round(jnp.searchsorted(plan.lengths, own.spec_length) + at["drafts"])
    place = jnp.clip(place, 0, plan.lengths.shape[0] - 1).astype(jnp.int32)
    filled = jnp.maximum(at["memory"], 0.0)

    def between(limits: jax.Array) -> jax.Array:
        return limits[0] + filled * (limits[1] - limits[0])

    most = jnp.floor(between(plan.most[:, place]))
    batch = jnp.clip(jnp.round(own.batch_size * jnp.exp(at["slots"])), 1.0, most).astype(jnp.int32)
    return ServeAction(
        kv_budget=between(plan.budgets[:, place, batch - 1]),
        spec_length=plan.lengths[place],
        batch_size=batch,
        prefill_disagg=(at["second_gpu"] > ASKED) & plan.may_lease,
        quant_tier=own.quant_tier,
    )


def corrected_queue_policy(network: PolicyNetwork, plan: QueuePlan, *, sample_actions: bool = False) -> Policy:
    """The policy of a network of corrections on a plan.

    Args:
        network: reads the observation and gives a position for each of ``QUEUE_CORRECTIONS``.
        plan: of the table and the task where it acts.
        sample_actions: draw the corrections from the policy's distribution instead of taking the most likely ones.
    """
    return Partial(_sampled if sample_actions else _most_likely, network, plan)


def _start(network: PolicyNetwork, plan: QueuePlan) -> NetworkCarry | None:
    del plan
    return start_of(network)


@with_carry(_start)
def _most_likely(
    network: PolicyNetwork, plan: QueuePlan, key: jax.Array, observation: ServeObservation, carry: Any = None
) -> tuple[ServeAction, Any]:
    del key
    outputs, after = forward(network, observation, carry)
    return follow_queue(plan, mean_positions(outputs), observation), after


@with_carry(_start)
def _sampled(
    network: PolicyNetwork, plan: QueuePlan, key: jax.Array, observation: ServeObservation, carry: Any = None
) -> tuple[ServeAction, Any]:
    outputs, after = forward(network, observation, carry)
    return follow_queue(plan, sampled_positions(outputs, network.log_std, key), observation), after
