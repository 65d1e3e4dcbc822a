"""The tasks: what one is (``spec``, ``checks``), which there are (``known``), and each as numbers (``params``)."""

from inferencegym_jax.tasks.checks import DYNAMICS, REWARD_WEIGHTS
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
    check_config,
    dynamics_of,
    engine_params,
    gpu_memory_gb,
    make_params,
)
from inferencegym_jax.tasks.spec import TaskSpec

__all__ = [
    "CONFIG_KEYS",
    "Calibration",
    "DYNAMICS",
    "NOISE_SIGMA",
    "REWARD_WEIGHTS",
    "TaskSpec",
    "calibration",
    "calibration_of",
    "check_config",
    "dynamics_of",
    "engine_params",
    "get_task",
    "gpu_memory_gb",
    "known_calibration",
    "make_params",
    "on_register",
    "search_with",
    "shipped_specs",
    "short_title",
    "task_specs",
]
