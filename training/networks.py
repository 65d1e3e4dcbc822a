"""The networks: an actor with one head a knob and a critic, two separate tanh MLPs on the library's features; with
memory both read the hidden state of one recurrent layer besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.encoding import History, box_from_knobs
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS, Knob
from inferencegym_jax.policies.layout import CONTINUOUS
from inferencegym_jax.policies.memory import GRU
from inferencegym_jax.policies.network import HEAD_SIZE, ObservationStatistics, PolicyNetwork


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w``, float32[samples, in] @ float32[in, out], with the gradient for ``w`` that a CPU computes fast.

    XLA's CPU backend has its fast product only where the first operand's last axis meets the second's first; the
    gradient ``x.T @ g`` takes twice as long unless the narrower of the two is turned over in memory first.
    """
    return x @ w


def _matmul_forward(x: jax.Array, w: jax.Array) -> Any:
    return x @ w, (x, w)


def _matmul_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    turned = jax.lax.optimization_barrier if jax.default_backend() == "cpu" else lambda y: y
    if w.shape[0] > w.shape[1]:
        return g @ w.T, (turned(g.T) @ x).T
    return g @ w.T, turned(x.T) @ g


matmul.defvjp(_matmul_forward, _matmul_backward)


def dot_general(x: jax.Array, w: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """What a dense layer multiplies with: ``matmul`` for minibatches, the plain product elsewhere."""
    return matmul(x, w) if x.ndim == 2 else x @ w


class MLP(nn.Module):
    """tanh layers and a linear one: float32[..., in] -> float32[..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int
    output_scale: float
    output_bias: tuple[float, ...] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        for size in self.hidden:
            layer = nn.Dense(size, kernel_init=nn.initializers.orthogonal(2.0**0.5), dot_general=dot_general)
            x = jnp.tanh(layer(x))
        bias = jnp.zeros(self.outputs) if self.output_bias is None else jnp.asarray(self.output_bias)
        last = nn.Dense(
            self.outputs,
            dot_general=dot_general,
            kernel_init=nn.initializers.orthogonal(self.output_scale),
            bias_init=lambda *_: bias.astype(jnp.float32),
        )
        return last(x)


class ActorCritic(nn.Module):
    """Actor and critic. ``actor`` gives float32[..., outputs] (of knobs see ``network.split_heads``), ``critic``
    float32[...]; both take float32[..., features + memory_size], the features and after them the hidden state.

    The recurrent layer's weights are parameters here (``gru_of``); ``policies.memory`` runs it.
    """

    hidden: tuple[int, ...]
    initial_std: float
    start: tuple[float, ...] | None = None  # the actor's output bias at first; None is the middle of every knob
    features: int = FLAT_OBSERVATION_SIZE
    memory_size: int = 0  # numbers of the hidden state; 0: no recurrent layer
    outputs: int = HEAD_SIZE  # of the actor
    deviations: int = len(CONTINUOUS)  # Gaussian positions among what it sets

    def setup(self) -> None:
        """Make both networks, and the recurrent layer if there is one."""
        if self.memory_size:
            self._gru = self.param("_gru", initial_gru, self.features, self.memory_size)
        self._actor = MLP(self.hidden, self.outputs, 0.01, self.start)
        self._critic = MLP(self.hidden, 1, 1.0)
        self._log_std = self.param("log_std", nn.initializers.constant(jnp.log(self.initial_std)), (self.deviations,))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(actor's outputs, log standard deviations float32[deviations], values)."""
        return self._actor(x), self._log_std, self._critic(x)[..., 0]

    def actor(self, x: jax.Array) -> jax.Array:
        """The actor's outputs."""
        return self._actor(x)

    def critic(self, x: jax.Array) -> jax.Array:
        """Values."""
        return self._critic(x)[..., 0]


def initial_gru(key: jax.Array, features: int, size: int) -> dict[str, jax.Array]:
    """Weights of a recurrent layer before training: orthogonal for each gate, biases 0."""
    orthogonal = nn.initializers.orthogonal()
    keys = jax.random.split(key, 6)
    return {
        "inputs": jnp.concatenate([orthogonal(k, (features, size)) for k in keys[:3]], axis=1),
        "recurrent": jnp.concatenate([orthogonal(k, (size, size)) for k in keys[3:]], axis=1),
        "bias": jnp.zeros(3 * size),
        "candidate_bias": jnp.zeros(size),
    }


def gru_of(variables: Mapping[str, Any]) -> GRU | None:
    """The recurrent layer of the networks' parameters, None where they have none."""
    weights = variables["params"].get("_gru")
    return None if weights is None else GRU(**weights)


def starting_bias(action: Any, knobs: Mapping[str, Knob] = KNOBS) -> tuple[float, ...]:
    """An output bias whose most likely action is (about) ``action``: positions at most 0.9 from the middle, odds of 4
    for choices.

    Args:
        action: has each of the knobs as an attribute.
        knobs: that the actor sets.
    """
    with jax.ensure_compile_time_eval():  # also inside jit the start is a constant
        box = np.asarray(box_from_knobs(action, knobs))
    bias: list[float] = []
    for i, (name, knob) in enumerate(knobs.items()):
        value = getattr(action, name)
        if knob.kind == "choice":
            bias += [
                float(np.log(4.0 * (len(knob.choices) - 1))) if value == choice else 0.0 for choice in knob.choices
            ]
        elif knob.kind == "bool":
            bias.append(float(np.log(4.0)) * (1.0 if value else -1.0))
        else:
            bias.append(float(np.arctanh(np.clip(box[i], -0.9, 0.9))))
    return tuple(bias)


def to_policy(
    variables: Mapping[str, Any], statistics: ObservationStatistics, history: History | None = None
) -> PolicyNetwork:
    """The library's form of a trained actor; ``history`` is what its features hold of earlier observations."""
    parameters = variables["params"]
    actor = parameters["_actor"]
    layers = tuple(
        (actor[name]["kernel"], actor[name]["bias"]) for name in sorted(actor, key=lambda n: int(n.split("_")[1]))
    )
    return PolicyNetwork(layers, parameters["log_std"], statistics, gru_of(variables), history)
