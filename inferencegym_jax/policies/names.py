"""The names of policies, and the one function that knows them: ``policy_of``.

``name, problem -> policy``. A name is one of ``NAMES``, knobs (``batch_size=64,kv_budget=0.5``: that action always), or
the path of a trained policy: its file, or the folder of a training run.
"""

from __future__ import annotations

from pathlib import Path

from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.models import ServeAction, shown
from inferencegym_jax.policies.builtin import baseline, random, static
from inferencegym_jax.policies.knob_text import knob_values
from inferencegym_jax.policies.policy_file import (
    general_for,
    has_trained,
    load_network,
    playable,
    reads_relative,
    shipped_file,
)
from inferencegym_jax.policies.reactive_plans import reactive_for
from inferencegym_jax.registry import Problem
from inferencegym_jax.tasks import TaskSpec, get_task

WEIGHTLESS: dict[str, Policy] = {"random": random}
"""Built-in policies that look at the observation or draw, and need no weights."""
STATIC = ("baseline", "best_static")
"""Built-in policies that always take one action."""
NAMES = ("baseline", "random", "reactive", "best_static", "trained")
"""Every built-in policy, in the order in which tables list them."""
DESCRIPTIONS: dict[str, str] = {
    "baseline": "An engine's defaults, never changed.",
    "random": "Knobs drawn at random every second.",
    "reactive": "Rules that an engineer would write: they follow queue, load and memory.",
    "best_static": "The best setting that never changes, found by searching all of them.",
    "trained": "A small network that learned on this simulator; it sets the knobs every second.",
}
"""What each of ``NAMES`` does, in a sentence for people."""
GENERAL = "general"
"""The policy that was trained on all that task 8 draws: on any open-loop task, GPU, log and objectives."""
POLICY_HELP = (
    f"{', '.join(NAMES)}, {GENERAL} (open-loop tasks), a policy file (.npz) or a training run's folder, or knobs: "
    "batch_size=64,kv_budget=0.5"
)


def is_told_objectives(name: str, task: int | str | TaskSpec) -> bool:
    """Whether the policy of a name acts by the objectives of the problem that it is given, so that it can be told those
    that hold: ``general``, ``reactive`` where the task does not draw its objectives, and a file whose network or
    controller reads the observation in their units, the file of ``trained`` among them. ``best_static`` was searched
    for the task's own.

    Args:
        name: see ``policy_of``.
        task: whose ``trained`` or ``reactive`` is meant.

    Raises:
        ValueError: a path that is no policy file, or an unknown task.
    """
    usual = name.replace("-", "_")
    if usual == "trained":
        return has_trained(task) and reads_relative(load_network(shipped_file(task))[1])
    if usual == "reactive":
        return get_task(task).draws is None
    if usual == GENERAL or usual in NAMES:
        return usual == GENERAL
    return Path(name).exists() and reads_relative(load_network(name)[1])


def policy_of(name: str, problem: Problem, *, any_task: bool = False) -> Policy:
    """The policy of a name on a problem.

    Args:
        name: see the module; ``-`` for ``_`` will do. "best_static" is the best static action of the problem's own
            table and traffic, "reactive" the controller planned for the problem's table and task, "trained" the policy
            that ships for its task, "general" the one that task 8 trained for any.
        problem: where it is to act.
        any_task: take a file also where it says that it was trained for another task.

    Raises:
        ValueError: no such name and no such path (says what there is), a file that is no policy or was trained for
            another task, a knob out of range or that the table lacks.
        FileNotFoundError: no trained policy ships for the task, or there is no such file.
    """
    usual = name.replace("-", "_")
    if usual in WEIGHTLESS:
        return WEIGHTLESS[usual]
    if usual == "reactive":
        return reactive_for(problem.table, problem.params)
    if usual == "general":
        return general_for(problem)
    if usual == "trained":
        network, metadata = load_network(shipped_file(problem.spec))
        return playable(network, metadata, problem)
    action = static_action(usual if usual in STATIC else name, problem)
    if action is not None:
        return baseline if usual == "baseline" else static(action)
    if not (Path(name).exists() or name.endswith(".npz")):
        raise ValueError(f"policy = {shown(name)}: no such name and no such file; must be one of {POLICY_HELP}")
    network, metadata = load_network(name)
    own, wanted = metadata.get("task"), problem.spec.name
    if own not in (None, wanted) and not any_task:
        raise ValueError(
            f"policy = {name!r}: trained for task {own!r}, asked for {wanted!r}; "
            "ig.policies.load(path) plays it on any task"
        )
    return playable(network, metadata, problem)


def static_action(name: str, problem: Problem) -> ServeAction | None:
    """The action of a policy that always takes one (``STATIC`` and knobs), None of every other name.

    Raises:
        ValueError, TypeError: a knob out of range, or a value that the problem's table lacks.
    """
    if name == "baseline":
        return ServeAction()
    if name == "best_static":
        return problem.best_static
    if "=" not in name or Path(name).exists():
        return None
    action = ServeAction(**knob_values(name, "policy"))
    problem.env.check_action(action)
    return action
