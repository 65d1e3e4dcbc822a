"""Number formats of weights and caches: bytes a value, and which weight format a checkpoint has.

``quant_tier`` of a table: 0 for 16-bit weights, 1 for 8-bit ones, 2 for 4-bit ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferencegym_jax.hardware.model_shape import text_config
from inferencegym_jax.models import QuantTier, shown
from inferencegym_jax.table import TableError


@dataclass(frozen=True)
class Dtype:
    """A weight format.

    Attributes:
        name: as in ``--dtype``.
        bytes: a weight, scales among them.
        tier: the table's ``quant_tier``.
        quality_loss: share of the 16-bit model's quality that is lost (docs/tables.md names the source).
        experts_only: attention and dense layers stay at 16 bits.
        meaning: in words.
    """

    name: str
    bytes: float
    tier: QuantTier
    quality_loss: float
    experts_only: bool
    meaning: str


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("bf16", 2.0, QuantTier.FP16, 0.0, False, "16 bits"),
        Dtype("fp8", 1.0, QuantTier.INT8, 0.0, False, "8-bit floats, activations too"),
        Dtype("int8", 1.0, QuantTier.INT8, 0.005, False, "8-bit integers"),
        Dtype("int4", 0.5 + 2.0 / 128, QuantTier.INT4, 0.03, False, "4-bit integers, weights only, a scale per 128"),
        Dtype("fp4", 9.0 / 16, QuantTier.INT4, 0.03, False, "NVFP4, a scale per 16"),
        Dtype("mxfp4", 0.5 + 1.0 / 32, QuantTier.INT4, 0.0, True, "experts in MXFP4, a scale per 32, the rest 16 bits"),
    )
}
KV_BYTES: dict[str, float] = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0}


def dtype_named(name: str) -> Dtype:
    """The weight format of a name.

    Raises:
        TableError: there is none; the message lists those there are.
    """
    if name not in DTYPES:
        raise TableError(f"dtype = {shown(name)}: must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def kv_bytes(name: str) -> float:
    """Bytes of one value of a cache in this format.

    Raises:
        TableError: there is no such format.
    """
    if name not in KV_BYTES:
        raise TableError(f"kv_dtype = {shown(name)}: must be one of {', '.join(KV_BYTES)}")
    return KV_BYTES[name]


def checkpoint_dtype(config: Mapping[str, Any]) -> Dtype:
    """The weight format that a ``config.json`` states; 16 bits where it states none.

    Raises:
        TableError: a quantisation that is not known here.
    """
    stated = config.get("quantization_config") or text_config(config).get("quantization_config")
    if not isinstance(stated, Mapping):
        return DTYPES["bf16"]
    method = str(stated.get("quant_method") or stated.get("quant_algo") or "").lower()
    text = str(stated).lower()
    if method == "mxfp4":
        return DTYPES["mxfp4"]
    if method in ("fp8", "fbgemm_fp8"):
        return DTYPES["fp8"]
    if method in ("awq", "gptq"):
        bits = stated.get("bits", stated.get("w_bit", 4))
        if bits not in (4, 8):
            raise TableError(f"config.json: quantization_config.bits = {shown(bits)}: must be 4 or 8; or give --dtype")
        return DTYPES["int4" if bits == 4 else "int8"]
    if method in ("compressed-tensors", "modelopt") and "'num_bits': 4" in text:
        return DTYPES["fp4" if "'type': 'float'" in text or "nvfp4" in text else "int4"]
    if method in ("compressed-tensors", "modelopt"):
        return DTYPES["fp4" if "fp4" in text else "fp8" if "float" in text or "fp8" in text else "int8"]
    raise TableError(f"config.json: quantization_config.quant_method = {shown(method)}: not known here; give --dtype")
