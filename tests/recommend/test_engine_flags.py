"""Flags: every knob reaches each engine's command line, and only where it differs from the engine's own default."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from typing import Any

import pytest

import inferencegym_jax as ig
from inferencegym_jax.recommend.engine_flags import Deployment, deployment, engine_flags, left_out, precision
from inferencegym_jax.recommend.gpu_formats import cannot_run, compute_capability
from inferencegym_jax.table import profile_of

DEFAULT = {"kv_budget": 1.0, "spec_length": 0, "batch_size": 32, "prefill_disagg": False, "quant_tier": 0}


def made(memory_gb: float = 40.0, longest: int = 9000, **changes: Any) -> Deployment:
    return deployment(DEFAULT | changes, ig.load_table(), memory_gb, longest)


def flags(**changes: Any) -> dict[str, str]:
    return engine_flags(made(**changes))


def after(command: str, flag: str) -> str:
    words = shlex.split(command.splitlines()[0])
    return words[words.index(flag) + 1]


def test_the_baseline_sets_batch_token_budget_length_and_memory_only():
    found = flags()
    wanted = "--max-num-seqs 32 --max-num-batched-tokens 2048 --max-model-len 9000 --gpu-memory-utilization 0.5"
    wanted += " --max-cudagraph-capture-size 512"
    assert shlex.split(found["vllm"])[3:] == wanted.split()
    for engine in found.values():
        assert "spec" not in engine and "quant" not in engine and "disagg" not in engine


def test_short_prompts_stay_within_cuda_graphs_however_few_requests_run():
    """vLLM's own size is twice max-num-seqs; with drafts it adds the sizes of verifications to its own only."""
    assert "--max-cudagraph-capture-size" not in flags(batch_size=256)["vllm"]
    assert after(flags(batch_size=255)["vllm"], "--max-cudagraph-capture-size") == "512"
    assert "--max-cudagraph-capture-size" not in flags(batch_size=32, spec_length=2)["vllm"]


@pytest.mark.parametrize("memory_gb", [20.0, 33.3, 72.0])
@pytest.mark.parametrize("tier", [0, 2])
def test_every_engine_gets_the_pool_that_is_replayed(memory_gb: float, tier: int):
    profile = profile_of(ig.load_table())
    one = made(memory_gb, quant_tier=tier)
    found = engine_flags(one)
    pool_gb = profile.pool_tokens(tier, one.memory_gb) * profile.kv_bytes_per_token / 1e9
    weights, runtime, gpu = float(profile.weights_gb[tier]), profile.runtime_gb, profile.memory_gb
    assert one.memory_gb <= memory_gb and one.memory_gb == pytest.approx(memory_gb, abs=gpu / 1000)
    share = float(after(found["vllm"], "--gpu-memory-utilization"))
    assert share * gpu - weights - runtime == pytest.approx(pool_gb)
    static = float(after(found["sglang"], "--mem-fraction-static"))
    assert static * gpu - weights == pytest.approx(pool_gb, abs=gpu / 1000)
    free = float(found["tensorrt_llm"].split("free_gpu_memory_fraction: ")[1].split()[0])
    assert free * (gpu - weights - runtime) == pytest.approx(pool_gb, abs=gpu / 1000)
    assert "--kv-cache-memory-bytes" not in found["vllm"] and "num-gpu-blocks" not in found["vllm"]


def test_the_longest_request_is_said_and_is_never_longer_than_the_pool():
    found = flags(longest=9000)
    assert after(found["vllm"], "--max-model-len") == after(found["sglang"], "--context-length") == "9000"
    assert "--max_seq_len 9000" in found["tensorrt_llm"]
    small = made(memory_gb=19.0, longest=9000)
    pool = int(profile_of(ig.load_table()).pool_tokens(0, small.memory_gb))
    assert small.max_model_len == pool < 9000  # vLLM does not start where its pool cannot hold one request


@pytest.mark.parametrize(
    ("gpu", "precision", "engines_that_cannot"),
    [
        ("NVIDIA A100-SXM4-80GB", "fp8", {"vllm", "sglang", "tensorrt_llm"}),
        ("NVIDIA A100-SXM4-80GB", "int8", {"tensorrt_llm"}),
        ("NVIDIA A100-SXM4-80GB", "int4", set()),
        ("NVIDIA H100 80GB HBM3", "fp8", set()),
        ("NVIDIA H200", "int8", {"tensorrt_llm"}),
        ("NVIDIA L40S", "fp8", set()),
        ("NVIDIA B200", "int8", {"vllm", "sglang", "tensorrt_llm"}),
        ("NVIDIA RTX PRO 6000 Blackwell", "fp8", set()),
        ("Tesla T4", "int4", {"vllm", "sglang", "tensorrt_llm"}),
        ("a GPU of the future", "fp8", set()),
    ],
)
def test_a_format_that_the_gpu_cannot_run_has_no_command(gpu: str, precision: str, engines_that_cannot: set[str]):
    one = dataclasses.replace(made(), gpu=gpu, precision=precision)
    assert set(left_out(one)) == engines_that_cannot == {"vllm", "sglang", "tensorrt_llm"} - set(engine_flags(one))
    assert all(cannot_run(engine, "fp16", gpu) is None for engine in ("vllm", "sglang", "tensorrt_llm"))


def test_gpus_by_name():
    names = {"NVIDIA A100-SXM4-80GB": 8.0, "NVIDIA A10G": 8.6, "NVIDIA L4": 8.9, "NVIDIA GH200 480GB": 9.0}
    assert {name: compute_capability(name) for name in names} == names
    assert compute_capability("NVIDIA GB200") == 10.0 and compute_capability("TPU v5") is None


def test_each_knob_reaches_each_engine():
    batch = flags(batch_size=192)
    assert after(batch["vllm"], "--max-num-seqs") == "192"
    assert after(batch["sglang"], "--max-running-requests") == "192"
    assert "--max_batch_size 192" in batch["tensorrt_llm"]

    drafts = flags(spec_length=4)
    assert json.loads(after(drafts["vllm"], "--speculative-config"))["num_speculative_tokens"] == 4
    assert after(drafts["sglang"], "--speculative-num-steps") == "4"
    assert after(drafts["sglang"], "--speculative-num-draft-tokens") == "5"
    assert "max_draft_len: 4" in drafts["tensorrt_llm"]

    int8, int4 = flags(quant_tier=1), flags(quant_tier=2)
    assert after(int8["sglang"], "--quantization") == "w8a8_int8"
    assert after(int4["vllm"], "--quantization") == "awq_marlin"
    assert "AWQ checkpoint" in int4["tensorrt_llm"] and "quant" not in int4["tensorrt_llm"]  # the checkpoint tells
    assert set(int8) == {"vllm", "sglang"}  # TensorRT-LLM has FP8 in its place, which an A100 has not

    apart = flags(prefill_disagg=True)
    *servers, note, router, toy = apart["vllm"].splitlines()
    roles = [json.loads(after(line, "--kv-transfer-config"))["kv_role"] for line in servers]
    assert roles == ["kv_producer", "kv_consumer"]
    urls = [f"http://127.0.0.1:{after(line, '--port')}" for line in servers]
    assert router.startswith("vllm-router ") and urls == [after(router, "--prefill"), after(router, "--decode")]
    assert note.startswith("#") and "maintained" in note
    assert toy.startswith("#") and "is a toy proxy, not for production" in toy  # named, and no command
    side_channels = [word for line in servers for word in line.split() if word.startswith("VLLM_NIXL")]
    assert len(set(side_channels)) == 2  # two workers of one host may not share it
    assert "--disaggregation-mode prefill" in apart["sglang"] and "--disaggregation-mode decode" in apart["sglang"]
    assert "trtllm-serve disaggregated" in apart["tensorrt_llm"]
    assert apart["tensorrt_llm"].count("disable_overlap_scheduler") == 1  # the prefill server's


def test_every_configuration_has_commands_a_shell_can_read():
    for values in itertools.product((1.0,), (0, 2), (1, 512), (False, True), (0, 1, 2)):
        for commands in flags(**dict(zip(DEFAULT, values, strict=True))).values():
            assert shlex.split(commands, comments=True)


@pytest.mark.parametrize(
    ("weights", "expected"), [('{"INT8": "fp8 products"}', "fp8"), ("{}", "int8"), ("no json", "int8")]
)
def test_the_eight_bit_tier_is_what_the_table_measured(weights: str, expected: str):
    table = ig.LatencyTable({}, ig.load_table().values, {"weights": weights})
    assert precision(1, table) == expected
    assert (precision(0, table), precision(2, table)) == ("fp16", "int4")


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [('{"0": "bf16", "1": "fp8", "2": "fp4"}', ("fp16", "fp8", "fp4")), ('{"0": "bf16"}', ("fp16", "int8", "int4"))],
)
def test_the_formats_of_a_table_of_any_model_are_its_own(dtypes: str, expected: tuple[str, ...]):
    table = ig.LatencyTable({}, ig.load_table().values, {"dtypes": dtypes})
    assert tuple(precision(tier, table) for tier in (0, 1, 2)) == expected


def test_several_gpus_an_engine_are_said_to_each_engine():
    one = dataclasses.replace(made(prefill_disagg=True), parallel={"TP": 2, "EP": 2}, kv_dtype="fp8")
    found = engine_flags(one)
    assert one.gpus == 2
    first, second = found["vllm"].splitlines()[:2]
    assert first.startswith("CUDA_VISIBLE_DEVICES=0,1 ") and second.startswith("CUDA_VISIBLE_DEVICES=2,3 ")
    assert after(first, "--tensor-parallel-size") == "2" and "--enable-expert-parallel" in first
    assert after(first, "--kv-cache-dtype") == "fp8"
    assert after(found["sglang"], "--tp-size") == after(found["sglang"], "--ep-size") == "2"
    assert "--tp_size 2 --ep_size 2" in found["tensorrt_llm"] and "  dtype: fp8" in found["tensorrt_llm"]


def test_a_cut_that_no_flag_sets_has_no_command_and_a_reason():
    part = dataclasses.replace(made(), parallel={"TP": 4, "EP": 2})
    assert set(engine_flags(part)) == {"sglang", "tensorrt_llm"} and "not over 2" in left_out(part)["vllm"]
    copies = dataclasses.replace(made(), parallel={"DP": 4, "EP": 4})
    assert copies.gpus == 4
    assert not engine_flags(copies) and all("4 attention copies" in reason for reason in left_out(copies).values())
    cache = dataclasses.replace(made(), kv_dtype="int8")
    assert not engine_flags(cache) and "KV cache in int8" in left_out(cache)["vllm"]


@pytest.mark.parametrize(("tier", "dtype", "own"), [(1, "fp8", True), (2, "mxfp4", True), (2, "int4", False)])
def test_of_the_format_that_a_checkpoint_states_itself_no_engine_is_told(tier: int, dtype: str, own: bool):
    about = {"dtypes": json.dumps({str(tier): dtype}), "checkpoint_dtype": dtype if own else "bf16"}
    about |= {"system": "h100_sxm", "model": "owner/name"}
    shipped = ig.load_table()
    table = ig.LatencyTable(shipped.axes, shipped.values, about, "built", profile_of(shipped))
    one = dataclasses.replace(deployment(DEFAULT | {"quant_tier": tier}, table, 40.0, 9000), gpu="H100")
    assert one.own is own
    for command in engine_flags(one).values():
        assert ("owner/name" in command) == own and ("quant" not in command.lower() or not own)
        assert own or "<INT4 AWQ checkpoint " in command
