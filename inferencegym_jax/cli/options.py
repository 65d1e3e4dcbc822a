"""Arguments that several commands take, and how their text becomes values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from inferencegym_jax import policies
from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.models import KNOBS, ServeAction, check_action, shown
from inferencegym_jax.registry import best_static_action
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import CONFIG_KEYS, check_config, get_task

BUILT_IN = ("baseline", "random", "reactive", "best_static", "trained")
POLICY_HELP = f"{', '.join(BUILT_IN)}, a policy file (.npz), or knobs: batch_size=64,kv_budget=0.5"

Task = Annotated[str, typer.Option("--task", "-t", help="Number or name; `inferencegym tasks` lists them.")]
TableFile = Annotated[
    Path | None, typer.Option("--table", help="Latency table (parquet or CSV). Default: the shipped one.")
]
Config = Annotated[
    str | None, typer.Option("--config", help=f"Overrides among {', '.join(CONFIG_KEYS)}: gamma=0.5,delta=0.2")
]


def task_of(text: str) -> int | str:
    """A task's number or name."""
    return int(text) if text.strip().isdigit() else text.strip()


def pairs(text: str, option: str) -> dict[str, str]:
    """``a=1,b=2`` as a dict of texts.

    Raises:
        ValueError: a part is not ``name=value``, or a name comes twice.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ValueError(f"{option} {text!r}: {part!r} must be name=value")
        if name.strip() in found:
            raise ValueError(f"{option} {text!r}: {name.strip()} is given twice")
        found[name.strip()] = value.strip()
    return found


def knob_values(text: str, option: str) -> dict[str, Any]:
    """``batch_size=64,prefill_disagg=true`` as knob values, checked.

    Raises:
        ValueError, TypeError: unknown knob, or a value out of its range.
    """
    values: dict[str, Any] = {}
    for name, given in pairs(text, option).items():
        if name not in KNOBS:
            raise ValueError(f"{option}: unknown knob {shown(name)}; allowed are {', '.join(KNOBS)}")
        try:
            value = json.loads(given.lower())
        except ValueError:
            raise ValueError(f"{option}: {name} = {shown(given)}: must be {KNOBS[name].allowed}") from None
        values[name] = bool(value) if KNOBS[name].kind == "bool" and value in (0, 1) else value
    check_action(ServeAction(**values))
    return values


def config_values(text: str | None) -> dict[str, float] | None:
    """``gamma=0.5`` as the overrides of a reset, checked.

    Raises:
        ValueError: see ``check_config``.
    """
    if text is None:
        return None
    values: dict[str, Any] = {}
    for name, given in pairs(text, "--config").items():
        try:
            values[name] = float(given)
        except ValueError:
            raise ValueError(f"--config {name} = {given!r}: must be a number") from None
    return check_config(values)


def policy_of(name: str, task: int | str, table: LatencyTable) -> Policy:
    """A policy by name, by knobs or by file; ``best_static`` is the best static action on ``table``.

    Raises:
        ValueError, OSError: no such policy, or it is not available for the task.
    """
    if name in ("baseline", "random", "reactive"):
        return getattr(policies, name)
    if name == "best_static":
        return policies.static(ServeAction(**best_static_action(get_task(task), table)))
    if "=" in name:
        return policies.static(ServeAction(**knob_values(name, "--policy")))
    if name == "trained" or name.endswith(".npz"):
        return trained_policy(name, task)
    raise ValueError(f"policy = {shown(name)}: must be one of {POLICY_HELP}")


def trained_policy(name: str, task: int | str) -> Policy:
    """A shipped policy (``trained``) or one in a file.

    Raises:
        ValueError, OSError: there is none for the task, or the file is none.
    """
    from inferencegym_jax.policies import network as trained

    if name == "trained":
        return trained.trained(task)
    return trained.network_policy(trained.load_network(name)[0])
