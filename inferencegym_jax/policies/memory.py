"""What a network remembers: the history of its observations, and the hidden state of a recurrent layer.

``observation, carry -> History -> standardised features -> GRU -> features and hidden state -> heads``. Either part may
be absent. Training takes the same functions, over whole sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from inferencegym_jax.encoding import HistoryCarry


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GRU:
    """Weights of a gated recurrent unit with a reset gate r, an update gate z and a candidate n, in that order.

    ``r = s(x W_r + h U_r + b_r)``, ``z = s(x W_z + h U_z + b_z)``, ``n = tanh(x W_n + b_n + r (h U_n + c))``,
    ``h' = (1 - z) n + z h`` with the logistic s (Cho et al., 2014, in the form of cuDNN).

    Attributes:
        inputs: float32[features, 3 hidden], W.
        recurrent: float32[hidden, 3 hidden], U.
        bias: float32[3 hidden], b.
        candidate_bias: float32[hidden], c.
    """

    inputs: jax.Array
    recurrent: jax.Array
    bias: jax.Array
    candidate_bias: jax.Array

    @property
    def size(self) -> int:
        """Numbers of the hidden state."""
        return self.recurrent.shape[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NetworkCarry:
    """What a network with memory carries from second to second; leading axes (...)."""

    history: HistoryCarry | None = None
    hidden: jax.Array | None = None  # float32[..., hidden]


def gru_inputs(gru: GRU, x: jax.Array) -> jax.Array:
    """``x W + b`` of features float32[..., features], for any number of seconds at once: float32[..., 3 hidden]."""
    return x @ gru.inputs + gru.bias


def gru_step(gru: GRU, inputs: jax.Array, hidden: jax.Array) -> jax.Array:
    """The hidden state after a second.

    Args:
        gru: the weights.
        inputs: float32[..., 3 hidden], ``gru_inputs`` of the second.
        hidden: float32[..., hidden], before it; zeros at an episode's start.
    """
    from_hidden = hidden @ gru.recurrent
    size = gru.size
    gates = jax.nn.sigmoid(inputs[..., : 2 * size] + from_hidden[..., : 2 * size])
    reset, update = gates[..., :size], gates[..., size:]
    candidate = jnp.tanh(inputs[..., 2 * size :] + reset * (from_hidden[..., 2 * size :] + gru.candidate_bias))
    return candidate + update * (hidden - candidate)


def gru_sequence(gru: GRU, inputs: jax.Array, hidden: jax.Array, is_first: jax.Array) -> jax.Array:
    """The hidden states of a sequence, forgotten where an episode starts.

    Args:
        gru: the weights.
        inputs: float32[steps, environments, 3 hidden], ``gru_inputs`` of every step.
        hidden: float32[environments, hidden], before the first step.
        is_first: bool[steps, environments], the step is an episode's first.

    Returns:
        float32[steps, environments, hidden], after each step.
    """

    def step(hidden: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        inputs, starts = row
        hidden = gru_step(gru, inputs, jnp.where(starts[:, None], 0.0, hidden))
        return hidden, hidden

    return jax.lax.scan(step, hidden, (inputs, is_first))[1]
