"""Any model on any measured GPU: memory, prices, and latency tables from measured kernels."""

from inferencegym_jax.hardware.any_model import Built, build
from inferencegym_jax.hardware.coverage import Covered, Verdict, covered, verdict
from inferencegym_jax.hardware.gpus import Gpu, gpu_named, gpus
from inferencegym_jax.hardware.memory import DoesNotFitError, Placement
from inferencegym_jax.hardware.request import Request

__all__ = [
    "Built",
    "Covered",
    "DoesNotFitError",
    "Gpu",
    "Placement",
    "Request",
    "Verdict",
    "build",
    "covered",
    "gpu_named",
    "gpus",
    "verdict",
]
