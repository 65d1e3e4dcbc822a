"""The engine profile's format: its fields, their meaning and range, and the checks that name what is wrong.

``JSON object -> checked_fields -> attributes of EngineProfile``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from inferencegym_jax.models import KNOBS, QuantTier, finite_number, shown
from inferencegym_jax.table.errors import TableError

FORMAT = 1
SPEC_LENGTHS: tuple[int, ...] = KNOBS["spec_length"].choices
# metadata of a table without a profile, from which one is derived
POOL_METADATA = ("memory_gb", "weights_gb", "kv_bytes_per_token", "kv_cache_tokens", "kv_cache_gb", "base_memory_gb")
ENGINE_METADATA = (
    "runtime_gb",
    "host_link_gb_s",
    "bandwidth_gb_s",
    "price_per_gpu_hour",
    "tokens_per_iteration",
    "draft_share",
    "path_ms",
    "overhead_ms_per_sequence",
    "first_token_extra_iterations",
)
REPLAY_METADATA = ("kv_block_tokens", "prefill_alone_share")  # that live trials read beside the profile
TEXTS = ("model", "gpu", "engine", "source", "licence")


class Number(NamedTuple):
    """A number of the profile: meaning and range."""

    meaning: str
    low: float = 0.0
    above: bool = False  # must be above `low`, not merely at least
    whole: bool = False
    optional: bool = False

    @property
    def allowed(self) -> str:
        """The range in words, for messages."""
        kind = "a whole number" if self.whole else "a finite number"
        none = " or null" if self.optional else ""
        return f"{kind} {'above' if self.above else 'of at least'} {self.low:g}{none}"


NUMBERS: dict[str, Number] = {
    "memory_gb": Number("memory of the GPU, GB (80 for an A100-SXM4-80GB)", above=True),
    "bandwidth_gb_s": Number("memory bandwidth of the GPU, GB/s", above=True, optional=True),
    "runtime_gb": Number("memory of the runtime, CUDA graphs and activations, GB"),
    "kv_bytes_per_token": Number(
        "KV cache a token, bytes: 2 x layers x KV heads x head size x bytes a value (131072 for Llama-3-8B)", above=True
    ),
    "host_link_gb_s": Number("rate at which weights are loaded from the host, GB/s", above=True),
    "price_per_gpu_hour": Number("money an hour of one GPU", optional=True),
    "overhead_ms": Number("scheduler and sampler time of an iteration, ms"),
    "overhead_ms_per_sequence": Number("the same for each running request, ms"),
    "path_ms": Number("time of a request outside iterations (HTTP, tokenizer), ms"),
    "first_token_extra_iterations": Number("iterations after its own until a first token surfaces", whole=True),
    "tokens_per_iteration": Number("token budget of an iteration, vLLM's max_num_batched_tokens", 1, whole=True),
    "draft_share": Number("time of one draft step over that of the target's iteration"),
}


class Curve(NamedTuple):
    """A curve of the profile: what it is called in JSON and in the dataclass."""

    arrays: tuple[str, ...]  # names of its axes and values in the dataclass
    axes: tuple[str, ...]  # names of the axes in JSON
    by_tier: bool = False


CURVES: dict[str, Curve] = {
    "products_ms": Curve(("products_tokens", "products_ms"), ("tokens",), by_tier=True),
    "head_ms": Curve(("head_tokens", "head_ms"), ("tokens",)),
    "decode_attention_ms": Curve(
        ("decode_sequences", "decode_context", "decode_attention_ms"), ("sequences", "context")
    ),
    "prefill_attention_ms": Curve(("prefill_tokens", "prefill_attention_ms"), ("tokens",)),
}


def checked_fields(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The attributes of ``EngineProfile`` from its JSON object, each checked.

    Args:
        content: the object.
        name: what to call it in messages.

    Raises:
        TableError: see ``EngineProfile.from_dict``.
    """
    others = ("format", "weights_gb", "quality_loss", "spec_lengths", "acceptance_lengths", "notes")
    known = (*others, *TEXTS, *NUMBERS, *CURVES)
    unknown = [key for key in content if key not in known]
    if unknown:
        raise TableError(f"{name}: {unknown[0]} is unknown; fields are {', '.join(sorted(known))}")
    missing = [key for key in known if key not in content and key != "notes" and not _optional(key)]
    if missing:
        meaning = f" ({NUMBERS[missing[0]].meaning})" if missing[0] in NUMBERS else ""
        raise TableError(f"{name}: {missing[0]} is missing{meaning}; needed are {', '.join(sorted(missing))}")
    if content["format"] != FORMAT:
        raise TableError(f"{name}: format = {shown(content['format'])}: must be {FORMAT}")
    values: dict[str, Any] = {}
    for key in TEXTS:
        if not isinstance(content[key], str):
            raise TableError(f"{name}: {key} = {shown(content[key])}: must be text")
        values[key] = content[key]
    for key, number in NUMBERS.items():
        values[key] = _number(content.get(key), number, f"{name}: {key}")
    tiers = len(QuantTier)
    for key in ("weights_gb", "quality_loss"):
        values[key] = _array(content[key], (tiers,), f"{name}: {key}", "one for each of FP16, INT8, INT4")
    if values["quality_loss"].max() > 1:
        raise TableError(f"{name}: quality_loss = {content['quality_loss']}: must be from 0 to 1")
    for key, curve in CURVES.items():
        values |= _curve(content[key], key, curve, name)
    if values["prefill_tokens"][0] != 0 or values["prefill_attention_ms"][0] != 0:
        raise TableError(
            f"{name}: prefill_attention_ms starts at {values['prefill_tokens'][0]:g} tokens with "
            f"{values['prefill_attention_ms'][0]:g} ms: must start at 0 tokens with 0 ms"
        )
    values["acceptance_lengths"] = _acceptance(content, name)
    notes = content.get("notes", {})
    if not isinstance(notes, Mapping) or not all(isinstance(x, str) for x in notes.values()):
        raise TableError(f"{name}: notes = {shown(notes)}: must map fields to text")
    return values | {"notes": dict(notes)}


def _optional(key: str) -> bool:
    return key in NUMBERS and NUMBERS[key].optional


def _number(value: Any, number: Number, name: str) -> float | int | None:
    if value is None and number.optional:
        return None
    checked = finite_number(value)
    bad = checked is None or checked < number.low or (number.above and checked == number.low)
    if checked is None or bad or (number.whole and checked != math.floor(checked)):
        raise TableError(f"{name} = {shown(value)}: must be {number.allowed} ({number.meaning})")
    return int(checked) if number.whole else checked


def _array(value: Any, shape: tuple[int, ...], name: str, meaning: str) -> np.ndarray:
    """float64 of a shape, finite and of at least 0; -1 stands for any length."""
    wanted = " x ".join("n" if n < 0 else str(n) for n in shape)
    try:
        array = np.array(value, np.float64)
    except (ValueError, TypeError):
        array = np.empty(0)
    if array.ndim != len(shape) or not all(n in (-1, m) and m for n, m in zip(shape, array.shape, strict=True)):
        raise TableError(f"{name} = {shown(value)}: must be {wanted} numbers, {meaning}")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        bad_place = [int(i) for i in np.argwhere(bad)[0]]
        raise TableError(f"{name}{bad_place} = {array[tuple(bad_place)]:g}: must be finite and of at least 0")
    array.setflags(write=False)
    return array


def _curve(value: Any, key: str, curve: Curve, name: str) -> dict[str, np.ndarray]:
    wanted = (*curve.axes, "ms")
    if not isinstance(value, Mapping) or set(value) != set(wanted):
        raise TableError(f"{name}: {key} = {shown(value)}: must be an object of {', '.join(wanted)}")
    axes: list[np.ndarray] = []
    for axis in curve.axes:
        nodes = _array(value[axis], (-1,), f"{name}: {key}.{axis}", "the nodes")
        if (np.diff(nodes) <= 0).any():
            at = int(np.argmax(np.diff(nodes) <= 0))
            raise TableError(f"{name}: {key}.{axis}: {nodes[at + 1]:g} follows {nodes[at]:g}; nodes must rise")
        axes.append(nodes)
    shape = (*((len(QuantTier),) if curve.by_tier else ()), *(len(nodes) for nodes in axes))
    ms = _array(value["ms"], shape, f"{name}: {key}.ms", "one for each node")
    for axis in range(int(curve.by_tier), ms.ndim):
        falls = np.diff(ms, axis=axis) < 0
        if falls.any():
            at = tuple(int(i) for i in np.argwhere(falls)[0])
            after = tuple(i + (axis == j) for j, i in enumerate(at))
            raise TableError(
                f"{name}: {key}.ms{list(after)} = {ms[after]:g} follows {ms[at]:g}; more work must not take less time"
            )
    return dict(zip(curve.arrays, (*axes, ms), strict=True))


def _acceptance(content: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    lengths, kinds = content["spec_lengths"], content["acceptance_lengths"]
    if lengths != list(SPEC_LENGTHS):
        raise TableError(f"{name}: spec_lengths = {shown(lengths)}: must be {list(SPEC_LENGTHS)}")
    if not isinstance(kinds, Mapping) or not kinds:
        raise TableError(f"{name}: acceptance_lengths = {shown(kinds)}: must map kinds of traffic to lists")
    lengths_of: dict[str, np.ndarray] = {}
    for kind, value in kinds.items():
        entry = f"{name}: acceptance_lengths.{kind}"
        tokens = _array(value, (len(SPEC_LENGTHS),), entry, f"one for each of {list(SPEC_LENGTHS)} drafts")
        if tokens[0] != 1:
            raise TableError(f"{entry}[0] = {tokens[0]:g}: must be 1, a token an iteration without drafts")
        for i in range(1, len(tokens)):
            k = SPEC_LENGTHS[i]
            if not tokens[i - 1] <= tokens[i] <= k + 1:
                raise TableError(
                    f"{entry}[{i}] = {tokens[i]:g}: must be from {tokens[i - 1]:g} (fewer drafts yield that) to {k + 1}"
                )
        lengths_of[str(kind)] = tokens
    return lengths_of
