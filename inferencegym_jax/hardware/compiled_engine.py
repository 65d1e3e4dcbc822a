"""The compiled engine of aiconfigurator-core: one model on measured kernels, taken apart into the curves of a profile.

``ModelFile, system, backend, Placement, modes -> CompiledEngine``, which answers in ms: products of all layers over m
tokens, output head, attention of a decode iteration, attention of a prompt. The package is an extra (``tables``); it is
imported where it is asked.

A batch of n sequences on pp pipeline stages and dp attention copies runs as pp x dp parts of n / (pp dp): every curve
is read at that share of the tokens, so an iteration is one whole pass of each part, and a prompt takes of each stage
only its share.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import logging
import math
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from inferencegym_jax.hardware.dtypes import Dtype
from inferencegym_jax.hardware.memory import Placement
from inferencegym_jax.hardware.model_files import MISSING, ModelFile, model_file, package_folder
from inferencegym_jax.hardware.model_shape import text_config
from inferencegym_jax.table import TableError

BACKENDS = ("vllm", "trtllm", "sglang")
DECODE_TOKENS = 512  # up to so many tokens a pass is priced as a decode, beyond as a prompt
EVENLY_ASKED = 16  # experts, up to which they are taken to be asked evenly
SHORT = 64  # tokens of prompts so short that their attention is none
REFUSALS = (RuntimeError, ValueError, AssertionError, LookupError)  # what the package raises where it lacks kernels
GEMM: dict[str, tuple[tuple[str | None, str | None], ...]] = {
    "bf16": (("bfloat16", "bfloat16"),),
    "fp8": (("fp8_static", "fp8"), ("fp8", "fp8"), ("fp8_block", "fp8_block"), ("fp8_static", "fp8_block")),
    "int8": (("sq", "bfloat16"), ("int8_wo", "bfloat16")),
    "int4": (("int4_wo", "int4_wo"), ("bfloat16", "int4_wo")),
    "fp4": (("nvfp4", "nvfp4"), ("nvfp4_wo", "nvfp4_wo"), ("w4a16_nvfp4", "w4a16_nvfp4")),
    "mxfp4": ((None, None),),
}  # weight format -> modes of matrix products and experts, the likeliest first
KV_MODE = {"bf16": "bfloat16", "fp8": "fp8", "int8": "int8"}


class NotMeasuredError(TableError):
    """The package has no kernels for what was asked; the message is its own."""


@dataclass(frozen=True)
class Modes:
    """Number formats of a compiled engine, as the package calls them; None: as the checkpoint says."""

    gemm: str | None
    experts: str | None
    cache: str | None
    attention: str | None

    def __str__(self) -> str:
        """``products fp8_static, experts fp8, cache fp8, attention bfloat16``."""
        parts = (
            ("products", self.gemm),
            ("experts", self.experts),
            ("cache", self.cache),
            ("attention", self.attention),
        )
        return ", ".join(f"{name} {value or 'as the checkpoint says'}" for name, value in parts)


def require_package() -> None:
    """Raise where the measured kernels are not installed.

    Raises:
        TableError: they are not; the message says how to install them.
    """
    if package_folder() is None:
        raise TableError(MISSING)
    try:
        importlib.import_module("aiconfigurator_core.sdk.engine")
    except ImportError as error:
        raise TableError(f"{MISSING}; {error}") from None


def candidates(dtype: Dtype, own: bool, kv_dtype: str, backend: str, experts: bool) -> Iterator[Modes]:
    """Modes to try, the likeliest first.

    Args:
        dtype: of the weights.
        own: whether that is the checkpoint's own quantisation, which the package reads from the config.
        kv_dtype: of the cache.
        backend: TensorRT-LLM computes attention in 8 bits where the cache has 8.
        experts: whether the model has any; only then may they alone be quantised.
    """
    cache = KV_MODE[kv_dtype]
    attention = ("fp8", "bfloat16") if kv_dtype == "fp8" and backend == "trtllm" else ("bfloat16",)
    products = ((None, None), *GEMM[dtype.name]) if own and dtype.name != "bf16" else GEMM[dtype.name]
    for fmha in attention:
        for gemm, moe in products:
            if gemm != "bfloat16" or dtype.name == "bf16" or experts:
                yield Modes(gemm, moe, cache, fmha)


class CompiledEngine:
    """One model on one kind of GPU, cut in one way; see the module.

    Attributes:
        modes: number formats that were compiled.
        version: of the backend whose kernels are read.
        placement: how the model is cut.
        model: the package's own model, from which it compiled.
    """

    def __init__(self, handle: Any, modes: Modes, version: str, placement: Placement, model: Any) -> None:
        self.modes = modes
        self.version = version
        self.placement = placement
        self.model = model
        self._handle = handle
        self._separable = handle.mixed_step_breakdown(1024, 1, 1024, 2)[2] > 0

    @property
    def mixed_ms(self) -> float:
        """An iteration of 64 sequences of 1,024 tokens and 512 tokens of a prompt, ms."""
        return self._handle.mixed_step_latency(512, 64, 1024, 128)

    def _share(self, amount: float) -> int:
        return max(1, math.ceil(amount / self.placement.copies))

    @functools.cache  # noqa: B019 - an engine lives as long as the build that asks it
    def products_ms(self, tokens: int) -> float:
        """Everything but attention and output head over ``tokens`` tokens, ms: products, experts, norms, transfers."""
        share = self._share(tokens)
        if share <= DECODE_TOKENS:
            ops = self._handle.decode_step_per_op(share, 1, 2)
            return _sum(ops) - _sum(ops, "logits") - self._handle.mixed_step_breakdown(1, share, 1, 2)[3]
        if self._separable:
            ops = self._handle.mixed_step_breakdown_per_op(share - 1, 1, share - 1, 2)[0]
        else:
            count = -(-share // SHORT)
            ops = self._handle.run_static_per_op(batch_size=count, isl=SHORT, osl=1, mode="static_ctx")[0]
        return _sum(ops) - _sum(ops, "logits")

    def head_ms(self, positions: int) -> float:
        """Output head over so many positions, ms."""
        return _sum(self._handle.decode_step_per_op(self._share(positions), 1, 2), "logits")

    def decode_attention_ms(self, sequences: int, context: int) -> float:
        """Attention of one decode iteration of ``sequences`` sequences of ``context`` tokens, ms."""
        share = self._share(sequences)
        if self._separable:
            return self._handle.mixed_step_breakdown(1, share, max(context - 1, 1), 2)[3]
        ops = self._handle.decode_step_per_op(share, max(context - 1, 1), 2)
        return max(_sum(ops) - _sum(ops, "logits") - self.products_ms(sequences), 0.0)

    def prefill_attention_ms(self, tokens: int) -> float:
        """Attention of one whole prompt of ``tokens`` tokens, ms."""
        if self._separable:
            return self._handle.mixed_step_breakdown(tokens, 1, tokens, 2)[2] / self.placement.copies
        ops = self._handle.run_static_per_op(batch_size=1, isl=tokens, osl=1, mode="static_ctx")[0]
        rest = self.products_ms(tokens * self.placement.copies)
        return max(_sum(ops) - _sum(ops, "logits") - rest, 0.0) / self.placement.copies

    def sources(self) -> dict[str, float]:
        """Share of the time of a decode iteration (32 sequences of 1,024 tokens) and of a prompt of 1,024 by where the
        package has it from: ``silicon`` measured, ``mixed`` in part, ``estimated`` and ``empirical`` computed."""
        ops = self._handle.decode_step_per_op(self._share(32), 1023, 2)
        ops = [*ops, *self._handle.run_static_per_op(batch_size=1, isl=1024, osl=1, mode="static_ctx")[0]]
        total = _sum(ops)
        names = sorted({op[3] for op in ops})
        return {name: round(sum(op[1] for op in ops if op[3] == name) / total, 4) for name in names}

    def weights_gb(self) -> float:
        """Weights on one GPU as the package counts them, GB."""
        return sum(op.get_weights() for op in self.model.context_ops) / self.placement.pp / 1e9

    def kv_bytes_per_token(self, context: int) -> float:
        """KV cache a token on one GPU as the package counts it, bytes, averaged over ``context`` tokens."""
        return self.model.get_kvcache_bytes_per_sequence(context) / context / self.placement.pp / self.placement.dp


def _sum(ops: Any, name: str = "") -> float:
    return sum(op[1] for op in ops if name in op[0])


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """The package logs each file that it falls back to; what it says of kernels is in ``sources``."""
    logger = logging.getLogger("aiconfigurator_core")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def backend_version(system: str, backend: str) -> str:
    """The version of the backend whose kernels the package reads on a system.

    Raises:
        NotMeasuredError: none was measured there.
    """
    require_package()
    from aiconfigurator_core.sdk import perf_database  # pyright: ignore[reportMissingImports]

    if backend not in BACKENDS:
        raise TableError(f"backend = {backend!r}: must be one of {', '.join(BACKENDS)}")
    slots = perf_database.get_version_slots(system, backend)
    if not slots or not slots.get("current"):
        raise NotMeasuredError(f"{backend} on {system}: no kernels were measured")
    return str(slots["current"])


def compiled(model: ModelFile, system: str, backend: str, placement: Placement, modes: Modes) -> CompiledEngine:
    """The engine of these modes.

    Raises:
        NotMeasuredError: the package has no kernels for them.
    """
    version = backend_version(system, backend)
    import aiconfigurator_core as package  # pyright: ignore[reportMissingImports]
    from aiconfigurator_core.sdk import perf_database  # pyright: ignore[reportMissingImports]
    from aiconfigurator_core.sdk.config_builders import build_model_config  # pyright: ignore[reportMissingImports]
    from aiconfigurator_core.sdk.engine import EngineHandle, build_engine_spec_json  # pyright: ignore
    from aiconfigurator_core.sdk.models import get_model  # pyright: ignore[reportMissingImports]

    width = placement.tp * placement.dp
    settings: dict[str, Any] = {
        "tp_size": placement.tp,
        "pp_size": placement.pp,
        "attention_dp_size": placement.dp,
        "moe_tp_size": width // placement.ep,
        "moe_ep_size": placement.ep,
        "gemm_quant_mode": modes.gemm,
        "moe_quant_mode": modes.experts,
        "kvcache_quant_mode": modes.cache,
        "fmha_quant_mode": modes.attention,
    }
    with _quiet():
        try:
            config = build_model_config(**settings)
            config.workload_distribution = asked_experts(model)
            built = get_model(model.engine_path, config, backend)
            spec = build_engine_spec_json(
                built,
                model_path=model.engine_path,
                system=system,
                backend=backend,
                backend_version=version,
                kv_block_size=None,
                systems_path=None,
                nextn=0,
                database=perf_database.get_database(system, backend, version),
            )
            handle = EngineHandle(bytes(package.engine_spec_bincode_from_json(spec)))
            handle.decode_step_latency(8, 512, 2)
            handle.predict_prefill_latency(1, 512)
            return CompiledEngine(handle, modes, version, placement, built)
        except REFUSALS as error:
            text = re.sub(r" at \S*site-packages\S*", "", " ".join(str(error).split()))
            raise NotMeasuredError(
                f"{model.name}, {backend} {version} on {system}, {placement}: {text[:300]}"
            ) from None


def has_experts(model: ModelFile) -> bool:
    """Whether a config names routed experts."""
    return any(
        part in str(key)
        for key in text_config(model.config)
        for part in ("num_experts", "routed_experts", "local_experts")
    )


def asked_experts(model: ModelFile) -> str:
    """How evenly a model's experts are asked, as the package's measurements name it.

    ``balanced`` with up to 16 experts: Mixtral's are asked nearly evenly whatever the text (arXiv 2401.04088, section
    5). ``power_law``, the package's default, with more.
    """
    part = text_config(model.config)
    counts = [part.get(key) for key in ("num_local_experts", "n_routed_experts", "num_experts")]
    experts = next((int(count) for count in counts if count), 0)
    return "balanced" if 0 < experts <= EVENLY_ASKED else "power_law"


@functools.lru_cache(maxsize=64)
def compiled_engine(
    name: str, system: str, backend: str, placement: Placement, dtype: Dtype, own: bool, kv_dtype: str
) -> CompiledEngine:
    """The engine of the first of ``candidates`` that has kernels; see there and ``compiled``.

    Args:
        name: of the model, as ``model_file`` takes it.
        system: see ``candidates``.
        backend: see ``candidates``.
        placement: see ``candidates``.
        dtype: see ``candidates``.
        own: see ``candidates``.
        kv_dtype: see ``candidates``.

    Raises:
        NotMeasuredError: none has.
    """
    model = model_file(name)
    return fastest(model, system, backend, placement, candidates(dtype, own, kv_dtype, backend, has_experts(model)))


def fastest(
    model: ModelFile, system: str, backend: str, placement: Placement, tried: Iterable[Modes]
) -> CompiledEngine:
    """The engine of the first cache and attention formats that have kernels; of several kinds of products the fastest.

    An engine takes the fastest kernel that it has for a checkpoint, and the package measured several kinds for one
    weight format (scales static, with each token, by blocks). Compared at 64 sequences of 1,024 tokens beside 512
    tokens of a prompt.

    Raises:
        NotMeasuredError: none of ``tried`` has kernels.
    """
    first: NotMeasuredError | None = None
    for _, group in itertools.groupby(tried, lambda modes: (modes.cache, modes.attention)):
        engines: list[CompiledEngine] = []
        for modes in group:
            try:
                engines.append(compiled(model, system, backend, placement, modes))
            except NotMeasuredError as error:
                first = first or error
        if engines:
            return min(engines, key=lambda engine: engine.mixed_ms)
    if first is None:
        raise NotMeasuredError(f"{model.name}, {backend} on {system}: no number format to try")
    raise NotMeasuredError(f"no kernels: {first}") from None
