"""The tasks that there are: those that ship and those that a user registers, with what is known of their scores.

``data/workload_configs.json, data/calibration.json, registered ones -> task_specs, get_task, calibration_of``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from inferencegym_jax.models import shown
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.tasks.spec import TaskSpec

Calibration = Mapping[str, Any]
"""``optimal_tps``, ``cost_normaliser``, ``throughput_floor`` and ``best_static`` of a task on the shipped table."""

_registered: dict[str, TaskSpec] = {}
_calibrations: dict[str, Calibration] = {}  # of registered tasks, by name
_listeners: list[Callable[[TaskSpec], None]] = []


@functools.cache
def shipped_specs() -> dict[str, TaskSpec]:
    """The tasks that ship, by name, in the order of their ids."""
    entries = json.loads(data_path("workload_configs.json").read_text())
    return {name: TaskSpec.from_entry(name, entry) for name, entry in entries.items()}


def task_specs() -> dict[str, TaskSpec]:
    """All tasks by name: those that ship, then those registered, in the order of their ids."""
    return shipped_specs() | dict(sorted(_registered.items(), key=lambda item: item[1].id))


def get_task(task: int | str | TaskSpec) -> TaskSpec:
    """The task of an id or a name; a ``TaskSpec`` is returned as it is.

    Raises:
        ValueError: there is no such task; the message lists those there are.
    """
    if isinstance(task, TaskSpec):
        return task
    specs = task_specs()
    for spec in specs.values():
        if task == spec.name or (not isinstance(task, bool | str) and task == spec.id):
            return spec
    known = ", ".join(f"{spec.id} ({spec.name!r})" for spec in specs.values())
    raise ValueError(f"task = {shown(task)}: no such task; there are {known}; ig.register(TaskSpec(...)) adds one")


def short_title(spec: TaskSpec) -> str:
    """The title without what is no letter or digit: the task's name among Gymnasium's ids."""
    return "".join(letter for letter in spec.title if letter.isalnum())


def check_free(spec: TaskSpec) -> None:
    """Raise unless a task may be made known.

    Raises:
        TypeError: not a ``TaskSpec``.
        ValueError: another task has its name, its id or its title.
    """
    if not isinstance(spec, TaskSpec):
        raise TypeError(f"register: got {type(spec).__name__}; must be a TaskSpec")
    for other in task_specs().values():
        if other == spec:
            continue
        for what, mine, theirs in (
            ("name", spec.name, other.name),
            ("id", spec.id, other.id),
            ("title", short_title(spec), short_title(other)),
        ):
            if mine == theirs:
                free = f"; the next free id is {1 + max(known.id for known in task_specs().values())}"
                forget = f"; ig.unregister({other.name!r}) forgets that one"
                value = shown(getattr(spec, what))
                raise ValueError(
                    f"task {spec.name!r}: {what} = {value}: task {other.id} ({other.name!r}) has it"
                    + (free if what == "id" else "")
                    + (forget if other.name in _registered else "")
                )


def add(spec: TaskSpec, calibration: Calibration | None = None) -> None:
    """Make a task known that ``check_free`` lets pass; one that is known already, and equal, stays."""
    if spec.name not in shipped_specs():
        _registered[spec.name] = spec
    if calibration is not None:
        _calibrations[spec.name] = calibration
    for listener in _listeners:
        listener(spec)


def remove(task: int | str | TaskSpec) -> None:
    """Forget a registered task.

    Raises:
        ValueError: no such task, or one that ships.
    """
    spec = get_task(task)
    if _registered.get(spec.name) != spec:
        raise ValueError(f"task = {spec.name!r}: is not registered, so it cannot be forgotten")
    del _registered[spec.name]
    _calibrations.pop(spec.name, None)


def on_register(listener: Callable[[TaskSpec], None]) -> Callable[[], None]:
    """Call ``listener`` with every task that is registered from now on; returns the function that ends this."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


@functools.cache
def calibration() -> dict[str, Any]:
    """``data/calibration.json``: the normalisers of each shipped task on the shipped table and how they were found."""
    return json.loads(data_path("calibration.json").read_text())


def known_calibration(spec: TaskSpec) -> Calibration | None:
    """What was found out about a task on the shipped table: the file's entry, or what it was registered with."""
    if task_specs().get(spec.name) != spec:  # another task of the same name
        return None
    return calibration()["tasks"].get(spec.name) or _calibrations.get(spec.name)


def calibration_of(spec: TaskSpec) -> Calibration:
    """Normalisers and best static action of a task on the shipped table, by a search where they are not known."""
    return known_calibration(spec) or _searches[-1](spec)


def _no_search(spec: TaskSpec) -> Calibration:
    raise LookupError(f"task {spec.name!r}: has no calibration, and nothing that could search one is imported")


_searches: list[Callable[[TaskSpec], Calibration]] = [_no_search]


def search_with(search: Callable[[TaskSpec], Calibration]) -> Callable[[TaskSpec], Calibration]:
    """Decorator of the search that ``calibration_of`` makes: it takes the environment, which is a later room."""
    _searches.append(search)
    return search
