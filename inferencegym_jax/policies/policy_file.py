"""The files of trained policies: NumPy archives without pickled objects (docs/extend.md states the format).

``network, metadata -> save_network -> file -> load_network -> network, metadata``; ``load`` gives the policy.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from inferencegym_jax.encoding import History
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE
from inferencegym_jax.policies.layout import LayoutError, fit_arrays, layout
from inferencegym_jax.policies.memory import GRU
from inferencegym_jax.policies.network import HEAD_SIZE, ObservationStatistics, PolicyNetwork, network_policy
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.tasks import TaskSpec, get_task, shipped_specs

FORMAT, WITH_MEMORY = 1, 2
"""Of policy files: a network without memory is in the first, which older versions read too."""


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
    if network.gru is not None:
        for part in dataclasses.fields(GRU):
            arrays[f"gru_{part.name}"] = np.asarray(getattr(network.gru, part.name), np.float32)
    arrays["log_std"] = np.asarray(network.log_std, np.float32)
    arrays["count"] = np.asarray(network.statistics.count, np.float32)
    arrays["mean"] = np.asarray(network.statistics.mean, np.float32)
    arrays["variance"] = np.asarray(network.statistics.variance, np.float32)
    about = {**metadata, **layout(), "format": WITH_MEMORY if network.has_memory else FORMAT, "history": None}
    if network.history is not None:
        about["history"] = dataclasses.asdict(network.history)
    arrays["metadata"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
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
        if metadata.get("format", FORMAT) not in (FORMAT, WITH_MEMORY):
            raise LayoutError(f"format {metadata['format']!r}; this version reads {FORMAT} and {WITH_MEMORY}")
        network = _network(fit_arrays(arrays, metadata), metadata)
    except LayoutError as error:
        raise ValueError(f"policy = {str(path)!r}: {error}") from error
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"policy = {str(path)!r}: not a policy file, or truncated: {error}") from error
    fault = _fault(network)
    if fault:
        raise ValueError(f"policy = {str(path)!r}: {fault}")
    return network, metadata


def _network(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> PolicyNetwork:
    count = sum(name.startswith("weights_") for name in arrays)
    layers = tuple((jnp.asarray(arrays[f"weights_{i}"]), jnp.asarray(arrays[f"bias_{i}"])) for i in range(count))
    statistics = ObservationStatistics(*(jnp.asarray(arrays[name]) for name in ("count", "mean", "variance")))
    names = [part.name for part in dataclasses.fields(GRU)]
    gru = GRU(*(jnp.asarray(arrays[f"gru_{name}"]) for name in names)) if "gru_inputs" in arrays else None
    stated = metadata.get("history")
    history = None if stated is None else History(tuple(stated["averages_s"]), stated["last"])
    return PolicyNetwork(layers, jnp.asarray(arrays["log_std"]), statistics, gru, history)


def _fault(network: PolicyNetwork) -> str | None:
    """What does not fit together in a network, or with today's observation and knobs; None where all does."""
    features = FLAT_OBSERVATION_SIZE * (1 if network.history is None else network.history.copies)
    size = 0 if network.gru is None else network.gru.size
    shape = (network.layers[0][0].shape[0], network.layers[-1][0].shape[1])
    if shape != (features + size, HEAD_SIZE):
        return f"takes {shape[0]} numbers and gives {shape[1]}; must be {features + size} and {HEAD_SIZE}"
    if network.gru is not None:
        shapes = [x.shape for x in (network.gru.inputs, network.gru.recurrent, network.gru.bias)]
        if shapes != [(features, 3 * size), (size, 3 * size), (3 * size,)]:
            return f"its recurrent layer has shapes {shapes}; must fit {features} features and {size} hidden numbers"
    return None


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
