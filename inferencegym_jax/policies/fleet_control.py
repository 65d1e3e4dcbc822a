"""A fleet's learned policies: a network that sets the knobs itself, or one that corrects a rule in GPUs.

``FleetObservation -> fleet_numbers -> network -> knobs``, or ``-> corrections -> rule, moved -> FleetAction``. With all
corrections 0 the second is the rule. Nothing in either is a model's, a GPU's or a pool's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from inferencegym_jax.episodes.policy import Policy, with_carry
from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction
from inferencegym_jax.fleet.observation import FleetObservation
from inferencegym_jax.fleet.rules import RING, RulePlan, act_by_rule, rule_start
from inferencegym_jax.policies.fleet_numbers import fleet_numbers
from inferencegym_jax.policies.memory import NetworkCarry
from inferencegym_jax.policies.network import PolicyNetwork, decode_knobs, forward, mode, start_of

FLEET_RANGES: dict[str, float] = {"spare": 2.0, "hold": math.log(6.0)}
"""Correction -> how far it goes at a position of 1: GPUs more than the load needs at the rule's target; the logarithm
of the window in which the most that was recommended holds."""
FLEET_CORRECTIONS = tuple(FLEET_RANGES)


def corrected_rule(plan: RulePlan, positions: jax.Array) -> RulePlan:
    """The rule with its settings moved.

    Args:
        plan: settings of a rule by the token load, scalars or of a batch.
        positions: float32[..., corrections] in the order of ``FLEET_CORRECTIONS``, clipped to [-1, 1].
    """
    at = {name: jnp.clip(positions[..., i], -1.0, 1.0) * FLEET_RANGES[name] for i, name in enumerate(FLEET_RANGES)}
    hold = jnp.round(jnp.asarray(plan.hold, jnp.float32) * jnp.exp(at["hold"]))
    return plan.replace(spare=plan.spare + at["spare"], hold=jnp.clip(hold, 1, RING).astype(jnp.int32))


def follow_rule(
    plan: RulePlan, positions: jax.Array, seen: FleetObservation, memory: dict[str, jax.Array]
) -> tuple[FleetAction, dict[str, jax.Array]]:
    """The corrected rule's action of one decision, and what it remembers.

    Args:
        plan: the settings that are corrected.
        positions: see ``corrected_rule``.
        seen: of one fleet.
        memory: ``rule_start``'s, of the decision before.
    """
    return act_by_rule(corrected_rule(plan, positions), jnp.zeros(2, jnp.uint32), seen, memory)


def knobs_of(raw: jax.Array) -> FleetAction:
    """The action that a raw vector, a number for each of ``FLEET_KNOBS``, stands for; see ``network.decode``."""
    return FleetAction(**decode_knobs(raw, FLEET_KNOBS))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetCarry:
    """What a corrected rule carries from one decision to the next."""

    memory: dict[str, jax.Array]
    network: NetworkCarry | None = None


def _start(network: PolicyNetwork, plan: RulePlan) -> FleetCarry:
    return FleetCarry(rule_start(plan), start_of(network))


@with_carry(_start)
def _corrected(
    network: PolicyNetwork, plan: RulePlan, key: jax.Array, seen: FleetObservation, carry: FleetCarry
) -> tuple[FleetAction, FleetCarry]:
    del key
    outputs, after = forward(network, fleet_numbers(seen), carry.network)
    action, memory = follow_rule(plan, jnp.tanh(outputs), seen, carry.memory)
    return action, FleetCarry(memory, after)


def corrected_rule_policy(network: PolicyNetwork, plan: RulePlan) -> Policy:
    """The policy of a network of corrections on a rule.

    Args:
        network: reads ``fleet_numbers`` and gives a position for each of ``FLEET_CORRECTIONS``.
        plan: the rule that it was trained to correct.
    """
    return Partial(_corrected, network, plan.as_arrays())


@with_carry(start_of)
def _sizes(network: PolicyNetwork, key: jax.Array, seen: FleetObservation, carry: Any = None) -> Any:
    del key
    outputs, carry = forward(network, fleet_numbers(seen), carry)
    return knobs_of(mode(outputs, FLEET_KNOBS)), carry


def fleet_network_policy(network: PolicyNetwork) -> Policy:
    """The policy of a network that reads ``fleet_numbers`` and sets ``FLEET_KNOBS``."""
    return Partial(_sizes, network)


@with_carry(start_of)
def _view_positions(network: PolicyNetwork, key: jax.Array, numbers: jax.Array, carry: Any = None) -> Any:
    del key
    outputs, carry = forward(network, numbers, carry)
    return jnp.tanh(outputs), carry


@with_carry(start_of)
def _view_sizes(network: PolicyNetwork, key: jax.Array, numbers: jax.Array, carry: Any = None) -> Any:
    del key
    outputs, carry = forward(network, numbers, carry)
    return knobs_of(mode(outputs, FLEET_KNOBS)), carry


def view_policy(network: PolicyNetwork, *, corrects: bool) -> Policy:
    """A network's policy of ``adapters.fleet_views``: numbers in; positions out where it corrects, else knobs."""
    return Partial(_view_positions if corrects else _view_sizes, network)
