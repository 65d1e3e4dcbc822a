"""The files of trained policies: NumPy archives without pickled objects (docs/extend.md states the format).

``network, metadata -> save_network -> file -> load_network -> network, metadata``; ``playable`` makes the policy of
both on a table and a task, ``load`` that of a file.
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
from inferencegym_jax.fleet.action import FLEET_KNOBS
from inferencegym_jax.fleet.rules import RulePlan
from inferencegym_jax.policies.corrected import CORRECTIONS, corrected_policy, relative_policy
from inferencegym_jax.policies.corrected_queue import QUEUE_CORRECTIONS, corrected_queue_policy, queue_plan_for
from inferencegym_jax.policies.engine_units import engine_of
from inferencegym_jax.policies.fleet_control import FLEET_CORRECTIONS, corrected_rule_policy, fleet_network_policy
from inferencegym_jax.policies.fleet_numbers import FLEET_FIELDS
from inferencegym_jax.policies.layout import LayoutError, fit_arrays, head_sizes, layout
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.memory import GRU
from inferencegym_jax.policies.network import ObservationStatistics, PolicyNetwork, network_policy
from inferencegym_jax.policies.relative import FIELDS
from inferencegym_jax.registry import Problem, problem
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.tasks import TaskSpec, get_task, shipped_specs

FORMAT, WITH_MEMORY, RELATIVE, FLEET, QUEUE = FORMATS = 1, 2, 3, 4, 5
"""Of policy files: a network without memory is in the first, which older versions read too; one that reads the
observation in a task's own units is in the third, a fleet's in the fourth, one that corrects the reactive controller of
closed-loop tasks in the fifth."""


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
    about = {**metadata, **_layout(metadata), "format": _format(network, metadata), "history": None}
    if network.history is not None:
        about["history"] = dataclasses.asdict(network.history)
    arrays["metadata"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(buffer.getvalue())


def reads_relative(metadata: Mapping[str, Any]) -> bool:
    """Whether a file's network reads the observation in units of a task's objectives and capacity."""
    return metadata.get("reads") == "relative"


def reads_fleet(metadata: Mapping[str, Any]) -> bool:
    """Whether a file's network decides for a fleet."""
    return metadata.get("reads") == "fleet"


def corrects(metadata: Mapping[str, Any]) -> bool:
    """Whether a file's network corrects a controller: the load-following one, of a fleet its rule, of a closed-loop
    task the reactive one."""
    return metadata.get("acts") == "correction"


def corrects_queue(metadata: Mapping[str, Any]) -> bool:
    """Whether a file's network corrects the reactive controller of closed-loop tasks."""
    return corrects(metadata) and not reads_relative(metadata) and not reads_fleet(metadata)


def needs_problem(metadata: Mapping[str, Any]) -> bool:
    """Whether a file's network can only act where table and task are known."""
    return reads_relative(metadata) or corrects_queue(metadata)


def _format(network: PolicyNetwork, metadata: Mapping[str, Any]) -> int:
    if reads_relative(metadata) or reads_fleet(metadata):
        return RELATIVE if reads_relative(metadata) else FLEET
    if corrects_queue(metadata):
        return QUEUE
    return WITH_MEMORY if network.has_memory else FORMAT


def _layout(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a network reads and sets, for its file."""
    if reads_fleet(metadata):
        knobs = dict.fromkeys(FLEET_CORRECTIONS, 1) if corrects(metadata) else head_sizes(FLEET_KNOBS)
        return {"observation": dict.fromkeys(FLEET_FIELDS, 1), "knobs": knobs}
    today: dict[str, Any] = layout()
    if reads_relative(metadata):
        today["observation"] = dict.fromkeys(FIELDS, 1)
    if corrects(metadata):
        today["knobs"] = dict.fromkeys(QUEUE_CORRECTIONS if corrects_queue(metadata) else CORRECTIONS, 1)
    return today


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
        if metadata.get("format", FORMAT) not in FORMATS:
            raise LayoutError(f"format {metadata['format']!r}; this version reads {FORMAT} to {FORMATS[-1]}")
        fixed = reads_relative(metadata) or reads_fleet(metadata) or corrects(metadata)
        if fixed:
            _check_same(metadata)
        network = _network(arrays if fixed else fit_arrays(arrays, metadata), metadata)
    except LayoutError as error:
        raise ValueError(f"policy = {str(path)!r}: {error}") from error
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"policy = {str(path)!r}: not a policy file, or truncated: {error}") from error
    fault = _fault(network, metadata)
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


def _check_same(metadata: Mapping[str, Any]) -> None:
    """Raise ``LayoutError`` for a network of numbers in units, or of corrections, that are others today."""
    today = _layout(metadata)
    for part in ("observation", "knobs"):
        if list(metadata[part]) != list(today[part]):
            raise LayoutError(f"trained with {', '.join(metadata[part])} ({part}), which are others today")


def _fault(network: PolicyNetwork, metadata: Mapping[str, Any]) -> str | None:
    """What does not fit together in a network, or with today's observation and knobs; None where all does."""
    today = _layout(metadata)
    numbers = sum(today["observation"].values())
    features = numbers * (1 if network.history is None else network.history.copies)
    size = 0 if network.gru is None else network.gru.size
    outputs = sum(today["knobs"].values())
    shape = (network.layers[0][0].shape[0], network.layers[-1][0].shape[1])
    if shape != (features + size, outputs):
        return f"takes {shape[0]} numbers and gives {shape[1]}; must be {features + size} and {outputs}"
    if network.gru is not None:
        shapes = [x.shape for x in (network.gru.inputs, network.gru.recurrent, network.gru.bias)]
        if shapes != [(features, 3 * size), (size, 3 * size), (3 * size,)]:
            return f"its recurrent layer has shapes {shapes}; must fit {features} features and {size} hidden numbers"
    return None


def load(path: str | Path, *, sample_actions: bool = False, problem: Problem | None = None) -> Policy:
    """The policy in a file of ``python -m training`` (or of ``save_network``), for any task.

    Args:
        path: the file (``.npz``), or the folder of a training run, which holds it as ``policy.npz``.
        sample_actions: draw from the policy's distribution instead of taking its most likely action.
        problem: where it is to act; a network that reads the observation in units of the task and the GPU needs it.

    Raises:
        FileNotFoundError, ValueError: see ``load_network``; such a network without a problem.
        TableError: such a network, and the problem's table says too little of an engine.
    """
    network, metadata = load_network(path)
    if reads_fleet(metadata):
        return fleet_playable(network, metadata)
    if not needs_problem(metadata):
        return network_policy(network, sample_actions=sample_actions)
    if problem is None:
        needs = "corrects a controller planned for" if corrects_queue(metadata) else "reads observations in units of"
        raise ValueError(
            f"policy = {str(path)!r}: {needs} a GPU and a task; say which: "
            "ig.policies.load(path, problem=ig.problem(task, table=..., trace=...))"
        )
    return playable(network, metadata, problem, sample_actions=sample_actions)


def playable(
    network: PolicyNetwork, metadata: Mapping[str, Any], problem: Problem, *, sample_actions: bool = False
) -> Policy:
    """The policy of a file's network on a problem.

    Args:
        network: see ``load_network``.
        metadata: see ``load_network``.
        problem: where it is to act: its table's engine, its objectives and its traffic.
        sample_actions: draw from the policy's distribution; not of corrections of the load-following controller.

    Raises:
        ValueError: a network that reads a task's units, on a closed-loop task.
        TableError: the same, and the problem's table says too little of an engine.
    """
    if reads_fleet(metadata):
        raise ValueError(
            f"task {problem.spec.name!r}: this policy decides for a fleet; it acts in fleet-elastic and its like"
        )
    if corrects_queue(metadata):
        if problem.dynamics == "open_loop":
            raise ValueError(
                f"task {problem.spec.name!r}: this policy corrects the controller of closed-loop tasks (1 to 3, or any "
                "with dynamics='closed_loop'), and the task is open-loop"
            )
        plan = queue_plan_for(problem.table, problem.params)
        return corrected_queue_policy(network, plan, sample_actions=sample_actions)
    if not reads_relative(metadata):
        return network_policy(network, sample_actions=sample_actions)
    if problem.dynamics != "open_loop":
        raise ValueError(
            f"task {problem.spec.name!r}: this policy knows GPUs by their engine, and the task is closed-loop; "
            "it acts in open-loop tasks (4 and up, or any with dynamics='open_loop')"
        )
    if problem.env.draws is not None:
        raise ValueError(
            f"task {problem.spec.name!r}: GPU and objectives are drawn for each episode, and this policy must be told "
            "them: adapters.relative_views.env_and_policy gives it with the environment that does"
        )
    engine = engine_of(problem.table, problem.params)
    if corrects(metadata):
        return corrected_policy(network, LoadPlan(**metadata["plan"]), engine)
    return relative_policy(network, engine)


def fleet_playable(network: PolicyNetwork, metadata: Mapping[str, Any]) -> Policy:
    """The policy of a fleet's network, on any fleet.

    Args:
        network: see ``load_network``.
        metadata: see ``load_network``.

    Raises:
        ValueError: it was trained for a single engine.
    """
    if not reads_fleet(metadata):
        raise ValueError(
            f"this policy was trained on {metadata.get('task')!r}, a single engine; fleets have other knobs"
        )
    if corrects(metadata):
        return corrected_rule_policy(network, RulePlan(**metadata["plan"]))
    return fleet_network_policy(network)


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
    path = shipped_file(task)
    told = needs_problem(load_network(path)[1])
    return load(path, sample_actions=sample_actions, problem=problem(task) if told else None)


GENERAL = "policies/general.npz"  # of the data folder


def general_for(problem: Problem) -> Policy:
    """The policy that was trained on task 8, on any GPU, open-loop task, request log and objectives, without training.

    Args:
        problem: where it is to act, ``ig.problem(task, table=..., trace=..., config=...)``.

    Raises:
        FileNotFoundError: it does not ship in this installation.
        ValueError, TableError: see ``playable``.
    """
    network, metadata = load_network(data_path(GENERAL))
    return playable(network, metadata, problem)
