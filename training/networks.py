"""The networks: an actor with one head a knob and a critic, two separate tanh MLPs on the library's features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from inferencegym_jax.trained import CONTINUOUS, HEAD_SIZE, ObservationStatistics, PolicyNetwork


class MLP(nn.Module):
    """tanh layers and a linear one: float32[..., in] -> float32[..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int
    output_scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        for size in self.hidden:
            x = jnp.tanh(nn.Dense(size, kernel_init=nn.initializers.orthogonal(2.0**0.5))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.output_scale))(x)


class ActorCritic(nn.Module):
    """Actor and critic. ``actor`` gives float32[..., HEAD_SIZE] (see ``trained.split_heads``), ``critic`` float32[...]."""

    hidden: tuple[int, ...]
    initial_std: float

    def setup(self) -> None:
        """Make both networks; the actor starts near the middle of every knob."""
        self._actor = MLP(self.hidden, HEAD_SIZE, 0.01)
        self._critic = MLP(self.hidden, 1, 1.0)
        self._log_std = self.param("log_std", nn.initializers.constant(jnp.log(self.initial_std)), (len(CONTINUOUS),))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(actor's outputs, log standard deviations float32[2], values)."""
        return self._actor(x), self._log_std, self._critic(x)[..., 0]

    def actor(self, x: jax.Array) -> jax.Array:
        """The actor's outputs."""
        return self._actor(x)

    def critic(self, x: jax.Array) -> jax.Array:
        """Values."""
        return self._critic(x)[..., 0]


def to_policy(variables: Mapping[str, Any], statistics: ObservationStatistics) -> PolicyNetwork:
    """The library's form of a trained actor."""
    parameters = variables["params"]
    actor = parameters["_actor"]
    layers = tuple((actor[name]["kernel"], actor[name]["bias"]) for name in sorted(actor, key=lambda n: int(n.split("_")[1])))
    return PolicyNetwork(layers, parameters["log_std"], statistics)
