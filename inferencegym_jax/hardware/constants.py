"""What kernels do not hold: time of an iteration and of a request outside them, budgets, drafts.

``data/table_constants.json -> Fitted``, one pair for each engine and number of GPUs that was measured; elsewhere the
nearest smaller number of GPUs of that engine, or 0 where no run of the engine is known. ``source`` says which.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from inferencegym_jax.hardware.gpus import Gpu
from inferencegym_jax.table import data_path
from inferencegym_jax.table.derived_profile import shipped_profile

LARGE_GPU_GB = 70  # from which on vLLM's server takes 8,192 tokens an iteration instead of 2,048, A100 excepted


@dataclass(frozen=True)
class Fitted:
    """c and h in ms, and where they come from."""

    overhead_ms: float
    path_ms: float
    source: str


@functools.cache
def fitted_constants() -> dict[str, dict[str, Any]]:
    """Engine -> number of GPUs (text) -> ``overhead_ms``, ``path_ms``, ``fitted_on``."""
    return json.loads(data_path("table_constants.json").read_text())["engines"]


def of_engine(backend: str, gpus: int) -> Fitted:
    """The constants of an engine on so many GPUs."""
    known = fitted_constants().get(backend, {})
    if not known:
        return Fitted(0.0, 0.0, f"0: no measured run of {backend} under a known request rate; its kernels alone")
    nearest = max((int(n) for n in known if int(n) <= gpus), default=min(int(n) for n in known))
    entry = known[str(nearest)]
    taken = "" if nearest == gpus else f", taken over for {gpus}"
    return Fitted(entry["overhead_ms"], entry["path_ms"], f"fitted on {entry['fitted_on']}{taken}")


def tokens_per_iteration(backend: str, gpu: Gpu) -> int:
    """An engine's default token budget: vLLM's ``max_num_batched_tokens`` (8,192 on GPUs of 70 GB and more but the
    A100, else 2,048), TensorRT-LLM's ``max_num_tokens`` and SGLang's ``chunked_prefill_size`` (8,192)."""
    small = gpu.capacity_gb < LARGE_GPU_GB or gpu.system.startswith("a100")
    return 2048 if backend == "vllm" and small else 8192


def draft_share() -> float:
    """Time of one draft step over that of an iteration; that of the shipped profile."""
    return shipped_profile().draft_share


def acceptance_lengths() -> dict[str, list[float]]:
    """Tokens that a verification yields by kind of traffic; those of the shipped profile."""
    return {kind: values.tolist() for kind, values in shipped_profile().acceptance_lengths.items()}
