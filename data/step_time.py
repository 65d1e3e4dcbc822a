"""From measured kernels to the time of one forward pass of one model on one GPU.

Data flow: `models.json` + `systems.json` + `kernels.py` -> `StepTimes`, whose `decode_ms` and `prefill_ms` are what
`serving_model.py` (steady state of serving) and anything else that needs an iteration's time call. To add a model or
a GPU, add an entry to the JSON; no code changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.kernels import GemmGrid, KernelDataError, Kernels, measured_versions

HERE = Path(__file__).resolve().parent
TIERS = ("FP16", "INT8", "INT4")
BYTES_16_BIT = 2
WEIGHT_BYTES_OF_TIER = {"FP16": 2.0, "INT8": 1.0, "INT4": 0.5 + 2.0 / 128}  # INT4: one 16-bit scale per 128 weights
ITERATION_TOKEN_BUDGET = 2048
"""Tokens of a whole iteration: vLLM's `max_num_batched_tokens`, as in data/measured/vllm_open_loop.csv."""


class UnknownNameError(ValueError):
    """A system or model that has no entry; the message lists those that do."""


@cache
def _entries(name: str) -> dict[str, dict[str, Any]]:
    return json.loads((HERE / name).read_text())


def systems() -> dict[str, dict[str, Any]]:
    """Entries of `systems.json` by name."""
    return _entries("systems.json")


def models() -> dict[str, dict[str, Any]]:
    """Entries of `models.json` by name."""
    return _entries("models.json")


def _pick(entries: dict[str, dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    if name not in entries:
        raise UnknownNameError(f"unknown {kind} {name!r}; there are: {', '.join(sorted(entries))}")
    return entries[name]


@dataclass(frozen=True)
class Architecture:
    """Shape of a Llama-style decoder: grouped-query attention and a gated MLP, embedding and head not tied."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @classmethod
    def named(cls, name: str) -> Architecture:
        """Entry of `models.json`; raises UnknownNameError with the names there are."""
        entry = _pick(models(), "model", name)
        return cls(name, **{k: v for k, v in entry.items() if k not in ("title", "aliases")})

    @property
    def layer_products(self) -> tuple[tuple[int, int], ...]:
        """(n, k) of a layer's matrix products: qkv, attention output, gate and up, down."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (queries + 2 * keys, self.hidden),
            (self.hidden, queries),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        )

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices."""
        return sum(n * k for n, k in self.layer_products)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers at 16 bits, bytes a token (131,072 for Llama-3-8B)."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES_16_BIT

    def weight_bytes(self, tier: str) -> float:
        """Weights on the GPU: layers at the tier's width, embedding and head at 16 bits (the tiers leave them so)."""
        ends = 2 * self.vocabulary * self.hidden * BYTES_16_BIT
        return self.layers * self.layer_parameters * WEIGHT_BYTES_OF_TIER[tier] + ends


def model_of_alias(path: str) -> str:
    """Our name of a model known elsewhere by `path` (a Hugging Face id, or our own name).

    Raises:
        UnknownNameError: no entry lists it.
    """
    entries = models()
    for name, entry in entries.items():
        if path == name or path in entry["aliases"]:
            return name
    known = sorted({a for e in entries.values() for a in e["aliases"]} | set(entries))
    raise UnknownNameError(
        f"unknown model_path {path!r}; add it to an entry's aliases in models.json. Known: {', '.join(known)}"
    )


def padding_envelope(latency: np.ndarray) -> np.ndarray:
    """Cheapest measured pass that holds at least this many tokens: the running minimum from the largest down.

    Measured kernels have bumps where more tokens run faster than fewer. A batch may be padded to a larger one (vLLM
    pads to its captured CUDA-graph sizes), so the time of m tokens is at most that of any larger measured m. This
    makes time monotone in m.
    """
    return np.minimum.accumulate(latency[::-1])[::-1]


@dataclass(frozen=True)
class StepTimes:
    """Times of one model's forward passes on one GPU, milliseconds."""

    system: str
    arch: Architecture
    kernels: Kernels
    tier_dtypes: dict[str, dict[str, Any]] = field(hash=False, compare=False)

    @classmethod
    def load(cls, system: str, model: str, engine: str | None = None, version: str | None = None) -> StepTimes:
        """Kernels of `engine` and `version` (defaults of `systems.json`) for `model` on `system`.

        Raises:
            UnknownNameError: system or model has no entry.
            KernelDataError: the package, the engine or the version is not there.
        """
        return _load(system, model, engine, version)

    def _grid(self, tier: str) -> GemmGrid:
        source = self.tier_dtypes[tier]
        own = source.get("engine")
        kernels = _kernels(self.system, own, None) if own else self.kernels
        return kernels.gemm(source["dtype"])

    def describe_tier(self, tier: str) -> str:
        """Which measured products a tier reads, in words."""
        source = self.tier_dtypes[tier]
        if "ratio_on" in source:
            return f"16-bit products x the ratio measured on {source['ratio_on']}"
        kernels = _kernels(self.system, source["engine"], None) if "engine" in source else self.kernels
        return f"{source['dtype']} products of {kernels.engine} {kernels.version}"

    @cache  # noqa: B019 - few instances, as long-lived as the process
    def _curve(self, products: tuple[tuple[int, int], ...], tier: str) -> tuple[np.ndarray, np.ndarray]:
        """(m, ms) at the measured m of the sum of `products`, under the padding envelope."""
        grid = self._grid(tier)
        total = np.sum([grid.column(n, k) for n, k in products], axis=0)
        return grid.m.astype(float), padding_envelope(total)

    @cache  # noqa: B019
    def layers_ms(self, tokens: float, tier: str) -> float:
        """Matrix products of all layers over `tokens` tokens."""
        if "ratio_on" in self.tier_dtypes[tier]:
            return self.layers_ms(tokens, "FP16") * tier_ratio(
                self.tier_dtypes[tier]["ratio_on"], self.arch.name, tokens, tier
            )
        m, ms = self._curve(self.arch.layer_products, tier)
        inside = float(np.interp(tokens, m, ms))
        if tokens > m[-1]:
            grid = self._grid(tier)
            inside *= sum(grid(tokens, n, k) for n, k in self.arch.layer_products) / sum(
                grid(float(m[-1]), n, k) for n, k in self.arch.layer_products
            )
        return self.arch.layers * inside

    @cache  # noqa: B019
    def head_ms(self, positions: float) -> float:
        """Output head over `positions` tokens; 16 bits in every tier."""
        shape = (self.arch.vocabulary, self.arch.hidden)
        m, ms = self._curve((shape,), "FP16")
        if positions > m[-1]:
            return self._grid("FP16")(positions, *shape)
        return float(np.interp(positions, m, ms))

    @cached_property
    def _heads(self) -> tuple[int, int, int]:
        return self.arch.heads, self.arch.kv_heads, self.arch.head_dim

    @cache  # noqa: B019
    def decode_attention_ms(self, batch: float, context: float) -> float:
        """All layers' attention of one decode iteration: `batch` sequences of `context` tokens.

        Sequences are independent, so a batch may be run in equal parts: it costs at most (batch / b) times a smaller
        measured batch b. That removes bumps where a larger batch takes longer a sequence than a smaller one (A100,
        vLLM 0.14.0: 20 % at 32 sequences of 8,192 tokens), and past a batch's longest measured context it reads the
        better-measured smaller batch, at the same bytes.
        """
        grid = self.kernels.attention("generation", *self._heads)
        parts = [b for b in grid.batches / grid.fold if b < batch]
        return self.arch.layers * min([grid(batch, context), *(batch / b * grid(b, context) for b in parts)])

    @cache  # noqa: B019
    def prefill_attention_ms(self, prompt: float) -> float:
        """All layers' attention of one prompt of `prompt` tokens."""
        return self.arch.layers * self.kernels.attention("context", *self._heads)(1, prompt)

    def decode_ms(self, batch: float, context: float, tier: str = "FP16") -> float:
        """One decode iteration: gemms(B) + head(B) + attention(B, context): t_dec of docs/physics.md."""
        return self.layers_ms(batch, tier) + self.head_ms(batch) + self.decode_attention_ms(batch, context)

    def prefill_ms(self, prompt: float, batch: float = 0, tier: str = "FP16") -> float:
        """What one prompt's prefill adds to an engine that decodes `batch` requests; batch 0 is a prefill alone.

        Alone, it costs gemms(P) + head(1) + attention(P). A short prompt rides along with a decode iteration, whose
        weights are read anyway, and costs gemms(P + B) - gemms(B) + attention(P). A prompt that
        fills the iteration's token budget (2,048) is an iteration of its own. Rule: the stand-alone share is min(P /
        2048, 1), linear between.
        """
        attention = self.prefill_attention_ms(prompt)
        alone = self.layers_ms(prompt, tier) + self.head_ms(1)
        if batch <= 0:
            return alone + attention
        riding = self.layers_ms(prompt + batch, tier) - self.layers_ms(batch, tier)
        share = min(prompt / ITERATION_TOKEN_BUDGET, 1.0)
        return (1 - share) * riding + share * max(alone, riding) + attention


@cache
def _kernels(system: str, engine: str | None, version: str | None) -> Kernels:
    entry = _pick(systems(), "system", system)
    engine = engine or str(entry["engine"])
    if engine not in entry["versions"]:
        raise KernelDataError(
            f"unknown engine {engine!r} on {system}; there are: {', '.join(sorted(entry['versions']))}"
        )
    return Kernels.load(
        system, engine, version or entry["versions"][engine], entry["bandwidth_gb_s"], entry["bf16_tflops"]
    )


@cache
def _load(system: str, model: str, engine: str | None, version: str | None) -> StepTimes:
    entry = _pick(systems(), "system", system)
    return StepTimes(system, Architecture.named(model), _kernels(system, engine, version), entry["tiers"])


def version_or_default(system: str, engine: str, version: str) -> str | None:
    """`version` if it was measured on `system`, else None (the default of `systems.json`)."""
    return version if version in measured_versions(system, engine) else None


def tier_ratio(reference: str, model: str, tokens: float, tier: str) -> float:
    """Time of a tier's layers over that of the 16-bit ones on the `reference` system: a stand-in where unmeasured.

    Weight-only INT4 products are measured on the A100 alone (TensorRT-LLM 1.0.0, which also measured bfloat16 there).
    Other systems take their own 16-bit time times that measured ratio at the same number of tokens. An assumption,
    not a measurement.
    """
    times = StepTimes.load(reference, model, engine=systems()[reference]["tiers"][tier]["engine"])
    return times.layers_ms(tokens, tier) / times.layers_ms(tokens, "FP16")
