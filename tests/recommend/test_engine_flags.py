"""Flags: every knob reaches each engine's command line, and only where it differs from the engine's own default."""

from __future__ import annotations

import itertools
import json
import shlex
from typing import Any

import pytest

import inferencegym_jax as ig
from inferencegym_jax.recommend.engine_flags import deployment, engine_flags, precision

DEFAULT = {"kv_budget": 1.0, "spec_length": 0, "batch_size": 32, "prefill_disagg": False, "quant_tier": 0}


def flags(**changes: Any) -> dict[str, str]:
    return engine_flags(deployment(DEFAULT | changes, ig.load_table()))


def after(command: str, flag: str) -> str:
    words = shlex.split(command.splitlines()[0])
    return words[words.index(flag) + 1]


def test_the_baseline_sets_batch_and_token_budget_only():
    found = flags()
    assert shlex.split(found["vllm"])[3:] == ["--max-num-seqs", "32", "--max-num-batched-tokens", "2048"]
    for engine in found.values():
        assert "spec" not in engine and "quant" not in engine and "disagg" not in engine


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
    assert "AWQ checkpoint" in int4["tensorrt_llm"] and "FP8" in int8["tensorrt_llm"]
    assert all("quant" not in found["tensorrt_llm"] for found in (int8, int4))  # the checkpoint tells

    for name, port in (("vllm", 8000), ("sglang", 30000), ("tensorrt_llm", 8000)):
        engine, gateway = flags(kv_budget=0.5, batch_size=64)[name].rsplit("\n", 1)
        assert engine == flags(batch_size=64)[name]  # no engine has the watermark as a flag
        assert after(gateway, "--policy") == "batch_size=64,kv_budget=0.5"
        assert after(gateway, "--upstream") == f"http://127.0.0.1:{port}"

    apart = flags(prefill_disagg=True)
    *servers, proxy = apart["vllm"].splitlines()
    roles = [json.loads(after(line, "--kv-transfer-config"))["kv_role"] for line in servers]
    assert roles == ["kv_producer", "kv_consumer"]
    ports = [after(line, "--port") for line in servers]
    assert ports == [after(proxy, "--prefiller-ports"), after(proxy, "--decoder-ports")]
    side_channels = [word for line in servers for word in line.split() if word.startswith("VLLM_NIXL")]
    assert len(set(side_channels)) == 2  # two workers of one host may not share it
    assert "--disaggregation-mode prefill" in apart["sglang"] and "--disaggregation-mode decode" in apart["sglang"]
    assert "trtllm-serve disaggregated" in apart["tensorrt_llm"]
    assert apart["tensorrt_llm"].count("disable_overlap_scheduler") == 1  # the prefill server's


def test_every_configuration_has_commands_a_shell_can_read():
    knobs = itertools.product((0.1, 1.0), (0, 2), (1, 512), (False, True), (0, 1, 2))
    for values in knobs:
        for commands in flags(**dict(zip(DEFAULT, values, strict=True))).values():
            assert shlex.split(commands)


@pytest.mark.parametrize(
    ("weights", "expected"), [('{"INT8": "fp8 products"}', "fp8"), ("{}", "int8"), ("no json", "int8")]
)
def test_the_eight_bit_tier_is_what_the_table_measured(weights: str, expected: str):
    table = ig.LatencyTable({}, ig.load_table().values, {"weights": weights})
    assert precision(1, table) == expected
    assert (precision(0, table), precision(2, table)) == ("fp16", "int4")
