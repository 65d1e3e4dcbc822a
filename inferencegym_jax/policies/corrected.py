"""A learned correction of the load-following controller: a network moves its thresholds, in units of capacity.

``observation -> relative -> network -> corrections -> plan, moved -> load_following.act -> action``. With all
corrections 0 it is the controller. Nothing in it is a task's own: the engine's numbers come from a table and a task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from inferencegym_jax.episodes.policy import Policy, with_carry
from inferencegym_jax.models import ServeAction, ServeObservation
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.policies.engine_units import Engine
from inferencegym_jax.policies.load_following import LoadPlan, Memory, act
from inferencegym_jax.policies.memory import NetworkCarry
from inferencegym_jax.policies.network import PolicyNetwork, decode, forward, mode, start_of
from inferencegym_jax.policies.relative import Seen, acted, relative

RANGES: dict[str, float] = {"lease": 0.7, "release": 0.5, "drafts": 1.0}
"""Correction -> how far it goes at a position of 1: of the logarithm of the load at which the second GPU is asked for
(downwards), of that below which it is given back (downwards), of the running requests that drafts are cut at
(upwards). batch_size and kv_budget stay the plan's: moving them by the second costs stability and wins nothing."""
CORRECTIONS = tuple(RANGES)


def corrected_plan(plan: LoadPlan, positions: jax.Array) -> LoadPlan:
    """The plan with its thresholds moved.

    Args:
        plan: settings, scalars or of a batch.
        positions: float32[..., corrections] in the order of ``CORRECTIONS``, clipped to [-1, 1].
    """
    at = {name: jnp.clip(positions[..., i], -1.0, 1.0) * RANGES[name] for i, name in enumerate(CORRECTIONS)}
    sooner, longer, more = jnp.exp(-at["lease"]), jnp.exp(-at["release"]), jnp.exp(at["drafts"])
    return plan.replace(
        up_load=plan.up_load * sooner,
        up_waiting=plan.up_waiting * sooner,
        up_running=plan.up_running * sooner,
        down_share=jnp.minimum(plan.down_share * longer, 1.0),
        few=plan.few * more,
        many=plan.many * more,
    )


def follow(
    engine: Engine, plan: LoadPlan, positions: jax.Array, observation: ServeObservation, memory: Memory
) -> tuple[ServeAction, Memory]:
    """The corrected controller's action of one second, and what it remembers.

    Args:
        engine: of one environment.
        plan: the settings that are corrected.
        positions: see ``corrected_plan``.
        observation: of one environment.
        memory: of the second before.
    """
    return act(engine, corrected_plan(plan, positions), jnp.full(1, jnp.nan), observation, memory)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CorrectedCarry:
    """What the corrected controller carries from second to second."""

    memory: Memory
    seen: Seen
    network: NetworkCarry | None = None


def corrected_policy(network: PolicyNetwork, plan: LoadPlan, engine: Engine) -> Policy:
    """The policy of a network of corrections on a plan, on a GPU and task.

    Args:
        network: reads ``relative`` numbers and gives a position for each of ``CORRECTIONS``.
        plan: the settings that it was trained to correct.
        engine: see ``engine_units.engine_of``.
    """
    return Partial(_corrected, network, plan.as_arrays(), engine)


def mean_positions(outputs: jax.Array) -> jax.Array:
    """Positions in (-1, 1) of the actor's outputs, float32[..., corrections]."""
    return jnp.tanh(outputs)


def sampled_positions(outputs: jax.Array, log_std: jax.Array, key: jax.Array) -> jax.Array:
    """Positions drawn around ``mean_positions``, not clipped, float32[..., corrections].

    Args:
        outputs: of the actor.
        log_std: float32[corrections].
        key: the policy's key of (seed, step), batched like ``outputs``.
    """
    data = jax.random.key_data(key)
    words = counters.words(data[..., 0], data[..., 1], counters.POLICY, outputs.shape[-1])
    normals = jnp.stack([counters.normal(word) for word in words], axis=-1)
    return mean_positions(outputs) + jnp.exp(log_std) * normals


def _start(network: PolicyNetwork, plan: LoadPlan, engine: Engine) -> CorrectedCarry:
    del plan, engine
    return CorrectedCarry(Memory.start(), Seen.start(), start_of(network))


@with_carry(_start)
def _corrected(
    network: PolicyNetwork,
    plan: LoadPlan,
    engine: Engine,
    key: jax.Array,
    observation: ServeObservation,
    carry: CorrectedCarry,
) -> tuple[ServeAction, Any]:
    del key
    numbers, seen = relative(engine, observation, carry.seen)
    outputs, after = forward(network, numbers, carry.network)
    action, memory = follow(engine, plan, mean_positions(outputs), observation, carry.memory)
    # trained where a second GPU is a replica; one that takes prefills alone is another thing, and stays unasked for
    leased = action.prefill_disagg & (jnp.asarray(engine.may_lease) > 0)
    return action.replace(prefill_disagg=leased), CorrectedCarry(memory, acted(seen, action), after)


def positions_policy(network: PolicyNetwork) -> Policy:
    """The corrections of a network as a policy of ``adapters.relative_views.CorrectedControl``: relative numbers in,
    positions out."""
    return Partial(_positions, network)


@with_carry(start_of)
def _positions(network: PolicyNetwork, key: jax.Array, observation: jax.Array, carry: Any = None) -> Any:
    del key
    outputs, carry = forward(network, observation, carry)
    return mean_positions(outputs), carry


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RelativeCarry:
    """What a network of knobs that reads relative numbers carries from second to second."""

    seen: Seen
    network: NetworkCarry | None = None


def relative_policy(network: PolicyNetwork, engine: Engine) -> Policy:
    """The policy of a network that reads ``relative`` numbers and sets the knobs itself.

    Args:
        network: the weights.
        engine: see ``engine_units.engine_of``.
    """
    return Partial(_relative, network, engine)


def _start_relative(network: PolicyNetwork, engine: Engine) -> RelativeCarry:
    del engine
    return RelativeCarry(Seen.start(), start_of(network))


@with_carry(_start_relative)
def _relative(
    network: PolicyNetwork, engine: Engine, key: jax.Array, observation: ServeObservation, carry: RelativeCarry
) -> tuple[ServeAction, Any]:
    del key
    numbers, seen = relative(engine, observation, carry.seen)
    outputs, after = forward(network, numbers, carry.network)
    action = decode(mode(outputs))
    return action, RelativeCarry(acted(seen, action), after)
