"""What a table of any model says of itself: its metadata, the command that builds it, and the notices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inferencegym_jax.hardware import coverage, memory
from inferencegym_jax.hardware.dtypes import DTYPES, checkpoint_dtype, kv_bytes
from inferencegym_jax.hardware.engine_curves import rounded
from inferencegym_jax.hardware.gpus import Price
from inferencegym_jax.hardware.request import Engines, Request
from inferencegym_jax.table import EngineProfile

PACKAGE_VERSION = "0.12.0"
EXTRAPOLATED = 0.15  # share of an iteration's time that is computed, not measured, from which on a notice says so


def described(engines: Engines, request: Request, price: Price, profile: EngineProfile) -> dict[str, str]:
    """The table's metadata: text, JSON where it is more than a word."""
    gpu, placement = engines.gpu, request.placement
    sources = {name: engine.sources() for name, engine in engines.compiled.items()}
    plain: dict[str, Any] = {
        "source": profile.source,
        "version": PACKAGE_VERSION,
        "licence": profile.licence,
        "model": engines.file.name,
        "system": gpu.system,
        "gpu": gpu.title,
        "engine": profile.engine,
        "backend": request.backend,
        "parallelism": str(placement),
        "gpus_per_engine": placement.gpus,
        "dtypes": {str(int(DTYPES[name].tier)): name for name in engines.compiled},
        "checkpoint_dtype": checkpoint_dtype(engines.file.config).name,
        "modes": {name: str(engine.modes) for name, engine in engines.compiled.items()},
        "weights": {DTYPES[name].tier.name: f"{gb:.2f} GB a GPU ({name})" for name, gb in engines.weights_gb.items()},
        "kv_dtype": engines.kv_dtype,
        "memory_gb": gpu.memory_gb,
        "gpu_capacity_gb": gpu.capacity_gb,
        "runtime_gb": profile.runtime_gb,
        "weights_gb_per_gpu": rounded_values(engines.weights_gb),
        "kv_bytes_per_token_per_gpu": profile.kv_bytes_per_token,
        "pool_tokens": {name: int(profile.pool_tokens(int(DTYPES[name].tier))) for name in engines.compiled},
        "price_per_gpu_hour": price.per_gpu_hour,
        "price_source": price.source,
        "cost_unit": "GPU-seconds per 1,000 tokens",
        "kernel_sources": sources,
        "validated": coverage.verdict(engines.file.name, gpu.system, request.backend).text,
        "validated_by_dtype": {name: one.text for name, one in verdicts(engines, request).items()},
        "reference_acceptance": f"{request.acceptance:g}",
        "reference_output_length": f"{request.output_length:g}",
        "engine_overhead_ms": f"{profile.overhead_ms:.10g}",
        "created_by": command(request),
    }
    if engines.shape is not None:
        shape = engines.shape
        plain |= {
            "parameters": shape.parameters,
            "kv_bytes_per_token": shape.kv_values(memory.REFERENCE_CONTEXT)
            / memory.REFERENCE_CONTEXT
            * kv_bytes(engines.kv_dtype),
            "sliding_window": f"{shape.window} tokens in {shape.window_layers} of {shape.layers} layers"
            if shape.window_layers
            else "none",
        }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in plain.items()}


def rounded_values(values: dict[str, float]) -> dict[str, float]:
    """Each value with six significant digits."""
    return {name: rounded(value) for name, value in values.items()}


def command(request: Request) -> str:
    """The command that builds the same table."""
    words = [
        "inferencegym table build",
        f"--model {request.model} --system {request.system} --backend {request.backend}",
    ]
    words += [
        f"--{name} {value}" for name in ("tp", "ep", "pp", "dp") if (value := getattr(request.placement, name)) > 1
    ]
    optional = {
        "dtype": request.dtype,
        "kv-dtype": request.kv_dtype,
        "price-per-gpu-hour": request.price_per_gpu_hour,
        "output-length": None if request.output_length == 128.0 else request.output_length,
        "acceptance": None if request.acceptance == 0.7 else request.acceptance,
    }
    words += [f"--{name} {value}" for name, value in optional.items() if value is not None]
    return " ".join(words)


def computed_share(sources: dict[str, float]) -> float:
    """Share of the time that is computed rather than measured: not ``silicon``, and ``mixed`` by half."""
    return 1.0 - sources.get("silicon", 0.0) - sources.get("mixed", 0.0) / 2


def extrapolated(engines: Engines) -> list[str]:
    """Notices of weight formats of which much is computed, not measured."""
    notices = []
    for name, engine in engines.compiled.items():
        share = computed_share(engine.sources())
        if share > EXTRAPOLATED:
            notices.append(
                f"{share:.0%} of the time of {name} iterations is computed by aiconfigurator-core from similar kernels"
                " or the roofline, not measured"
            )
    return notices


def verdicts(engines: Engines, request: Request) -> dict[str, coverage.Verdict]:
    """How tables of this model, GPU and backend compare with measurements in each weight format of the request."""
    of = (engines.file.name, engines.gpu.system, request.backend)
    return {name: coverage.verdict(*of, name) for name in engines.compiled}


def validity(engines: Engines, request: Request) -> list[str]:
    """A notice for each weight format of the table that is not validated, or not compared."""
    return list(dict.fromkeys(one.text for one in verdicts(engines, request).values() if not one.validated))


def doubts(metadata: Mapping[str, Any], tier: int) -> list[str]:
    """What a table's metadata say against its weight format of a tier: that it is not validated or was not compared.

    Args:
        metadata: of any table; one that was not built of measured kernels says nothing.
        tier: ``quant_tier`` of the answer.
    """
    if "validated" not in metadata:
        return []
    name = json.loads(metadata.get("dtypes", "{}")).get(str(tier))
    text = json.loads(metadata.get("validated_by_dtype", "{}")).get(name, metadata["validated"])
    return [] if text.startswith("validated") else [text]
