"""Tasks of one's own: ``register``, ``unregister``, and files of tasks for the command line, server and training."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferencegym_jax._version import __version__
from inferencegym_jax.models import finite_number
from inferencegym_jax.registry.problems import NORMALISERS, search_shipped
from inferencegym_jax.table.latency_table import load_table
from inferencegym_jax.tasks import Calibration, TaskSpec, known, on_register


def register(spec: TaskSpec, *, calibration: str | Path | None = None) -> TaskSpec:
    """Make a task known by id and name: to ``make``, graders, policies, the command line, server, training and
    Gymnasium.

    What its rewards and scores are measured by is searched when first needed, as on a table of one's own (a few
    seconds), unless ``calibration`` keeps it.

    Args:
        spec: the task. One that is registered already, and equal, may be registered again.
        calibration: a JSON file that holds the normalisers and the best static action of tasks. Where it has none of
            this task as it is, on the shipped table, by this version, they are searched now and written into it.

    Returns:
        The task.

    Raises:
        TypeError: not a ``TaskSpec``.
        ValueError: another task has its name, id or title; the file is no calibration.
    """
    known.check_free(spec)
    known.add(spec, None if calibration is None else _kept(spec, Path(calibration)))
    return spec


def unregister(task: int | str | TaskSpec) -> None:
    """Forget a registered task, so that another may have its name and id.

    Raises:
        ValueError: no such task, or one that ships.
    """
    known.remove(task)


def _kept(spec: TaskSpec, path: Path) -> Calibration:
    """The entry of a task in a calibration file, searched and written where the file has none that is still true."""
    document = _read_json(path, "calibration") if path.exists() else {"made_by": "ig.register", "tasks": {}}
    entries = document.get("tasks")
    if not isinstance(entries, dict):
        raise ValueError(f"calibration = {str(path)!r}: has no object `tasks`; not a calibration file")
    of = {"task_digest": spec.digest, "table_digest": load_table().digest, "version": __version__}
    entry = entries.get(spec.name)
    if isinstance(entry, dict) and {key: entry.get(key) for key in of} == of:
        best = entry.get("best_static")
        if all(finite_number(entry.get(name)) is not None for name in NORMALISERS) and isinstance(best, dict):
            return entry
        raise ValueError(f"calibration = {str(path)!r}: the entry of {spec.name!r} lacks a normaliser; delete it")
    entries[spec.name] = of | dict(search_shipped(spec))
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return entries[spec.name]


def register_file(path: str | Path) -> list[TaskSpec]:
    """Register the tasks of a file.

    Args:
        path: a Python file, which is run and calls ``ig.register``; or a JSON file of tasks by name, as
            ``data/workload_configs.json`` is one, whose entries may name a ``calibration`` file beside it.

    Returns:
        The tasks, in the file's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of tasks, or one that cannot be registered; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"tasks = {str(path)!r}: no such file; give a Python or JSON file of tasks")
    specs: list[TaskSpec] = []
    stop = on_register(specs.append)
    try:
        if path.suffix == ".py":
            runpy.run_path(str(path))
        else:
            for name, entry in _read_json(path, "tasks").items():
                fields = dict(entry) if isinstance(entry, Mapping) else entry
                kept = fields.pop("calibration", None) if isinstance(fields, dict) else None
                register(TaskSpec.from_entry(name, fields), calibration=kept and path.parent / kept)
    except Exception as error:  # whatever the user's own file raises
        raise ValueError(f"tasks = {str(path)!r}: {type(error).__name__}: {error}") from error
    finally:
        stop()
    if not specs:
        raise ValueError(f"tasks = {str(path)!r}: registers no task; a Python file calls ig.register(ig.TaskSpec(...))")
    return list(dict.fromkeys(specs))


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{what} = {str(path)!r}: not a JSON file: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{what} = {str(path)!r}: must be a JSON object")
    return document
