"""The tasks: what one is (``spec``, ``checks``), which there are (``known``), and each as numbers (``params``)."""

from inferencegym_jax.tasks.checks import DYNAMICS
from inferencegym_jax.tasks.known import (
    Calibration,
    calibration,
    calibration_of,
    get_task,
    known_calibration,
    on_register,
    search_with,
    shipped_specs,
    short_title,
    task_specs,
)
from inferencegym_jax.tasks.params import (
    CONFIG_KEYS,
    NOISE_SIGMA,
    NORMALISERS,
    NOT_NORMALISED,
    OPEN_LOOP_NORMALISERS,
    check_config,
    dynamics_of,
    engine_params,
    make_params,
)
from inferencegym_jax.tasks.spec import TaskSpec

__all__ = [
    "CONFIG_KEYS",
    "Calibration",
    "DYNAMICS",
    "NOISE_SIGMA",
    "NORMALISERS",
    "NOT_NORMALISED",
    "OPEN_LOOP_NORMALISERS",
    "TaskSpec",
    "calibration",
    "calibration_of",
    "check_config",
    "dynamics_of",
    "engine_params",
    "get_task",
    "known_calibration",
    "make_params",
    "on_register",
    "search_with",
    "shipped_specs",
    "short_title",
    "task_specs",
]
