"""Policies learned by ``training/``, as plain jnp: what a network's outputs mean, and the forward pass.

``observation -> features -> MLP -> one head a knob -> ServeAction``; a network with memory (``policies.memory``) reads
its history and hidden state beside the features. Training uses the same features and heads, so a policy acts in a
user's rollout exactly as it did when it was evaluated. Needs neither flax nor optax nor orbax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from inferencegym_jax.encoding import History, normalise, values_from_box
from inferencegym_jax.episodes.policy import Policy, with_carry
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS, Knob, ServeAction, ServeObservation
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.policies.layout import HEAD_SIZES, continuous, head_sizes
from inferencegym_jax.policies.memory import GRU, NetworkCarry, gru_inputs, gru_step

FEATURE_CLIP = 5.0  # standard deviations; beyond it a feature says no more
# of a normalised observation: a field that hardly moves must not throw the network far off when it does
VARIANCE_FLOOR = 1e-2

HEAD_SIZE = sum(HEAD_SIZES.values())
"""Outputs of the actor, over all knobs."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ObservationStatistics:
    """Running mean and variance of the features: normalised observations, with their history where there is one."""

    count: jax.Array  # float32, observations seen
    mean: jax.Array  # float32[features]
    variance: jax.Array  # float32[features]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyNetwork:
    """All that a trained policy is.

    Attributes:
        layers: (weights float32[in, out], bias float32[out]) of each layer, tanh between them; the first takes the
            features and after them the hidden state.
        log_std: float32[numbers], of the Gaussian positions of the knobs that are numbers.
        statistics: of the features seen in training.
        gru: the recurrent layer, None for a network without.
        history: what the features hold of earlier observations, None for nothing.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    log_std: jax.Array
    statistics: ObservationStatistics
    gru: GRU | None = None
    history: History | None = field(default=None, metadata={"static": True})

    @property
    def numbers(self) -> int:
        """Numbers of one observation, without its history."""
        return self.statistics.mean.shape[-1] // (1 if self.history is None else self.history.copies)

    @property
    def has_memory(self) -> bool:
        """Whether the network carries anything from second to second."""
        return self.gru is not None or self.history is not None


def standardise(normalised: jax.Array, statistics: ObservationStatistics) -> jax.Array:
    """What a network sees of normalised observations: mean 0, variance 1, within +-5; of the
    same shape."""
    scale = jax.lax.rsqrt(jnp.maximum(statistics.variance, VARIANCE_FLOOR))
    return jnp.clip((normalised - statistics.mean) * scale, -FEATURE_CLIP, FEATURE_CLIP)


def split_heads(outputs: jax.Array, knobs: Mapping[str, Knob] = KNOBS) -> dict[str, jax.Array]:
    """The actor's outputs by knob: float32[..., HEAD_SIZE] -> name -> float32[..., size]."""
    parts, start = {}, 0
    for name, size in head_sizes(knobs).items():
        parts[name] = outputs[..., start : start + size]
        start += size
    return parts


def position(logits: jax.Array) -> jax.Array:
    """Mean position in (-1, 1) of a continuous knob, float32[...], from its head's output float32[..., 1].

    tanh keeps it off the edges, beyond which every sample would be clipped to one action and nothing more be learned.
    """
    return jnp.tanh(logits[..., 0])


def decode(raw: jax.Array) -> ServeAction:
    """The action that a raw vector stands for.

    Args:
        raw: float32[..., knobs] in the order of ``KNOBS``: for a number its position on the knob's scale, clipped to
            [-1, 1], for a choice its index, for a switch 0 or 1.
    """
    return ServeAction(**decode_knobs(raw, KNOBS))


def decode_knobs(raw: jax.Array, knobs: Mapping[str, Knob]) -> dict[str, jax.Array]:
    """``decode`` for any table of knobs: the value of each, by name."""
    columns = []
    for i, knob in enumerate(knobs.values()):
        value = raw[..., i]
        if knob.kind == "choice":
            value = 2.0 * (value + 0.5) / len(knob.choices) - 1.0
        elif knob.kind == "bool":
            value = value - 0.5
        columns.append(value)
    return values_from_box(jnp.stack(columns, axis=-1), knobs)


def mode(outputs: jax.Array, knobs: Mapping[str, Knob] = KNOBS) -> jax.Array:
    """The most likely raw action, float32[..., knobs], of the actor's outputs."""
    parts = []
    for name, logits in split_heads(outputs, knobs).items():
        if knobs[name].kind == "choice":
            parts.append(jnp.argmax(logits, axis=-1).astype(jnp.float32))
        elif knobs[name].kind == "bool":
            parts.append((logits[..., 0] > 0).astype(jnp.float32))
        else:
            parts.append(position(logits))
    return jnp.stack(parts, axis=-1)


def sample(outputs: jax.Array, log_std: jax.Array, key: jax.Array, knobs: Mapping[str, Knob] = KNOBS) -> jax.Array:
    """A raw action drawn from the actor's distribution.

    Args:
        outputs: float32[..., HEAD_SIZE].
        log_std: float32[numbers].
        key: the policy's key of (seed, step), batched like ``outputs``.
        knobs: that the actor sets.

    Returns:
        float32[..., knobs]; Gaussian positions are not clipped.
    """
    normals, uniforms = _draws(key, knobs)
    parts, at = [], 0
    for name, logits in split_heads(outputs, knobs).items():
        if knobs[name].kind == "choice":
            cumulative = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)[..., :-1]
            parts.append((next(uniforms)[..., None] > cumulative).sum(axis=-1).astype(jnp.float32))
        elif knobs[name].kind == "bool":
            parts.append((next(uniforms) < jax.nn.sigmoid(logits[..., 0])).astype(jnp.float32))
        else:
            parts.append(position(logits) + jnp.exp(log_std[..., at]) * next(normals))
            at += 1
    return jnp.stack(parts, axis=-1)


def _draws(key: jax.Array, knobs: Mapping[str, Knob]) -> tuple[Iterator[jax.Array], Iterator[jax.Array]]:
    """(standard normals, one a number; uniforms, one a choice or switch) of a policy's key.

    A normal takes a word of its own; two uniforms share one, the second its lower 16 bits: a bias of at most 2^-16.
    """
    numbers = len(continuous(knobs))
    others = len(knobs) - numbers
    shared = -(-others // 2)
    data = jax.random.key_data(key)
    words = counters.words(data[..., 0], data[..., 1], counters.POLICY, numbers + shared)
    uniform_words = [*words[numbers:], *(word << 16 for word in words[numbers:])]
    normals = (counters.normal(word) for word in words[:numbers])
    return normals, (counters.uniform(word) for word in uniform_words)


def first_carry(
    history: History | None, hidden_size: int, batch: tuple[int, ...] = (), numbers: int = FLAT_OBSERVATION_SIZE
) -> NetworkCarry | None:
    """What a network remembers at an episode's start; None of one without memory.

    Args:
        history: of its features.
        hidden_size: of its recurrent layer, 0 for none.
        batch: leading axes.
        numbers: of one observation.
    """
    if history is None and not hidden_size:
        return None
    seen = None if history is None else history.start(numbers, batch)
    return NetworkCarry(seen, jnp.zeros((*batch, hidden_size)) if hidden_size else None)


def see(
    history: History | None, observation: ServeObservation | jax.Array, carry: NetworkCarry | None
) -> tuple[jax.Array, Any]:
    """(features float32[..., features] before they are standardised, carry with the observation in its history).

    Args:
        history: of the features.
        observation: normalised here, or numbers float32[..., numbers] that a view on the environment gives.
        carry: what the network remembers.
    """
    x = normalise(observation) if isinstance(observation, ServeObservation) else observation
    if history is None or carry is None or carry.history is None:
        return x, carry
    x, seen = history.extend(carry.history, x)
    return x, dataclasses.replace(carry, history=seen)


def forward(
    network: PolicyNetwork, observation: ServeObservation | jax.Array, carry: Any = None
) -> tuple[jax.Array, Any]:
    """One second.

    Args:
        network: the weights.
        observation: of one environment or a batch of them; see ``see``.
        carry: what the network remembers; None at an episode's start, and always for a network without memory.

    Returns:
        (the actor's outputs float32[..., outputs], HEAD_SIZE of a network of knobs, the carry for the next second).
    """
    if network.has_memory and carry is None:
        batch = jnp.shape(observation.timestep) if isinstance(observation, ServeObservation) else observation.shape[:-1]
        size = 0 if network.gru is None else network.gru.size
        carry = first_carry(network.history, size, batch, network.numbers)
    x, carry = see(network.history, observation, carry)
    x = standardise(x, network.statistics)
    if network.gru is not None:
        hidden = gru_step(network.gru, gru_inputs(network.gru, x), carry.hidden)
        x, carry = jnp.concatenate([x, hidden], axis=-1), dataclasses.replace(carry, hidden=hidden)
    for weights, bias in network.layers[:-1]:
        x = jnp.tanh(x @ weights + bias)
    weights, bias = network.layers[-1]
    return x @ weights + bias, carry


def network_policy(network: PolicyNetwork, *, sample_actions: bool = False) -> Policy:
    """The policy of a network: its most likely action, or one drawn from its distribution.

    The network is the policy's weights (``episodes.policy.Policy``): all networks of a shape share one compiled
    rollout. What a network with memory remembers is the policy's carry.
    """
    return Partial(_sampled if sample_actions else _most_likely, network)


def start_of(network: PolicyNetwork) -> NetworkCarry | None:
    """What a network remembers at the start of one episode; None of one without memory."""
    return first_carry(network.history, 0 if network.gru is None else network.gru.size, numbers=network.numbers)


@with_carry(start_of)
def _most_likely(network: PolicyNetwork, key: jax.Array, observation: ServeObservation, carry: Any = None) -> Any:
    del key
    outputs, carry = forward(network, observation, carry)
    return decode(mode(outputs)), carry


@with_carry(start_of)
def _sampled(network: PolicyNetwork, key: jax.Array, observation: ServeObservation, carry: Any = None) -> Any:
    outputs, carry = forward(network, observation, carry)
    return decode(sample(outputs, network.log_std, key)), carry
