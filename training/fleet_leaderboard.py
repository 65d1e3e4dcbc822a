"""Rows of fleets on the leaderboard: days played under a policy's name, scored as the grader scores them.

``task -> version, what we measure it with``; ``task, policy, episodes -> score with its interval``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from inferencegym_jax.fleet.making import ANYWHERE, fleet_spec_of, fleet_tasks, make_fleet
from inferencegym_jax.fleet.rules import DEFAULTS
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies.fleet_names import RULES, fleet_file
from inferencegym_jax.policies.policy_file import load_network
from inferencegym_jax.table.derived_profile import profile_of
from inferencegym_jax.table.latency_table import data_path
from training.fleet_evaluation import scored

UNTRAINED = ("seven GPUs always", "gpus=7"), ("reactive, as shipped", "reactive")


def version_of(task: str) -> str:
    """Eight hexadecimal digits of what a fleet task's scores depend on: the task, its table with the engine's profile.

    Args:
        task: its name.
    """
    spec, table = fleet_spec_of(task), make_fleet(task)[0].table
    content = (json.dumps(dataclasses.asdict(spec), sort_keys=True), table.digest, profile_of(table).digest)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:8]


def score_of(task: str, policy: str, seeds: Sequence[int]) -> dict[str, float]:
    """``{"mean", "low", "high"}`` of the grader's score over held-out days; of fleet-anywhere each is a condition.

    Raises:
        ValueError, FileNotFoundError: no such policy.
    """
    return mean_interval(scored(task, policy, np.asarray(seeds))[1])


def ours(task: str) -> list[tuple[str, str, int]]:
    """(name, policy, environment steps that were spent on it) of what we measure a fleet task with."""
    rows = [(name, policy, 0) for name, policy in UNTRAINED]
    rows += [(f"{name}, as shipped", policy, 0) for name, policy in zip(DEFAULTS, RULES, strict=True)]
    if task != ANYWHERE:
        searched = json.loads(data_path("fleet_rules.json").read_text())[task]
        spent = searched["settings"] * searched["training_days"] * fleet_spec_of(task).decisions
        rows.append(("reactive, tuned on the pool", "tuned", spent))
    for name, policy, file in (("PPO", "trained", task), ("general policy", "general", ANYWHERE)):
        if policy == "general" and task == ANYWHERE:
            continue
        try:
            config = load_network(fleet_file(file))[1]
        except FileNotFoundError:
            continue
        shape = config["config"]
        rows.append((name, policy, config["updates"] * shape["environments"] * shape["rollout_length"]))
    return rows


def titles() -> dict[str, str]:
    """Title of every fleet task by its name."""
    return {name: f"Task {spec.id}, {spec.title}" for name, spec in fleet_tasks().items()}
