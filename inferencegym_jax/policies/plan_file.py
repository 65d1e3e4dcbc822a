"""Settings of the load-following controller as a policy file: what was searched is deployed as what was trained is.

``LoadPlan -> save_plan -> file``, which ``policy_file`` reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from inferencegym_jax.policies.corrected import CORRECTIONS
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.network import ObservationStatistics, PolicyNetwork
from inferencegym_jax.policies.policy_file import save_network
from inferencegym_jax.policies.relative import FIELDS


def save_plan(path: str | Path, plan: LoadPlan, metadata: Mapping[str, Any]) -> None:
    """Write a policy file that plays these settings wherever a policy's file is taken: a network of corrections that
    are all 0.

    Args:
        path: file to write; its folder is made.
        plan: the settings, scalars.
        metadata: where they are from, JSON-ready; ``task`` is the name of the task for which they were chosen.
    """
    numbers, outputs = len(FIELDS), len(CORRECTIONS)
    network = PolicyNetwork(
        layers=((jnp.zeros((numbers, outputs)), jnp.zeros(outputs)),),
        log_std=jnp.zeros(outputs),
        statistics=ObservationStatistics(jnp.float32(1.0), jnp.zeros(numbers), jnp.ones(numbers)),
    )
    stated = {name: np.asarray(value).item() for name, value in dataclasses.asdict(plan).items()}
    save_network(path, network, {**metadata, "reads": "relative", "acts": "correction", "plan": stated})
