"""Parameters and KV cache of published models, from their config.json alone."""

import json

import pytest

from inferencegym_jax.hardware.dtypes import checkpoint_dtype, dtype_named
from inferencegym_jax.hardware.memory import Placement, kv_bytes_per_token, weights_gb
from inferencegym_jax.hardware.model_files import model_file
from inferencegym_jax.hardware.model_shape import UnknownShapeError, shape_of
from inferencegym_jax.table import TableError

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
GPT_OSS_120B = {
    "architectures": ["GptOssForCausalLM"],
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "sliding_window": 128,
    "vocab_size": 201088,
    "quantization_config": {"quant_method": "mxfp4"},
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "sliding_window": None,
    "vocab_size": 32000,
}


@pytest.mark.parametrize(
    "config, billions",  # as on the model cards
    [(LLAMA_70B, 70.6), (DEEPSEEK_V3, 671.0), (GPT_OSS_120B, 116.8), (MIXTRAL, 46.7)],
)
def test_parameters_are_those_of_the_model_card(config, billions):
    assert shape_of(config).parameters / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize(
    "config, tokens, expected",  # bytes at 16 bits
    [
        (LLAMA_70B, 1, 80 * 8 * 128 * 2 * 2),  # 327,680
        (LLAMA_70B, 1000, 1000 * 327_680),
        (DEEPSEEK_V3, 1, 61 * 576 * 2),  # 70,272: the latent and the rotary key
        (GPT_OSS_120B, 128, 128 * 36 * 8 * 64 * 2 * 2),  # within the window every layer keeps all
        (GPT_OSS_120B, 1024, (1024 + 128) * 18 * 8 * 64 * 2 * 2),  # beyond it half of the layers keep 128
    ],
)
def test_kv_bytes_of_a_sequence(config, tokens, expected):
    assert 2 * shape_of(config).kv_values(tokens) == expected


def test_kv_heads_are_shared_over_gpus_and_repeated_where_there_are_too_few():
    shape = shape_of(LLAMA_70B)
    each = [kv_bytes_per_token(shape, "bf16", Placement(tp=tp)) for tp in (1, 4, 8, 16)]
    assert each == [327_680, 81_920, 40_960, 40_960]
    assert kv_bytes_per_token(shape, "fp8", Placement(tp=4)) == 40_960
    assert kv_bytes_per_token(shape, "bf16", Placement(tp=4, pp=2)) == 40_960
    latent = shape_of(DEEPSEEK_V3)
    assert kv_bytes_per_token(latent, "bf16", Placement(tp=8)) == 70_272  # whole on every GPU
    assert kv_bytes_per_token(latent, "bf16", Placement(tp=1, dp=8)) == 70_272 / 8  # copies hold other sequences


def test_weights_of_a_gpu_by_format_and_cut():
    shape = shape_of(LLAMA_70B)
    assert weights_gb(shape, dtype_named("bf16"), Placement()) == pytest.approx(141.1, abs=0.1)
    assert weights_gb(shape, dtype_named("bf16"), Placement(tp=4)) == pytest.approx(141.1 / 4, abs=0.1)
    ends = 2 * 128256 * 8192 * 2 / 1e9  # embedding and head keep 16 bits
    assert weights_gb(shape, dtype_named("fp8"), Placement()) == pytest.approx((141.1 - ends) / 2 + ends, abs=0.1)
    experts = shape_of(MIXTRAL)
    whole = weights_gb(experts, dtype_named("bf16"), Placement(tp=4))
    assert weights_gb(experts, dtype_named("bf16"), Placement(tp=4, ep=4)) == whole
    # four copies of the attention layers share the experts
    copies = weights_gb(experts, dtype_named("bf16"), Placement(tp=1, ep=4, dp=4))
    plain = (experts.attention_parameters + experts.end_parameters) * 2 / 1e9
    assert copies == pytest.approx(whole + 0.75 * plain, rel=1e-6)
    assert weights_gb(shape_of(GPT_OSS_120B), dtype_named("mxfp4"), Placement()) == pytest.approx(65.1, abs=0.2)


@pytest.mark.parametrize(
    "stated, name",
    [
        (None, "bf16"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq"}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "compressed-tensors", "weights": {"num_bits": 4, "type": "int"}}, "int4"),
        ({"quant_method": "compressed-tensors", "weights": {"num_bits": 8, "type": "int"}}, "int8"),
    ],
)  # fmt: skip
def test_the_checkpoint_says_its_format(stated, name):
    config = LLAMA_70B if stated is None else LLAMA_70B | {"quantization_config": stated}
    assert checkpoint_dtype(config).name == name


def test_a_quantisation_that_is_not_known_is_named():
    with pytest.raises(TableError, match="quant_method = 'hqq': not known here; give --dtype"):
        checkpoint_dtype(LLAMA_70B | {"quantization_config": {"quant_method": "hqq"}})
    with pytest.raises(TableError, match="quantization_config.bits = 3: must be 4 or 8"):
        checkpoint_dtype(LLAMA_70B | {"quantization_config": {"quant_method": "gptq", "bits": 3}})


@pytest.mark.parametrize("value", [None, 0, -3, 1.5, True, "many"])
def test_a_size_that_is_no_number_is_named(value):
    with pytest.raises(TableError, match="num_hidden_layers = .*: must be a whole number above 0"):
        shape_of(LLAMA_70B | {"num_hidden_layers": value})


def test_layers_without_a_formula_are_refused_not_guessed():
    with pytest.raises(UnknownShapeError, match="linear_num_value_heads"):
        shape_of(LLAMA_70B | {"linear_num_value_heads": 64})
    with pytest.raises(TableError, match="architectures = .*must be a list"):
        shape_of({key: value for key, value in LLAMA_70B.items() if key != "architectures"})


def test_a_sliding_window_that_is_switched_off_is_none():
    shape = shape_of(LLAMA_70B | {"sliding_window": 4096, "use_sliding_window": False})
    assert (shape.window, shape.window_layers) == (0, 0)
    everywhere = shape_of(LLAMA_70B | {"sliding_window": 4096})
    assert everywhere.kv_values(10_000) == everywhere.kv_values(4096)
    every_sixth = shape_of(LLAMA_70B | {"sliding_window": 4096, "sliding_window_pattern": 6})
    assert every_sixth.window_layers == 80 - 13


def test_a_model_is_known_by_several_names_or_its_file(tmp_path):
    assert model_file("meta-llama/Llama-2-70b").name == model_file("Llama-2-70b-chat-hf").name
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    assert model_file(str(tmp_path / "config.json")).config == LLAMA_70B
    assert model_file(str(tmp_path)).config == LLAMA_70B
    with pytest.raises(TableError, match="not known; near it are .*config.json"):
        model_file("meta-llama/Llama-9-1b")
    with pytest.raises(TableError, match="cannot be read as a config.json"):
        model_file(str(tmp_path / "absent.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(TableError, match="must hold one JSON object"):
        model_file(str(tmp_path / "list.json"))
