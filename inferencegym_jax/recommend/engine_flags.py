"""Knobs as command lines: what sets a configuration in vLLM, SGLang and TensorRT-LLM.

Flag names are those of vLLM's V1 engine (`vllm serve`, checked with 0.32), SGLang 0.5 (`sglang.launch_server`) and
TensorRT-LLM 1.2 (`trtllm-serve`, PyTorch backend, with a YAML file). What no table knows stands in angle brackets: the
model, the quantised checkpoint, the draft head.

How a knob maps: ``batch_size`` is the limit on running requests; ``spec_length`` the drafts of an EAGLE-3 head;
``quant_tier`` the checkpoint's format; ``prefill_disagg`` a prefill and a decode instance. ``kv_budget`` below 1 is the
share of the KV pool up to which new requests are admitted, which no engine has as a flag: ``inferencegym control`` in
front of it holds that limit, on the engine's own gauge of its cache.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferencegym_jax.models import QuantTier
from inferencegym_jax.table import LatencyTable

TOKEN_BUDGET = 2048
PORTS = {"vllm": 8000, "sglang": 30000, "tensorrt_llm": 8000}  # on which each engine, or its router, listens
MODEL, DRAFT = "<model>", "<EAGLE-3 head of the model>"


@dataclass(frozen=True)
class Precision:
    """A weight format in the words of each engine; empty: nothing to say.

    Attributes:
        checkpoint: for vLLM and SGLang.
        vllm, sglang: values of ``--quantization``.
        tensorrt_llm: checkpoint for TensorRT-LLM, which reads the format from the checkpoint itself.
        tensorrt_llm_note: what its reader must know.
    """

    checkpoint: str
    vllm: str
    sglang: str
    tensorrt_llm: str
    tensorrt_llm_note: str = ""


PRECISIONS = {
    "fp16": Precision(MODEL, "", "", MODEL),
    "int8": Precision(
        "<INT8 W8A8 checkpoint of the model>",
        "compressed-tensors",
        "w8a8_int8",
        "<FP8 checkpoint of the model>",
        "The PyTorch backend has no INT8 W8A8: FP8 stands for it, which needs Ada or later (before: vLLM or SGLang).",
    ),
    "fp8": Precision(MODEL, "fp8", "fp8", "<FP8 checkpoint of the model>"),
    "int4": Precision(
        "<INT4 AWQ checkpoint of the model>",
        "awq_marlin",
        "awq_marlin",
        "<INT4 AWQ checkpoint by ModelOpt>",
    ),
}


@dataclass(frozen=True)
class Deployment:
    """What the flags are derived from.

    Attributes:
        knobs: of a ``ServeAction``, all of them.
        precision: key of ``PRECISIONS``.
        token_budget: tokens of an iteration.
    """

    knobs: Mapping[str, Any]
    precision: str
    token_budget: int = TOKEN_BUDGET


def deployment(knobs: Mapping[str, Any], table: LatencyTable) -> Deployment:
    """The deployment of a configuration.

    Args:
        knobs: of a ``ServeAction``.
        table: its metadata say the format of each tier.
    """
    return Deployment(dict(knobs), precision(int(knobs["quant_tier"]), table))


def precision(tier: int, table: LatencyTable) -> str:
    """Key of ``PRECISIONS`` of a tier: the table's ``weights`` metadata tell whether the 8-bit tier is FP8 there."""
    if tier == QuantTier.INT4:
        return "int4"
    if tier == QuantTier.FP16:
        return "fp16"
    try:
        weights = json.loads(table.metadata.get("weights", "{}"))
    except ValueError:
        weights = {}
    return "fp8" if "fp8" in str(weights.get("INT8", "")).lower() else "int8"


def engine_flags(made: Deployment) -> dict[str, str]:
    """Engine name -> the commands that set the deployment, one a line."""
    commands = {"vllm": vllm(made), "sglang": sglang(made), "tensorrt_llm": tensorrt_llm(made)}
    if made.knobs["kv_budget"] >= 1.0:
        return commands
    return {name: f"{lines}\n{gateway(made, PORTS[name])}" for name, lines in commands.items()}


def gateway(made: Deployment, port: int) -> str:
    """The line of the proxy that holds ``kv_budget`` in front of an engine on this machine."""
    policy = f"batch_size={made.knobs['batch_size']},kv_budget={made.knobs['kv_budget']:g}"
    return _line(["inferencegym", "control", "--upstream", f"http://127.0.0.1:{port}", "--policy", policy])


def vllm(made: Deployment) -> str:
    """``vllm serve`` lines, and the proxy's where prefill is apart: it alone tells NIXL who prefills."""
    knobs, weights = made.knobs, PRECISIONS[made.precision]
    words = ["vllm", "serve", weights.checkpoint, "--max-num-seqs", str(knobs["batch_size"])]
    words += ["--max-num-batched-tokens", str(made.token_budget)]
    if weights.vllm:
        words += ["--quantization", weights.vllm]
    if knobs["spec_length"]:
        drafts = {"method": "eagle3", "model": DRAFT, "num_speculative_tokens": int(knobs["spec_length"])}
        words += ["--speculative-config", json.dumps(drafts)]
    if not knobs["prefill_disagg"]:
        return _line(words)
    lines = []
    for role, gpu in (("kv_producer", 0), ("kv_consumer", 1)):
        transfer = json.dumps({"kv_connector": "NixlConnector", "kv_role": role})
        port = ["--port", str(8100 + 100 * gpu)]
        own = f"CUDA_VISIBLE_DEVICES={gpu} VLLM_NIXL_SIDE_CHANNEL_PORT={5600 + gpu} "
        lines.append(own + _line([*words, *port, "--kv-transfer-config", transfer]))
    proxy = ["python", "<vLLM source>/tests/v1/kv_connector/nixl_integration/toy_proxy_server.py", "--port", "8000"]
    proxy += ["--prefiller-hosts", "localhost", "--prefiller-ports", "8100"]
    lines.append(_line([*proxy, "--decoder-hosts", "localhost", "--decoder-ports", "8200"]))
    return "\n".join(lines)


def sglang(made: Deployment) -> str:
    """``sglang.launch_server`` lines, and the router's where prefill is apart."""
    knobs, weights = made.knobs, PRECISIONS[made.precision]
    words = ["python", "-m", "sglang.launch_server", "--model-path", weights.checkpoint]
    words += ["--max-running-requests", str(knobs["batch_size"]), "--chunked-prefill-size", str(made.token_budget)]
    if weights.sglang:
        words += ["--quantization", weights.sglang]
    if knobs["spec_length"]:
        drafts = int(knobs["spec_length"])
        words += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", DRAFT]
        words += ["--speculative-num-steps", str(drafts), "--speculative-eagle-topk", "1"]
        words += ["--speculative-num-draft-tokens", str(drafts + 1)]
    if not knobs["prefill_disagg"]:
        return _line(words)
    lines = []
    for role, gpu in (("prefill", 0), ("decode", 1)):
        apart = ["--port", str(30000 + 100 * gpu), "--disaggregation-mode", role]
        apart += ["--disaggregation-transfer-backend", "nixl"]
        lines.append(f"CUDA_VISIBLE_DEVICES={gpu} " + _line([*words, *apart]))
    lines.append(
        "python -m sglang_router.launch_router --pd-disaggregation"
        " --prefill http://127.0.0.1:30000 --decode http://127.0.0.1:30100"
    )
    return "\n".join(lines)


def tensorrt_llm(made: Deployment) -> str:
    """``trtllm-serve`` lines with the YAML that they read, and the orchestrator's where prefill is apart."""
    knobs, weights = made.knobs, PRECISIONS[made.precision]
    options: list[str] = ["enable_chunked_prefill: true"]
    if knobs["spec_length"]:
        drafts = f"  max_draft_len: {int(knobs['spec_length'])}"
        options += ["speculative_config:", "  decoding_type: Eagle3", drafts, f'  speculative_model: "{DRAFT}"']
    words = ["trtllm-serve", weights.tensorrt_llm, "--max_batch_size", str(knobs["batch_size"])]
    words += ["--max_num_tokens", str(made.token_budget)]
    lines = [f"# {weights.tensorrt_llm_note}"] if weights.tensorrt_llm_note else []
    if not knobs["prefill_disagg"]:
        return "\n".join([*lines, *_file("options.yaml", options), _line([*words, "--config", "options.yaml"])])
    options += ["cache_transceiver_config:", "  backend: NIXL"]
    # a prefill server cannot overlap its scheduling yet (TensorRT-LLM's page on disaggregated serving)
    roles = {"prefill": ["disable_overlap_scheduler: true", *options], "decode": options}
    for gpu, (role, own) in enumerate(roles.items()):
        port = ["--host", "localhost", "--port", str(8101 + 100 * gpu), "--config", f"{role}.yaml"]
        lines += [*_file(f"{role}.yaml", own), f"CUDA_VISIBLE_DEVICES={gpu} " + _line([*words, *port])]
    both = ["hostname: localhost", "port: 8000", "backend: pytorch"]
    both += ["context_servers:", "  num_instances: 1", "  urls: ['localhost:8101']"]
    both += ["generation_servers:", "  num_instances: 1", "  urls: ['localhost:8201']"]
    return "\n".join([*lines, *_file("disagg.yaml", both), "trtllm-serve disaggregated -c disagg.yaml"])


def _file(name: str, lines: list[str]) -> list[str]:
    return [f"cat > {name} <<'END'", *lines, "END"]


def _line(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)
