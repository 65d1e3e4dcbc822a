"""The names of fleets' policies, and the one function that knows them: ``fleet_policy_of``.

``name, task -> policy``. A name is one of ``FLEET_NAMES``, knobs (``gpus=4``: that action always), or the path of a
learned policy: its file, or the folder of a training run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction, check_fleet_action
from inferencegym_jax.fleet.making import ANYWHERE
from inferencegym_jax.fleet.rules import DEFAULTS, REACTIVE, RulePlan, fixed, rule, tuned_rule
from inferencegym_jax.models import shown
from inferencegym_jax.policies.policy_file import fleet_playable, load_network
from inferencegym_jax.table.latency_table import data_path

RULES: dict[str, RulePlan] = {
    name.lower().replace(", ", "-").replace(" ", "-"): plan for name, plan in DEFAULTS.items()
}
"""Rules at their published defaults by the names of the command line: "hpa-queue", "dynamo-planner"."""
FLEET_NAMES = ("reactive", "tuned", "trained", "general", *RULES)
"""Every built-in policy of fleets: the shipped rule, the rule tuned on the task's pool, the learned policy that ships
for the task, the one that was trained on fleet-anywhere, rules at their published defaults."""


def fleet_file(task: str) -> Path:
    """The file of the learned policy that ships for a fleet task.

    Raises:
        FileNotFoundError: none ships for it; says how to get one.
    """
    try:
        return data_path(f"policies/{task}.npz")
    except FileNotFoundError as error:
        advice = f"`python -m training train --task {task}` makes one, whose file is a policy too"
        raise FileNotFoundError(f"{error}; {advice}") from None


def fleet_policy_of(name: str, task: str) -> Policy:
    """The policy of a name on a fleet task.

    Args:
        name: see the module; ``_`` for ``-`` will do.
        task: name of the task, whose own rule "tuned" is and whose learned policy "trained" is.

    Raises:
        ValueError: no such name and no such path (says what there is), a file that decides for no fleet, a knob out of
            range.
        FileNotFoundError: no learned policy ships for the task.
    """
    usual = name.lower().replace("_", "-")
    if usual in ("reactive", "tuned"):
        return rule(REACTIVE if usual == "reactive" else tuned_rule(task))
    if usual in RULES:
        return rule(RULES[usual])
    if usual in ("trained", "general"):
        return fleet_playable(*load_network(fleet_file(task if usual == "trained" else ANYWHERE)))
    if "=" in name and not Path(name).exists():
        return rule(_held(name))
    if not (Path(name).exists() or name.endswith(".npz")):
        raise ValueError(
            f"policy = {shown(name)}: no such name and no such file; must be one of {', '.join(FLEET_NAMES)}, a policy "
            "file (.npz), a training run's folder, or knobs: gpus=4"
        )
    try:
        return fleet_playable(*load_network(name))
    except ValueError as error:
        raise ValueError(f"policy = {name!r}: {error}") from None


def _held(text: str) -> RulePlan:
    """The plan that holds the knobs of a text as ``gpus=4,batch_size=64``."""
    values: dict[str, int] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key.strip() not in ("gpus", "prefill_gpus", "batch_size"):
            raise ValueError(f"policy: knob {shown(key.strip())} is unknown; there are gpus, prefill_gpus, batch_size")
        try:
            values[key.strip()] = int(value)
        except ValueError:
            allowed = FLEET_KNOBS[key.strip()].allowed
            raise ValueError(f"policy: {key.strip()} = {shown(value)}: must be {allowed}") from None
    action = dataclasses.replace(FleetAction(), **values)
    check_fleet_action(action)
    return fixed(int(action.gpus)).replace(prefill_gpus=action.prefill_gpus, batch_size=action.batch_size)
