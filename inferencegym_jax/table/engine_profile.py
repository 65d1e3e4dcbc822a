"""The engine profile: what one iteration of a continuous-batching engine costs, and what its GPU holds.

``NAME.engine.json -> EngineProfile``. Numbers only: the open-loop physics and its reference engine read them and write
each their own formulas. Times are ms, memory GB = 1e9 bytes. docs/tables.md describes the format field by field.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.models import QuantTier, finite_number, shown
from inferencegym_jax.table.errors import TableError
from inferencegym_jax.table.profile_format import CURVES, FORMAT, NUMBERS, SPEC_LENGTHS, TEXTS, checked_fields


@dataclass(frozen=True, eq=False)
class EngineProfile:
    """A checked profile. Equal and hashed by its numbers; texts and notes do not count.

    All arrays are float64 and read-only. T is the number of weight formats: FP16, INT8, INT4, in the order of
    ``QuantTier``. Curves are linear between their nodes, hold their first value below the first node and go on along
    the last segment beyond the last.

    Attributes:
        products_tokens, products_ms: [m], [T, m]: matrix products of all layers over that many tokens.
        head_tokens, head_ms: [m], [m]: output head over that many positions that sample.
        decode_sequences, decode_context, decode_attention_ms: [s], [c], [s, c]: attention of one decode iteration of s
            sequences of c tokens each; bilinear.
        prefill_tokens, prefill_attention_ms: [p], [p]: attention A of one whole prompt, A(0) = 0; the chunk from token
            a to token b of a prompt takes A(b) - A(a).
        acceptance_lengths: kind of traffic -> [len(SPEC_LENGTHS)], tokens that a verification of that many drafts
            yields, the bonus token included.
        weights_gb, quality_loss: [T].

    The numbers are explained in ``NUMBERS``, the notes (source of single fields) are text.
    """

    model: str
    gpu: str
    engine: str
    source: str
    licence: str
    memory_gb: float
    bandwidth_gb_s: float | None
    runtime_gb: float
    kv_bytes_per_token: float
    host_link_gb_s: float
    price_per_gpu_hour: float | None
    weights_gb: np.ndarray
    quality_loss: np.ndarray
    overhead_ms: float
    overhead_ms_per_sequence: float
    path_ms: float
    first_token_extra_iterations: int
    products_tokens: np.ndarray
    products_ms: np.ndarray
    head_tokens: np.ndarray
    head_ms: np.ndarray
    decode_sequences: np.ndarray
    decode_context: np.ndarray
    decode_attention_ms: np.ndarray
    prefill_tokens: np.ndarray
    prefill_attention_ms: np.ndarray
    tokens_per_iteration: int
    draft_share: float
    acceptance_lengths: Mapping[str, np.ndarray]
    notes: Mapping[str, str] = field(default_factory=dict[str, str])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all numbers."""
        numbers = {key: value for key, value in self.to_dict().items() if key not in (*TEXTS, "notes")}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()

    def __hash__(self) -> int:
        """Hash of the numbers."""
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        """Whether the other profile has the same numbers."""
        return isinstance(other, EngineProfile) and self.digest == other.digest

    def pool_tokens(self, tier: int, memory_gb: float | None = None) -> float:
        """Tokens that the KV pool holds: (memory - weights - runtime) / bytes a token.

        Args:
            tier: weight format, 0 to 2.
            memory_gb: memory of the GPU, GB; default: the profile's.

        Raises:
            TableError: the weights of that tier do not fit, or the memory is not a number above 0.
        """
        name = QuantTier(tier).name
        memory = self.memory_gb if memory_gb is None else finite_number(memory_gb)
        if memory is None or memory <= 0:
            raise TableError(f"memory_gb = {shown(memory_gb)}: must be a finite number above 0")
        room = memory - float(self.weights_gb[tier]) - self.runtime_gb
        if room <= 0:
            raise TableError(
                f"memory_gb = {memory:g}: the {name} weights of {self.model} ({self.weights_gb[tier]:g} GB) and the "
                f"runtime ({self.runtime_gb:g} GB) leave no room for a KV cache; must be above "
                f"{self.weights_gb[tier] + self.runtime_gb:g}"
            )
        return room * 1e9 / self.kv_bytes_per_token

    def to_dict(self) -> dict[str, Any]:
        """The JSON object as plain Python values, in the order of the format."""
        simple = {name: _plain(getattr(self, name)) for name in (*TEXTS, *NUMBERS, "weights_gb", "quality_loss")}
        curves: dict[str, Any] = {}
        for name, curve in CURVES.items():
            keys = (*curve.axes, "ms")
            curves[name] = {key: _plain(getattr(self, a)) for key, a in zip(keys, curve.arrays, strict=True)}
        drafts = {
            "spec_lengths": list(SPEC_LENGTHS),
            "acceptance_lengths": {kind: _plain(x) for kind, x in self.acceptance_lengths.items()},
        }
        return {"format": FORMAT, **simple, **curves, **drafts, "notes": dict(self.notes)}

    def to_json(self) -> str:
        """One field a line; the same profile gives the same bytes."""
        lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in self.to_dict().items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str = "engine profile") -> EngineProfile:
        """Check a JSON object.

        Args:
            content: as docs/tables.md describes it.
            name: what to call it in messages.

        Raises:
            TableError: a field is missing, unknown, not finite, negative, falls along its axis or has the wrong length,
                or the weights do not fit; the message names field, value and what is allowed.
        """
        profile = cls(**checked_fields(content, name))
        for tier in QuantTier:
            try:
                profile.pool_tokens(tier)
            except TableError as error:
                raise TableError(f"{name}: {error}") from None
        return profile

    @classmethod
    def from_json(cls, text: str, name: str = "engine profile") -> EngineProfile:
        """Parse and check; see ``from_dict``."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise TableError(f"{name}: not JSON: {error}") from None
        if not isinstance(content, Mapping):
            raise TableError(f"{name}: must be one JSON object")
        return cls.from_dict(content, name)

    @classmethod
    def load(cls, path: str | Path) -> EngineProfile:
        """Read a file; see ``from_dict``."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TableError(f"{file}: cannot be read: {error}") from None
        return cls.from_json(text, str(file))


def _plain(value: Any) -> Any:
    """JSON-ready; whole numbers without a point, so that files stay short."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
