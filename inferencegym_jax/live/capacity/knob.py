"""The knob that asks for a spare engine, and which tasks mean that by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inferencegym_jax.models import KNOBS, REPLICA, EnvParams

if TYPE_CHECKING:
    from inferencegym_jax.registry import Problem

SECOND_GPU_KNOB = "prefill_disagg"
ADVICE = "take a task such as 7, second-gpu"


def leases(params: EnvParams) -> bool:
    """Whether the task's second-GPU knob is free and leases a replica, which a spare engine is."""
    active = dict(zip(KNOBS, np.asarray(params.active), strict=True))
    return bool(active[SECOND_GPU_KNOB]) and int(params.engine.second_gpu) == REPLICA


def check_leases(problem: Problem) -> None:
    """Raise ``ValueError`` unless ``leases``."""
    if not leases(problem.params):
        raise ValueError(
            f"task = {problem.spec.name!r}: has no replica that can be leased, which a spare engine is; {ADVICE}"
        )
