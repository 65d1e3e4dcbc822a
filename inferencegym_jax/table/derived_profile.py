"""The engine profile of any latency table: the one it states, or one derived from its TPOT columns.

``LatencyTable -> profile_of -> EngineProfile``. How a table is taken apart (n running requests, prompt P, mean
output O, all in ms):

    decode iteration   t(n, P) = TPOT with prefill_disagg, else TPOT - (n / O) p(P)
    a prompt           p(P) = (TPOT colocated - TPOT with prefill_disagg) O / n, at the largest n; else the metadata
                       prefill_ms; else TTFT - TPOT of a lone request
    products(m)        t(m, shortest P) as far as it rises no faster than a prompt token costs, that rate beyond
    attention          decode: t(n, P) - products(n), at contexts P + O / 2; prefill: p(P) less its tokens' products

So t and p come out exactly at the table's nodes. The output head is in the products. The pool needs metadata: a
table's gpu_mem_gb says what a batch used, not what the GPU holds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from inferencegym_jax.models import QuantTier, finite_number, shown
from inferencegym_jax.table.engine_profile import EngineProfile
from inferencegym_jax.table.errors import TableError
from inferencegym_jax.table.latency_table import METRICS, PROFILE_SUFFIX, LatencyTable, data_path
from inferencegym_jax.table.profile_format import ENGINE_METADATA, FORMAT, NUMBERS, POOL_METADATA, SPEC_LENGTHS

LEAST_DECODE = 0.1  # of a TPOT is decode, whatever prompts are said to add
SHIPPED_PROFILE = f"traces_llama3_8b{PROFILE_SUFFIX}"
POOL_KEYS = {
    "memory_gb": NUMBERS["memory_gb"].meaning,
    "weights_gb": "GB of weights, a number or a JSON list, one for each quant_tier of the table (16.06 for Llama-3-8B)",
    "kv_bytes_per_token": NUMBERS["kv_bytes_per_token"].meaning,
}
OTHER_KEYS = ("runtime_gb", "host_link_gb_s", "tokens_per_iteration", "draft_share")  # else as the shipped profile
ZERO_KEYS = ("path_ms", "overhead_ms_per_sequence", "first_token_extra_iterations")  # else 0: TPOT and TTFT hold them


def profile_of(table: LatencyTable, stated: Mapping[str, Any] | None = None) -> EngineProfile:
    """What the open loop reads of a table.

    Args:
        table: with or without a profile of its own.
        stated: fields or metadata that overrule the table's, for example ``{"memory_gb": 40.0}``.

    Raises:
        TableError: the table has no profile and lacks what one is derived from; the message names the metadata to add.
    """
    if not stated:
        return _profile(table)
    if table.engine is None:
        return derive(table, stated)
    return EngineProfile.from_dict(table.engine.to_dict() | dict(stated), table.name)


@functools.lru_cache(maxsize=8)
def _profile(table: LatencyTable) -> EngineProfile:
    return derive(table) if table.engine is None else table.engine


@functools.cache
def shipped_profile() -> EngineProfile:
    """The profile of the shipped table: Llama-3-8B on an A100."""
    return EngineProfile.load(data_path(SHIPPED_PROFILE))


def derive(table: LatencyTable, stated: Mapping[str, Any] | None = None) -> EngineProfile:
    """A profile from the TPOT columns and metadata alone; see ``profile_of``."""
    unknown = set(stated or {}) - {*POOL_METADATA, *ENGINE_METADATA}
    if unknown:
        allowed = ", ".join((*POOL_METADATA, *ENGINE_METADATA))
        raise TableError(f"{table.name}: {min(unknown)} is unknown; what can be stated of this table is {allowed}")
    texts: dict[str, Any] = {**table.metadata, **(stated or {})}
    shipped = shipped_profile()
    numbers: dict[str, Any] = {key: getattr(shipped, key) for key in OTHER_KEYS} | dict.fromkeys(ZERO_KEYS, 0)
    numbers |= {key: _value(table, texts, key) for key in ENGINE_METADATA if key in texts}
    content = {
        "format": FORMAT,
        "model": str(texts.get("model", "unknown")),
        "gpu": str(texts.get("gpu", texts.get("system", "unknown"))),
        "engine": str(texts.get("engine", "unknown")),
        "source": f"derived from the TPOT columns of {table.name}",
        "licence": str(texts.get("licence", "unknown")),
        "overhead_ms": table.engine_overhead_ms,
        "quality_loss": shipped.quality_loss.tolist(),
        "spec_lengths": list(SPEC_LENGTHS),
        "acceptance_lengths": {kind: x.tolist() for kind, x in shipped.acceptance_lengths.items()},
        **numbers,
        **_memory(table, texts),
        **_curves(table, float(numbers["path_ms"])),
    }
    return EngineProfile.from_dict(content, table.name)


def _value(table: LatencyTable, texts: Mapping[str, Any], key: str) -> Any:
    """A metadata value as the number or list that its text holds."""
    value = texts[key]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise TableError(f"{table.name}: metadata {key} = {shown(value)}; must be a number") from None


def _memory(table: LatencyTable, texts: Mapping[str, Any]) -> dict[str, Any]:
    """memory_gb, weights_gb, runtime_gb and kv_bytes_per_token: of the GPU, or of a pool that the engine stated."""
    cache = {
        key: finite_number(_value(table, texts, key)) for key in ("kv_cache_tokens", "kv_cache_gb") if key in texts
    }
    pooled = any(cache.values()) and "memory_gb" not in texts
    missing = [key for key in POOL_KEYS if key not in texts and not (pooled and key != "kv_bytes_per_token")]
    if missing:
        needed = "; ".join(f"{key}: {POOL_KEYS[key]}" for key in missing)
        instead = "" if pooled else " (kv_cache_tokens, the size of the pool, stands for memory_gb and weights_gb)"
        raise TableError(
            f"{table.name}: open-loop tasks need the size of the KV pool, which this table does not say. Add the "
            f"metadata {needed}{instead}; or put an engine profile beside the table, see docs/tables.md"
        )
    token = finite_number(_value(table, texts, "kv_bytes_per_token"))
    if token is None or token <= 0:
        shown_token = shown(texts["kv_bytes_per_token"])
        raise TableError(f"{table.name}: metadata kv_bytes_per_token = {shown_token}; must be a number above 0")
    memory: dict[str, Any] = {"kv_bytes_per_token": token}
    if not pooled:
        weights = _value(table, texts, "weights_gb")
        return memory | {"memory_gb": _value(table, texts, "memory_gb"), "weights_gb": _by_tier(table, weights)}
    pool_gb = (cache.get("kv_cache_tokens") or 0.0) * token / 1e9 or cache.get("kv_cache_gb") or 0.0
    base = _value(table, texts, "base_memory_gb") if "base_memory_gb" in texts else 0.0
    return memory | {"memory_gb": base + pool_gb, "weights_gb": [base] * len(QuantTier), "runtime_gb": 0.0}


def _by_tier(table: LatencyTable, values: Any) -> list[float]:
    """One value for each of FP16, INT8, INT4 from one for each tier of the table; a tier that the table lacks, which
    no action can ask for, repeats the one below."""
    own = table.axes["quant_tier"]
    rows = list(values) if isinstance(values, list | tuple) else [values] * len(own)
    if len(rows) == len(QuantTier):
        return rows
    if len(rows) != len(own):
        raise TableError(
            f"{table.name}: metadata weights_gb = {shown(values)}; must be {len(own)} numbers, one a quant_tier"
        )
    return [rows[_tier(table, tier)] for tier in QuantTier]


def _tier(table: LatencyTable, tier: int) -> int:
    own = table.axes["quant_tier"]
    return max(sum(value <= tier for value in own) - 1, 0)


def _parts(table: LatencyTable, path_ms: float) -> tuple[np.ndarray, np.ndarray, int]:
    """t float64[quant, batch, prompt], p float64[quant, prompt], and the index of the batch at which p was measured."""
    axes = table.axes
    if axes["spec_length"][0] != 0:
        raise TableError(
            f"{table.name}: no rows of spec_length 0, from which open-loop tasks read what an iteration takes"
        )
    batch, output = np.asarray(axes["batch_size"])[:, None], table.output_length
    tpot, ttft = (
        table.values[0, :, :, :, -1, :, METRICS.index(name)].astype(np.float64) for name in ("tpot_ms", "ttft_p50_ms")
    )
    disagg = axes["prefill_disagg"]
    if len(disagg) == 2:
        added = np.maximum((tpot[:, 0] - tpot[:, 1])[:, -1] * output / batch[-1], 0.0)
        return tpot[:, 1], added, len(batch) - 1
    if table.prefill_ms:
        added = np.broadcast_to(np.asarray(table.prefill_ms, np.float64), tpot[:, 0, 0].shape)
    elif batch[0, 0] == 1:
        unloaded_ms = ttft[:, 0, 0] - (0.0 if disagg[0] else tpot[:, 0, 0]) - path_ms
        added = np.maximum(unloaded_ms, 0.0)
    else:
        raise TableError(
            f"{table.name}: nothing says what a prompt costs; add the metadata prefill_ms (JSON list, ms for each "
            "prompt length), or rows of batch_size 1, or rows of prefill_disagg 1"
        )
    whole = tpot[:, 0]
    if disagg[0]:
        return whole, added, 0
    return np.maximum(whole - batch / output * added[:, None], LEAST_DECODE * whole), added, 0


def _curves(table: LatencyTable, path_ms: float) -> dict[str, Any]:
    """The four curves of the profile."""
    decode, added, at = _parts(table, path_ms)
    batch, prompts = np.asarray(table.axes["batch_size"]), np.asarray(table.axes["prompt_len_bucket"])
    decode = np.maximum.accumulate(np.maximum.accumulate(decode, axis=1), axis=2)
    added = np.maximum.accumulate(added, axis=1)
    rates = np.diff(added, axis=1, prepend=0.0) / np.diff(prompts, prepend=0.0)
    rate = rates.min(axis=1)  # ms a prompt token: the least of all secants, so that prefill attention never falls

    steps = np.diff(decode[0, :, 0])
    first = np.concatenate([decode[0, :1, 0], decode[0, 0, 0] + np.cumsum(np.minimum(steps, rate[0] * np.diff(batch)))])
    attention = np.maximum.accumulate(np.maximum(decode[0] - first[:, None], 0.0), axis=0)
    beyond = float(prompts[-1]) + batch[-1]
    products = []
    for tier in QuantTier:
        row = _tier(table, tier)
        on_axis = first if row == 0 else np.maximum.accumulate(np.maximum(decode[row, :, 0] - attention[:, 0], 0.0))
        products.append([*on_axis, on_axis[-1] + rate[row] * (beyond - batch[-1])])
    tokens = [*batch, beyond]
    riding = np.interp(batch[at] + prompts, tokens, products[0]) - first[at]
    prefill = np.maximum.accumulate(np.maximum(added[0] - riding, 0.0))
    contexts = prompts + table.output_length / 2
    contexts, attention = _two_nodes(contexts, attention)
    sequences, transposed = _two_nodes(batch, attention.T)
    return {
        "products_ms": {"tokens": tokens, "ms": products},
        "head_ms": {"tokens": [1, 2], "ms": [0, 0]},
        "decode_attention_ms": {"sequences": sequences, "context": contexts, "ms": transposed.T},
        "prefill_attention_ms": {"tokens": [0, *prompts], "ms": [0, *prefill]},
    }


def _two_nodes(nodes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A second node of the same values where an axis (the last of ``values``) has one only."""
    if len(nodes) > 1:
        return nodes, values
    return np.array([nodes[0], 2 * nodes[0]]), np.repeat(values, 2, axis=-1)
