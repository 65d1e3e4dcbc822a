"""Policies learned by ``training/``, as plain jnp: what a network's outputs mean, the forward pass, the file they
ship in.

``observation -> features -> MLP -> one head a knob -> ServeAction``. Training uses the same features and heads, so a
policy acts in a user's rollout exactly as it did when it was evaluated. Needs neither flax nor optax nor orbax.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from inferencegym_jax.encoding import action_from_box, normalise
from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS, ServeAction, ServeObservation
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.policies.layout import CONTINUOUS, HEAD_SIZES, LayoutError, fit_arrays, layout
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.tasks import TaskSpec, get_task, shipped_specs

FEATURE_CLIP = 5.0  # standard deviations; beyond it a feature says no more
# of a normalised observation: a field that hardly moves must not throw the network far off when it does
VARIANCE_FLOOR = 1e-2
FORMAT = 1

HEAD_SIZE = sum(HEAD_SIZES.values())
"""Outputs of the actor, over all knobs."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ObservationStatistics:
    """Running mean and variance of normalised observations."""

    count: jax.Array  # float32, observations seen
    mean: jax.Array  # float32[FLAT_OBSERVATION_SIZE]
    variance: jax.Array  # float32[FLAT_OBSERVATION_SIZE]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyNetwork:
    """All that a trained policy is.

    Attributes:
        layers: (weights float32[in, out], bias float32[out]) of each layer, tanh between them.
        log_std: float32[numbers], of the Gaussian positions of the knobs in ``CONTINUOUS``.
        statistics: of the observations seen in training.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    log_std: jax.Array
    statistics: ObservationStatistics


def standardise(normalised: jax.Array, statistics: ObservationStatistics) -> jax.Array:
    """What a network sees of normalised observations: mean 0, variance 1, within +-5; of the
    same shape."""
    scale = jax.lax.rsqrt(jnp.maximum(statistics.variance, VARIANCE_FLOOR))
    return jnp.clip((normalised - statistics.mean) * scale, -FEATURE_CLIP, FEATURE_CLIP)


def split_heads(outputs: jax.Array) -> dict[str, jax.Array]:
    """The actor's outputs by knob: float32[..., HEAD_SIZE] -> name -> float32[..., size]."""
    parts, start = {}, 0
    for name, size in HEAD_SIZES.items():
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
    columns = []
    for i, knob in enumerate(KNOBS.values()):
        value = raw[..., i]
        if knob.kind == "choice":
            value = 2.0 * (value + 0.5) / len(knob.choices) - 1.0
        elif knob.kind == "bool":
            value = value - 0.5
        columns.append(value)
    return action_from_box(jnp.stack(columns, axis=-1))


def mode(outputs: jax.Array) -> jax.Array:
    """The most likely raw action, float32[..., knobs], of the actor's outputs."""
    parts = []
    for name, logits in split_heads(outputs).items():
        if KNOBS[name].kind == "choice":
            parts.append(jnp.argmax(logits, axis=-1).astype(jnp.float32))
        elif KNOBS[name].kind == "bool":
            parts.append((logits[..., 0] > 0).astype(jnp.float32))
        else:
            parts.append(position(logits))
    return jnp.stack(parts, axis=-1)


def sample(outputs: jax.Array, log_std: jax.Array, key: jax.Array) -> jax.Array:
    """A raw action drawn from the actor's distribution.

    Args:
        outputs: float32[..., HEAD_SIZE].
        log_std: float32[numbers].
        key: the policy's key of (seed, step), batched like ``outputs``.

    Returns:
        float32[..., knobs]; Gaussian positions are not clipped.
    """
    normals, uniforms = _draws(key)
    parts, at = [], 0
    for name, logits in split_heads(outputs).items():
        if KNOBS[name].kind == "choice":
            cumulative = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)[..., :-1]
            parts.append((next(uniforms)[..., None] > cumulative).sum(axis=-1).astype(jnp.float32))
        elif KNOBS[name].kind == "bool":
            parts.append((next(uniforms) < jax.nn.sigmoid(logits[..., 0])).astype(jnp.float32))
        else:
            parts.append(position(logits) + jnp.exp(log_std[..., at]) * next(normals))
            at += 1
    return jnp.stack(parts, axis=-1)


def _draws(key: jax.Array) -> tuple[Iterator[jax.Array], Iterator[jax.Array]]:
    """(standard normals, one a number; uniforms, one a choice or switch) of a policy's key.

    A normal takes a word of its own; two uniforms share one, the second its lower 16 bits: a bias of at most 2^-16.
    """
    numbers, others = len(CONTINUOUS), len(KNOBS) - len(CONTINUOUS)
    shared = -(-others // 2)
    data = jax.random.key_data(key)
    words = counters.words(data[..., 0], data[..., 1], counters.POLICY, numbers + shared)
    uniform_words = [*words[numbers:], *(word << 16 for word in words[numbers:])]
    normals = (counters.normal(word) for word in words[:numbers])
    return normals, (counters.uniform(word) for word in uniform_words)


def forward(network: PolicyNetwork, observation: ServeObservation) -> jax.Array:
    """The actor's outputs, float32[..., HEAD_SIZE]."""
    x = standardise(normalise(observation), network.statistics)
    for weights, bias in network.layers[:-1]:
        x = jnp.tanh(x @ weights + bias)
    weights, bias = network.layers[-1]
    return x @ weights + bias


def network_policy(network: PolicyNetwork, *, sample_actions: bool = False) -> Policy:
    """The policy of a network: its most likely action, or one drawn from its distribution.

    The network is the policy's weights (``rollout.Policy``): all networks of a shape share one compiled rollout.
    """
    return Partial(_sampled if sample_actions else _most_likely, network)


def _most_likely(network: PolicyNetwork, key: jax.Array, observation: ServeObservation, carry: Any = None) -> Any:
    del key
    return decode(mode(forward(network, observation))), carry


def _sampled(network: PolicyNetwork, key: jax.Array, observation: ServeObservation, carry: Any = None) -> Any:
    return decode(sample(forward(network, observation), network.log_std, key)), carry


def save_network(path: str | Path, network: PolicyNetwork, metadata: dict[str, Any]) -> None:
    """Write a policy file (NumPy archive): the network's arrays, and as JSON its layout (the fields that it reads and
    the knobs that it sets) and how it was trained.

    Args:
        path: file to write; its folder is made.
        network: what to write.
        metadata: JSON-ready.
    """
    arrays: dict[str, np.ndarray] = {}
    for i, (weights, bias) in enumerate(network.layers):
        arrays[f"weights_{i}"] = np.asarray(weights, np.float32)
        arrays[f"bias_{i}"] = np.asarray(bias, np.float32)
    arrays["log_std"] = np.asarray(network.log_std, np.float32)
    arrays["count"] = np.asarray(network.statistics.count, np.float32)
    arrays["mean"] = np.asarray(network.statistics.mean, np.float32)
    arrays["variance"] = np.asarray(network.statistics.variance, np.float32)
    arrays["metadata"] = np.frombuffer(json.dumps({"format": FORMAT, **layout(), **metadata}).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(buffer.getvalue())


def load_network(path: str | Path) -> tuple[PolicyNetwork, dict[str, Any]]:
    """Read a policy file. A network that was trained before a field or a knob was added does not see the field and
    leaves the knob at its default.

    Args:
        path: the file (``.npz``), or the folder of a training run, which holds it as ``policy.npz``.

    Returns:
        (network, metadata).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no policy file, is truncated, or its shapes do not fit this library's observation and knobs.
    """
    path = Path(path) / "policy.npz" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"policy = {str(path)!r}: no such file; `python -m training train` writes one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        metadata = json.loads(arrays["metadata"].tobytes())
        arrays = fit_arrays(arrays, metadata)
        count = sum(name.startswith("weights_") for name in arrays)
        layers = tuple((jnp.asarray(arrays[f"weights_{i}"]), jnp.asarray(arrays[f"bias_{i}"])) for i in range(count))
        statistics = ObservationStatistics(*(jnp.asarray(arrays[name]) for name in ("count", "mean", "variance")))
        network = PolicyNetwork(layers, jnp.asarray(arrays["log_std"]), statistics)
    except LayoutError as error:
        raise ValueError(f"policy = {str(path)!r}: {error}") from error
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"policy = {str(path)!r}: not a policy file, or truncated: {error}") from error
    shape = (network.layers[0][0].shape[0], network.layers[-1][0].shape[1])
    if shape != (FLAT_OBSERVATION_SIZE, HEAD_SIZE):
        raise ValueError(
            f"policy = {str(path)!r}: takes {shape[0]} numbers and gives {shape[1]}; "
            f"must be {FLAT_OBSERVATION_SIZE} and {HEAD_SIZE}"
        )
    return network, metadata


def load(path: str | Path, *, sample_actions: bool = False) -> Policy:
    """The policy in a file of ``python -m training`` (or of ``save_network``), for any task.

    Args:
        path: the file (``.npz``), or the folder of a training run, which holds it as ``policy.npz``.
        sample_actions: draw from the policy's distribution instead of taking its most likely action.

    Raises:
        FileNotFoundError, ValueError: see ``load_network``.
    """
    return network_policy(load_network(path)[0], sample_actions=sample_actions)


def shipped_file(task: int | str | TaskSpec) -> Path:
    """The file of the trained policy that ships for a task (id or name).

    Raises:
        ValueError: unknown task.
        FileNotFoundError: none ships for it; says how to get one.
    """
    spec = get_task(task)
    advice = f"`python -m training train --task {spec.name}` makes one, whose file is a policy too"
    if spec.name not in shipped_specs():
        raise FileNotFoundError(f"no trained policy ships for task {spec.id} ({spec.name!r}); {advice}")
    try:
        return data_path(f"policies/task{spec.id}.npz")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {advice}") from None


def has_trained(task: int | str | TaskSpec) -> bool:
    """Whether a trained policy ships for a task (id or name)."""
    try:
        shipped_file(task)
    except FileNotFoundError:
        return False
    return True


@functools.cache
def trained(task: int | str | TaskSpec, *, sample_actions: bool = False) -> Policy:
    """The policy that ships for a task (``data/policies/task{id}.npz``), trained by ``make policies``.

    Args:
        task: id or name.
        sample_actions: draw from the policy's distribution instead of taking its most likely action.

    Raises:
        ValueError: unknown task.
        FileNotFoundError: no policy ships for it.
    """
    return load(shipped_file(task), sample_actions=sample_actions)
