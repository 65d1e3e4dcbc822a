"""What a table of any model is built from: the request, and the compiled weight formats that answer it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from inferencegym_jax.hardware.compiled_engine import CompiledEngine
from inferencegym_jax.hardware.gpus import Gpu
from inferencegym_jax.hardware.memory import Placement
from inferencegym_jax.hardware.model_files import ModelFile
from inferencegym_jax.hardware.model_shape import ModelShape


@dataclass(frozen=True)
class Request:
    """What to build.

    Attributes:
        model: name, or path of a ``config.json``.
        system, backend: GPU and engine.
        placement: how the model is cut over GPUs.
        dtype: weight format; None: the checkpoint's own, and of a 16-bit checkpoint every format that is measured and
            fits.
        kv_dtype: format of the cache; None: as the checkpoint states, else 16 bits.
        output_length, acceptance: of the closed-loop rows: mean output tokens, share of drafts that is accepted.
        price_per_gpu_hour: dollars; None: the list's.
    """

    model: str
    system: str
    backend: str = "vllm"
    placement: Placement = field(default_factory=Placement)
    dtype: str | None = None
    kv_dtype: str | None = None
    output_length: float = 128.0
    acceptance: float = 0.7
    price_per_gpu_hour: float | None = None


class Engines(NamedTuple):
    """Compiled weight formats by name, with the memory of each."""

    file: ModelFile
    gpu: Gpu
    shape: ModelShape | None
    kv_dtype: str
    compiled: dict[str, CompiledEngine]
    weights_gb: dict[str, float]
    kv_bytes_per_token: float
    notices: tuple[str, ...]
