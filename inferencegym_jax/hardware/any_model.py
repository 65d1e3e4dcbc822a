"""A latency table of any model on any measured GPU.

``Request -> weight formats that fit and are measured -> curves -> EngineProfile -> rows -> LatencyTable``, with what
it rests on in its metadata: memory, bytes a token, price, kernels and which of them are extrapolated. What does not fit
is refused before any kernel is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from inferencegym_jax.hardware import constants, memory
from inferencegym_jax.hardware.compiled_engine import (
    BACKENDS,
    CompiledEngine,
    NotMeasuredError,
    compiled_engine,
    require_package,
)
from inferencegym_jax.hardware.coverage import measured_dtypes
from inferencegym_jax.hardware.dtypes import DTYPES, checkpoint_dtype, dtype_named, kv_bytes
from inferencegym_jax.hardware.engine_curves import curves, rounded
from inferencegym_jax.hardware.gpus import Gpu, Price, gpu_named, price_of
from inferencegym_jax.hardware.memory import DoesNotFitError, checked_placement
from inferencegym_jax.hardware.model_files import ModelFile, model_file
from inferencegym_jax.hardware.model_shape import UnknownShapeError, shape_of
from inferencegym_jax.hardware.request import Engines, Request
from inferencegym_jax.hardware.steady_state import Point, Served, serve
from inferencegym_jax.hardware.table_metadata import PACKAGE_VERSION, described, extrapolated, validity
from inferencegym_jax.models import KNOBS, QuantTier, finite_number, shown
from inferencegym_jax.table import EngineProfile, LatencyTable, TableError, table_from_columns
from inferencegym_jax.table.latency_table import PROMPT_LENGTHS

BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128, 256, 512)
OF_A_TIER = (("bf16",), ("fp8", "int8"), ("int4", "fp4"))  # weight formats of a 16-bit checkpoint by quant_tier


class Built(NamedTuple):
    """A table and what its user must know of it."""

    table: LatencyTable
    notices: tuple[str, ...]


def build(request: Request) -> Built:
    """The table of a request.

    Raises:
        DoesNotFitError: the model does not fit; the message has the smallest number of GPUs that would do.
        NotMeasuredError: the package has no kernels for it.
        TableError: a field of the request that cannot be used, or the package is not installed.
    """
    for name, number, most in (("output_length", request.output_length, 1e6), ("acceptance", request.acceptance, 1.0)):
        value = finite_number(number)
        if value is None or not 0 < value <= most:
            raise TableError(f"{name} = {shown(number)}: must be a number above 0, at most {most:g}")
    price = price_of(gpu_named(request.system), request.price_per_gpu_hour)
    engines = engines_of(request)
    profile = profile_of_engines(engines, request, price)
    tiers = sorted({int(DTYPES[name].tier) for name in engines.compiled})
    columns = rows(profile, tiers, request, engines.gpu)
    metadata = described(engines, request, price, profile)
    name = f"{engines.file.name} on {request.placement.gpus} x {engines.gpu.system}, {request.backend}"
    table = table_from_columns(columns, metadata, name)
    notices = [*engines.notices, *extrapolated(engines), *validity(engines, request)]
    if price.per_gpu_hour is None:
        notices.append(price.source)
    return Built(LatencyTable(table.axes, table.values, metadata, name, profile), tuple(notices))


def stated_kv_dtype(file: ModelFile) -> str:
    """The cache's format that a checkpoint states; 16 bits, the engines' default, where it states none."""
    quantisation = file.config.get("quantization_config")
    stated = str(quantisation).lower() if isinstance(quantisation, dict) else ""
    algorithm = str(quantisation.get("kv_cache_quant_algo", "")).lower() if isinstance(quantisation, dict) else ""
    scheme = isinstance(quantisation, dict) and quantisation.get("kv_cache_scheme")
    return "fp8" if "fp8" in algorithm or (scheme and "float" in stated) else "bf16"


def wanted_dtypes(request: Request, file: ModelFile) -> tuple[list[tuple[str, ...]], bool]:
    """Weight formats to try, one of each group, and whether a group that fails is an error."""
    if request.dtype is not None:
        return [(dtype_named(request.dtype).name,)], True
    own = checkpoint_dtype(file.config)
    if own.name != "bf16":
        return [(own.name,)], True
    return list(OF_A_TIER), False


def engines_of(request: Request) -> Engines:
    """The compiled weight formats of a request; see ``build`` for what is raised."""
    gpu, file = gpu_named(request.system), model_file(request.model)
    if request.backend not in BACKENDS:
        raise TableError(f"backend = {shown(request.backend)}: must be one of {', '.join(BACKENDS)}")
    try:
        shape = shape_of(file.config)
    except UnknownShapeError:
        shape = None
    placement = checked_placement(request.placement, shape)
    kv_dtype = request.kv_dtype or stated_kv_dtype(file)
    kv_bytes(kv_dtype)
    groups, strict = wanted_dtypes(request, file)
    own = checkpoint_dtype(file.config).name if request.dtype is None else None
    fits: dict[str, float] = {}
    notices: list[str] = []
    misfit: DoesNotFitError | None = None
    if shape is not None:
        for name in itertools.chain(*groups):
            try:
                fits[name] = memory.fitting(shape, gpu, DTYPES[name], kv_dtype, placement, file.name).weights_gb
            except DoesNotFitError as error:
                misfit = error
                if strict:
                    raise
                if name == groups[0][0]:
                    notices.append(str(error))
        if misfit is not None and not fits:
            raise misfit
    require_package()
    compiled: dict[str, CompiledEngine] = {}
    for group in groups:
        missing: NotMeasuredError | None = None
        for name in group:
            if shape is not None and name not in fits:
                continue
            is_own = own == name or (request.dtype is not None and checkpoint_dtype(file.config).name == name)
            try:
                compiled[name] = compiled_engine(
                    request.model, gpu.system, request.backend, placement, DTYPES[name], is_own, kv_dtype
                )
                break
            except NotMeasuredError as error:
                missing = missing or error
        else:
            if missing is not None:
                known = measured_dtypes(gpu.system, request.backend)
                if strict and group[0] not in known:
                    raise NotMeasuredError(
                        f"dtype = {group[0]}: {request.backend} on {gpu.system} was measured in {', '.join(known)};"
                        f" {missing}"
                    )
                if strict:
                    raise missing
                notices.append(f"{' or '.join(group)} weights are left out: {missing}")
    if not compiled:
        first = next((notice for notice in notices if "are left out" in notice), notices[0])
        raise NotMeasuredError(f"{file.name} on {gpu.system}, {request.backend}, {kv_dtype} cache: {first}")
    if shape is None:
        return _counted_by_package(file, gpu, kv_dtype, compiled, notices)
    bytes_each = memory.kv_bytes_per_token(shape, kv_dtype, placement)
    weights = {name: fits[name] for name in compiled}
    return Engines(file, gpu, shape, kv_dtype, compiled, weights, bytes_each, tuple(notices))


def _counted_by_package(
    file: ModelFile, gpu: Gpu, kv_dtype: str, compiled: dict[str, CompiledEngine], notices: list[str]
) -> Engines:
    """Memory of a model whose layers have no formula here, as the package counts it."""
    first = next(iter(compiled.values()))
    weights = {name: engine.weights_gb() for name, engine in compiled.items()}
    bytes_each = first.kv_bytes_per_token(memory.REFERENCE_CONTEXT)
    runtime = memory.runtime_gb(gpu, first.placement)
    for name in list(compiled):
        if (gpu.memory_gb - weights[name] - runtime) * 1e9 < 8192 * bytes_each:
            text = (
                f"{file.name} in {name} does not fit {first.placement.gpus} x {gpu.title}: {weights[name]:.1f} GB of"
                f" weights on each and {runtime:.1f} GB of runtime leave no room for 8,192 tokens of cache"
            )
            if len(compiled) == 1:
                least = -(-weights[name] * first.placement.gpus // (gpu.memory_gb - runtime))
                raise DoesNotFitError(f"{text}; at least {least:.0f} GPUs would do")
            notices.append(text)
            del compiled[name], weights[name]
    notices.append("weights and cache are as aiconfigurator-core counts them: these layers have no formula here")
    return Engines(file, gpu, None, kv_dtype, compiled, weights, bytes_each, tuple(notices))


def by_tier(values: dict[str, Any]) -> list[Any]:
    """One value for each of FP16, INT8, INT4: that of the format, or of the nearest that there is.

    The table has no rows of a format that there is not, which locks the knob; a profile has a place for each.
    """
    tiers = {int(DTYPES[name].tier): value for name, value in values.items()}
    return [tiers[min(tiers, key=lambda there, tier=int(tier): abs(there - tier))] for tier in QuantTier]


def profile_of_engines(engines: Engines, request: Request, price: Price) -> EngineProfile:
    """The engine profile; memory and bytes are of one GPU, times of the whole engine."""
    gpu, placement = engines.gpu, request.placement
    fitted = constants.of_engine(request.backend, placement.gpus)
    version = next(iter(engines.compiled.values())).version
    content = {
        "format": 1,
        "model": engines.file.name,
        "gpu": gpu.title if placement.gpus == 1 else f"{placement.gpus} x {gpu.title} ({placement})",
        "engine": f"{request.backend} {version}",
        "source": f"aiconfigurator-core {PACKAGE_VERSION}: its compiled engine on kernels of {gpu.system}",
        "licence": "Apache-2.0",
        "memory_gb": gpu.memory_gb,
        "bandwidth_gb_s": gpu.bandwidth_gb_s,
        "runtime_gb": rounded(memory.runtime_gb(gpu, placement)),
        "kv_bytes_per_token": rounded(engines.kv_bytes_per_token),
        "host_link_gb_s": gpu.host_link_gb_s,
        "price_per_gpu_hour": price.per_gpu_hour,
        "weights_gb": rounded(by_tier(engines.weights_gb)),
        "quality_loss": by_tier({name: DTYPES[name].quality_loss for name in engines.compiled}),
        "overhead_ms": fitted.overhead_ms,
        "overhead_ms_per_sequence": 0.0,
        "path_ms": fitted.path_ms,
        "first_token_extra_iterations": 1,
        "tokens_per_iteration": constants.tokens_per_iteration(request.backend, gpu),
        "draft_share": constants.draft_share(),
        "spec_lengths": list(KNOBS["spec_length"].choices),
        "acceptance_lengths": constants.acceptance_lengths(),
        "notes": _notes(engines, fitted),
        **curves(by_tier(engines.compiled)),
    }
    return EngineProfile.from_dict(content, f"{engines.file.name} on {gpu.system}")


def _notes(engines: Engines, fitted: constants.Fitted) -> dict[str, str]:
    formats = "; ".join(f"{DTYPES[name].tier.name}: {name}, {e.modes}" for name, e in engines.compiled.items())
    return {
        "memory_gb": "of one GPU, as are weights_gb, runtime_gb and kv_bytes_per_token; times are the whole engine's",
        "products_ms": f"{formats}; a format that is not named has the values of the nearest one and no rows",
        "overhead_ms": fitted.source,
        "path_ms": fitted.source,
        "kv_bytes_per_token": f"{engines.kv_dtype} cache, averaged over {memory.REFERENCE_CONTEXT} tokens",
        "host_link_gb_s": "four fifths of the bus's peak, an assumption",
        "draft_share": "of the shipped profile: Llama-3.1-8B with EAGLE drafts",
        "acceptance_lengths": "of the shipped profile",
    }


def rows(profile: EngineProfile, tiers: Sequence[int], request: Request, gpu: Gpu) -> dict[str, list[float]]:
    """The table's columns: batch x drafts x weight format x prefill engine x prompt; ``cost_per_1k`` in GPU-seconds."""
    columns: dict[str, list[float]] = {}
    spec_lengths = KNOBS["spec_length"].choices
    for batch, drafts, tier, disagg, bucket in itertools.product(
        BATCH_SIZES, spec_lengths, tiers, (0, 1), range(len(PROMPT_LENGTHS))
    ):
        point = Point(batch, PROMPT_LENGTHS[bucket], request.output_length, drafts, tier, bool(disagg))
        served = serve(profile, point, gpu.kv_link_gb_s, request.acceptance)
        keys = {"batch_size": batch, "spec_length": drafts, "quant_tier": tier, "prefill_disagg": disagg}
        for name, value in (keys | {"prompt_len_bucket": bucket} | _metrics(served, request.placement.gpus)).items():
            columns.setdefault(name, []).append(float(value))
    return columns


def _metrics(served: Served, gpus: int) -> dict[str, float]:
    return {
        "ttft_p50_ms": served.ttft_p50_ms,
        "ttft_p99_ms": served.ttft_p99_ms,
        "tpot_ms": served.tpot_ms,
        "tps": served.tps,
        "gpu_mem_gb": served.gpu_mem_gb,
        "cost_per_1k": 1000.0 * gpus * served.engines / served.tps,
    }
