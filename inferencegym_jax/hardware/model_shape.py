"""What a Hugging Face ``config.json`` says of a model's size: parameters by kind, and its KV cache token by token.

``config.json -> shape_of -> ModelShape``. Covers decoders with grouped-query attention, sliding windows, multi-head
latent attention, dense or mixture-of-experts layers. State-space and linear-attention layers have no such formula
here: ``UnknownShapeError``, and the caller asks aiconfigurator-core instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferencegym_jax.models import shown
from inferencegym_jax.table import TableError

TEXT_PART = ("text_config", "llm_config", "language_config")  # where a multimodal config keeps its decoder
SPECIAL = ("linear_num_value_heads", "mamba_num_heads", "hybrid_override_pattern", "block_configs", "ssm_state_size")
SPECIAL_ARCHITECTURES = (
    "DeepseekV4",
    "KimiK3",
    "Gemma4",
    "NemotronH",
    "DeciLM",
    "Qwen3_5",
    "MiMoV2",
    "Step3p",
    "MiniMaxM3",
)


class UnknownShapeError(TableError):
    """A config whose layers have no formula here; the message names what it holds."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder; parameters are counts, not bytes.

    Attributes:
        architecture: first of the config's ``architectures``.
        layers, heads, kv_heads, head_dim: as in the config.
        latent: values of the compressed cache a token and layer (latent plus rotary key); 0 without latent attention.
        window, window_layers: sliding window in tokens, and how many layers have it.
        attention_parameters, dense_parameters, expert_parameters, end_parameters: attention of all layers; dense MLPs
            and shared experts; routed experts; embedding and output head.
        experts: routed experts of a layer, 0 in a dense model.
        context: longest context in tokens, 0 where the config does not say.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    latent: int
    window: int
    window_layers: int
    attention_parameters: int
    dense_parameters: int
    expert_parameters: int
    end_parameters: int
    experts: int
    context: int

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.attention_parameters + self.dense_parameters + self.expert_parameters + self.end_parameters

    def kv_values(self, tokens: float, tp: int = 1) -> float:
        """Values that one sequence of so many tokens keeps on each of ``tp`` GPUs, all layers.

        Grouped-query: 2 x KV heads x head size a layer and token, the heads divided over the GPUs and repeated where
        there are fewer than GPUs. Latent attention: the whole latent on every GPU. Layers with a sliding window keep
        no more than the window.
        """
        each = self.latent or 2 * -(-self.kv_heads // tp) * self.head_dim
        windowed = min(tokens, self.window) if self.window_layers else 0.0
        return each * ((self.layers - self.window_layers) * tokens + self.window_layers * windowed)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's part of a config; the config itself where it has no such part."""
    return next((config[key] for key in TEXT_PART if isinstance(config.get(key), Mapping)), config)


def architecture_of(config: Mapping[str, Any]) -> str:
    """First of a config's ``architectures``.

    Raises:
        TableError: there is none.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise TableError(f"config.json: architectures = {shown(names)}: must be a list that names one architecture")
    return names[0]


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape of a model.

    Args:
        config: content of a Hugging Face ``config.json``.

    Raises:
        UnknownShapeError: layers that have no formula here.
        TableError: a size is missing or no whole number above 0; it is named.
    """
    architecture, part = architecture_of(config), text_config(config)
    special = next((key for key in SPECIAL if part.get(key)), None)
    if special or architecture.startswith(SPECIAL_ARCHITECTURES):
        raise UnknownShapeError(f"{architecture}: its layers ({special or 'of its own kind'}) have no formula here")
    hidden, layers, heads = (_size(part, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    head_dim = _size(part, "head_dim") if part.get("head_dim") else hidden // heads
    kv_heads = _size(part, "num_key_value_heads") if part.get("num_key_value_heads") else heads
    window, window_layers = _windows(part, layers)
    latent = int(part.get("kv_lora_rank") or 0)
    if latent:
        attention = layers * _latent_attention(part, hidden, heads, latent)
        latent += _size(part, "qk_rope_head_dim")
    else:
        attention = layers * hidden * head_dim * (2 * heads + 2 * kv_heads)
    experts, expert_layers, expert_size, shared = _experts(part, layers)
    dense = 3 * hidden * (layers - expert_layers) * _dense_size(part, layers - expert_layers)
    tied = bool(config.get("tie_word_embeddings", part.get("tie_word_embeddings", False)))
    return ModelShape(
        architecture=architecture,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        latent=latent,
        window=window,
        window_layers=window_layers,
        attention_parameters=attention,
        dense_parameters=dense + 3 * hidden * expert_layers * shared,
        expert_parameters=3 * hidden * expert_layers * experts * expert_size,
        end_parameters=(1 if tied else 2) * _size(part, "vocab_size") * hidden,
        experts=experts,
        context=int(part.get("max_position_embeddings") or 0),
    )


def _size(part: Mapping[str, Any], key: str) -> int:
    value = part.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise TableError(f"config.json: {key} = {shown(value)}: must be a whole number above 0")
    return value


def _windows(part: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """Sliding window in tokens and the number of layers with one."""
    window = part.get("sliding_window") or 0
    if not window or part.get("use_sliding_window") is False:
        return 0, 0
    kinds = part.get("layer_types")
    if isinstance(kinds, list):
        return int(window), sum("sliding" in str(kind) for kind in kinds)
    pattern = part.get("sliding_window_pattern")
    return int(window), layers - layers // int(pattern) if pattern else layers


def _latent_attention(part: Mapping[str, Any], hidden: int, heads: int, latent: int) -> int:
    """Parameters of one layer of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""
    rope, nope, value = (_size(part, key) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    queries = heads * (nope + rope)
    rank = part.get("q_lora_rank")
    ask = rank * (hidden + queries) if rank else hidden * queries
    return ask + hidden * (latent + rope) + latent * heads * (nope + value) + heads * value * hidden


def _experts(part: Mapping[str, Any], layers: int) -> tuple[int, int, int, int]:
    """Routed experts a layer, layers that have them, size of one expert, size of the shared ones together."""
    keys = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    experts = next((int(part[key]) for key in keys if part.get(key)), 0)
    if experts <= 1:
        return 0, 0, 0, 0
    size = int(part.get("moe_intermediate_size") or _size(part, "intermediate_size"))
    first = int(part.get("first_k_dense_replace") or 0)
    every = int(part.get("interleave_moe_layer_step") or part.get("decoder_sparse_step") or 1)
    shared = int(part.get("shared_expert_intermediate_size") or part.get("shared_intermediate_size") or 0)
    shared = shared or size * int(part.get("n_shared_experts") or part.get("num_shared_experts") or 0)
    if architecture_has_shared(part) and not shared:
        shared = size
    return experts, (layers - first) // every, size, shared


def architecture_has_shared(part: Mapping[str, Any]) -> bool:
    """Whether a shared expert stands in every MoE layer although no field counts it (Llama 4)."""
    return str(part.get("model_type", "")).startswith("llama4")


def _dense_size(part: Mapping[str, Any], dense_layers: int) -> int:
    """Size of the MLP of layers without experts; 0 where there are none."""
    if dense_layers == 0:
        return 0
    return int(
        part.get("intermediate_size_mlp") or part.get("mlp_intermediate_size") or _size(part, "intermediate_size")
    )
