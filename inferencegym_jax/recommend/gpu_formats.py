"""Which weight formats an engine's kernels can run on a GPU.

Checked in the engines' own pages, November 2026: vLLM 0.32 ("Quantization": FP8 W8A8 from Ada, compute capability 8.9,
on; INT8 W8A8 from Turing to Hopper, not on Blackwell; Marlin from Ampere), SGLang 0.5 (the same kernels), TensorRT-LLM
1.2 ("Quantization": the PyTorch backend has FP8, from Ada, and W4A16 AWQ; no INT8 W8A8).
"""

from __future__ import annotations

import re

CAPABILITIES = (  # of a GPU's name, the first that matches; NVIDIA's list of compute capabilities
    (r"RTX PRO \d+|RTX 50\d0", 12.0),
    (r"G?B[123]00", 10.0),
    (r"G?H[12]\d\d|H20\b|H800", 9.0),
    (r"L4\b|L40S?|L20\b|Ada|RTX 40\d0", 8.9),
    (r"A10G?\b|A16\b|A2\b|A40\b|A[456]000|RTX 30\d0", 8.6),
    (r"A100|A30\b|A800", 8.0),
    (r"T4\b|RTX 20\d0", 7.5),
    (r"V100", 7.0),
)
ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt_llm": "TensorRT-LLM"}


def compute_capability(gpu: str) -> float | None:
    """CUDA compute capability of a GPU by its name; None where the name says nothing."""
    return next((number for pattern, number in CAPABILITIES if re.search(pattern, gpu.replace("-", " "))), None)


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
