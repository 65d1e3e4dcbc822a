"""What memory changes in training: inputs that hold the past, and minibatches of sequences instead of samples.

``observation, carry -> remember -> networks' inputs, carry`` while a rollout is collected, as the library's policies do
it; ``batch -> pick -> with_hidden -> networks' inputs`` in the update, where the recurrent layer runs again over each
sequence from the hidden state that stood at its start.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.numerics.select import select
from inferencegym_jax.policies.memory import gru_inputs, gru_sequence, gru_step
from inferencegym_jax.policies.network import ObservationStatistics, first_carry, see, standardise
from training.config import TrainConfig
from training.networks import gru_of, matmul


class Batch(NamedTuple):
    """A rollout as the losses take it; leading axes (steps, environments)."""

    x: jax.Array  # standardised features
    raw: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    target: jax.Array
    is_first: jax.Array | None = None  # bool, the step is its episode's first; with a recurrent layer only
    hidden: jax.Array | None = None  # float32[environments, hidden], before the first step; likewise


def remember(
    config: TrainConfig, variables: Any, statistics: ObservationStatistics, observation: Any, carry: Any
) -> tuple[jax.Array, jax.Array, Any]:
    """What the networks see of one more second of every environment.

    Returns:
        (features before they are standardised float32[environments, features], the networks' inputs
        float32[environments, features + hidden], the carry with the second in it).
    """
    features, carry = see(config.observed, observation, carry)
    inputs = standardise(features, statistics)
    gru = gru_of(variables)
    if gru is not None:
        hidden = gru_step(gru, gru_inputs(gru, inputs), carry.hidden)
        inputs, carry = jnp.concatenate([inputs, hidden], axis=-1), dataclasses.replace(carry, hidden=hidden)
    return features, inputs, carry


def forget(config: TrainConfig, carry: Any, is_first: jax.Array) -> Any:
    """The carry, a fresh one where an episode starts."""
    return select(is_first, first_carry(config.observed, config.hidden_size, is_first.shape, config.numbers), carry)


def with_hidden(variables: Any, batch: Batch) -> jax.Array:
    """The networks' inputs of a minibatch, float32[samples, features + hidden]: of one with memory the sequences are
    run through the recurrent layer from where they started."""
    gru = gru_of(variables)
    if gru is None or batch.hidden is None or batch.is_first is None:
        return batch.x
    steps, environments, features = batch.x.shape
    x = batch.x.reshape(-1, features)
    inputs = (matmul(x, gru.inputs) + gru.bias).reshape(steps, environments, -1)
    hidden = gru_sequence(gru, inputs, batch.hidden, batch.is_first)
    return jnp.concatenate([x, hidden.reshape(-1, gru.size)], axis=-1)


def in_blocks(config: TrainConfig, x: jax.Array, axis: int) -> jax.Array:
    """The axis of environments as two, (blocks, environments of a block)."""
    return x.reshape(*x.shape[:axis], -1, config.column_block, *x.shape[axis + 1 :])


def mean_by_unit(config: TrainConfig, x: jax.Array) -> jax.Array:
    """Means of float32[steps, environments] over what each unit of which minibatches are made holds: a step, or with a
    recurrent layer a place in every block of environments."""
    return in_blocks(config, x, 1).mean(axis=(0, 1)) if config.has_gru else x.mean(axis=1)


def pick(config: TrainConfig, batch: Batch, chosen: jax.Array) -> Batch:
    """The minibatch of some units: samples, or with a recurrent layer sequences (steps, environments)."""
    if not config.has_gru or batch.hidden is None:
        # flat: two-dimensional matrix products run much faster on a CPU than three-dimensional ones
        return jax.tree.map(lambda x: x[chosen].reshape(-1, *x.shape[2:]), batch)

    def environments(x: jax.Array, axis: int) -> jax.Array:
        picked = jnp.take(in_blocks(config, x, axis), chosen, axis=axis + 1)
        return picked.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])

    parts = jax.tree.map(lambda x: environments(x, 1), batch._replace(hidden=None))
    return parts._replace(hidden=environments(batch.hidden, 0))
