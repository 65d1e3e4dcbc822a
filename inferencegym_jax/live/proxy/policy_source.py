"""The policy that the proxy asks, read from its name as often as somebody says so; refused where it does not suit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from inferencegym_jax.live.capacity.knob import check_leases
from inferencegym_jax.models import REPLICA, ServeAction, ServeObservation
from inferencegym_jax.policies.names import NAMES, policy_of
from inferencegym_jax.policies.policy_file import load_network
from inferencegym_jax.policies.policy_runner import PolicyRunner
from inferencegym_jax.tasks import get_task
from inferencegym_jax.tasks.checks import SECOND_GPU

if TYPE_CHECKING:
    from inferencegym_jax.registry import Problem


class Asks(Protocol):
    """Anything that turns an observation into an action: ``PolicyRunner``."""

    def ask(self, observation: ServeObservation) -> ServeAction:
        """The action, or an exception."""
        ...


class Loads(Protocol):
    """Anything that makes a policy of a name: ``PolicySource``."""

    def load(self, name: str) -> Asks:
        """The policy, or a ``ValueError`` that says why not."""
        ...


@dataclass(frozen=True)
class PolicySource:
    """Policies of a problem by name.

    Attributes:
        problem: task and table that names such as ``reactive`` are resolved on.
        leases: whether the policy's second GPU is a spare engine here, so that its task must mean a replica by it.
    """

    problem: Problem = field(repr=False)
    leases: bool = False

    def __post_init__(self) -> None:
        if self.leases:
            check_leases(self.problem)

    def load(self, name: str) -> PolicyRunner:
        """The policy of a name, compiled and at its first step.

        Raises:
            ValueError: no such policy, or one that was trained where the second GPU is no replica, and here it is.
            FileNotFoundError: no such file.
        """
        policy = policy_of(name, self.problem, any_task=True)
        if self.leases and (task := trained_for(name)) is not None:
            switching = get_task(task).switching
            if switching.get("second_gpu") != SECOND_GPU[REPLICA]:
                raise ValueError(
                    f"policy = {name!r}: trained for task {task!r}, whose second GPU is no replica that can be leased, "
                    "which a spare engine is; train it for one such as 7, second-gpu"
                )
        return PolicyRunner(policy)


def trained_for(name: str) -> str | None:
    """The task that a policy file says it was trained for; None of a name that is no file, and where it does not say
    or this version has no such task."""
    if name.replace("-", "_") in NAMES or not Path(name).exists():
        return None
    _, metadata = load_network(name)
    try:
        return get_task(metadata.get("task", "")).name
    except ValueError:
        return None
