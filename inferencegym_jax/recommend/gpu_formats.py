"""Which weight formats an engine's kernels can run on a GPU.

Checked in the engines' own pages, November 2026: vLLM 0.33 ("Quantization": FP8 W8A8 from Ada, compute capability 8.9,
on; INT8 W8A8 from Turing to Hopper, not on Blackwell; Marlin from Ampere), SGLang 0.5 (the same kernels), TensorRT-LLM
1.2 ("Quantization": the PyTorch backend has FP8, from Ada, and W4A16 AWQ; no INT8 W8A8).
"""

from __future__ import annotations

import functools
import json
import re

from inferencegym_jax.table import data_path

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt_llm": "TensorRT-LLM"}


@functools.cache
def _capabilities() -> list[tuple[str, float]]:
    """Patterns of GPUs' names with their compute capability; the first that matches counts."""
    entries = json.loads(data_path("compute_capabilities.json").read_text())["capabilities"]
    return [(str(pattern), float(number)) for pattern, number in entries]


def compute_capability(gpu: str) -> float | None:
    """CUDA compute capability of a GPU by its name; None where the name says nothing."""
    return next((number for pattern, number in _capabilities() if re.search(pattern, gpu.replace("-", " "))), None)


def cannot_run(engine: str, precision: str, gpu: str) -> str | None:
    """Why an engine cannot run a weight format on a GPU as it was measured; None where it can, or nothing is known.

    Args:
        engine: key of ``ENGINES``.
        precision: "fp16", "int8", "fp8", "int4" or "fp4".
        gpu: its name.
    """
    if precision == "int8" and engine == "tensorrt_llm":
        return "its PyTorch backend has no INT8 W8A8 (FP8 in its place needs Ada or later)"
    capability = compute_capability(gpu)
    if capability is None:
        return None
    if precision == "fp8" and capability < 8.9:
        return f"FP8 products need Ada or later (compute capability 8.9), {gpu} has {capability:g}"
    if precision == "int8" and not 7.5 <= capability < 10.0:
        return f"INT8 W8A8 runs on Turing to Hopper (compute capability 7.5 to 9.0), {gpu} has {capability:g}"
    if precision == "fp4" and capability < 10.0:
        return f"FP4 products need Blackwell (compute capability 10.0), {gpu} has {capability:g}"
    if precision == "int4" and capability < 8.0:
        return f"the INT4 kernel (Marlin) needs Ampere or later (compute capability 8.0), {gpu} has {capability:g}"
    return None
