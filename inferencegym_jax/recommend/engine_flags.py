"""Knobs as command lines: what sets a configuration in vLLM, SGLang and TensorRT-LLM.

Flag names are those of vLLM's V1 engine (`vllm serve`, checked with the pages of 0.33), SGLang 0.5
(`sglang.launch_server`) and TensorRT-LLM 1.2 (`trtllm-serve`, PyTorch backend, with a YAML file), ``CHECKED``. What no
table knows stands in angle brackets: the model, the quantised checkpoint, the draft head.

How a knob maps: ``batch_size`` is the limit on running requests; ``spec_length`` the drafts of an EAGLE-3 head;
``quant_tier`` the checkpoint's format; ``prefill_disagg`` a prefill and a decode instance. ``kv_budget`` has no flag in
any engine: it stays at 1, and the KV pool is what the engine's share of the memory leaves it. That share, the longest
request and the token budget are printed, so that an engine has the pool that was replayed.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inferencegym_jax.hardware.model_files import is_path
from inferencegym_jax.models import QuantTier
from inferencegym_jax.recommend.gpu_formats import ENGINES, cannot_run
from inferencegym_jax.table import LatencyTable, profile_of

CHECKED = "flags of vLLM 0.33, SGLang 0.5 and TensorRT-LLM 1.2"
# Iterations of up to twice max-num-seqs tokens, and of this many at most, run as CUDA graphs in vLLM; its processor
# launches those of a longer one singly, which takes longer than a short prompt on the GPU (docs/live.md, "On a GPU").
GRAPH_TOKENS = 512
MODEL, DRAFT = "<model>", "<EAGLE-3 head of the model>"
USUAL_SHARE = 0.9  # of the GPU's memory that an engine takes where nobody says (vLLM; SGLang takes about as much)
SHARE_DIGITS = 3


@dataclass(frozen=True)
class Precision:
    """A weight format in the words of each engine; empty: nothing to say.

    Attributes:
        checkpoint: for vLLM and SGLang.
        vllm, sglang: values of ``--quantization``.
        tensorrt_llm: checkpoint for TensorRT-LLM, which reads the format from the checkpoint itself.
    """

    checkpoint: str
    vllm: str
    sglang: str
    tensorrt_llm: str


PRECISIONS = {
    "fp16": Precision(MODEL, "", "", MODEL),
    "int8": Precision("<INT8 W8A8 checkpoint of the model>", "compressed-tensors", "w8a8_int8", ""),
    "fp8": Precision(MODEL, "fp8", "fp8", "<FP8 checkpoint of the model>"),
    "int4": Precision(
        "<INT4 AWQ checkpoint of the model>",
        "awq_marlin",
        "awq_marlin",
        "<INT4 AWQ checkpoint by ModelOpt>",
    ),
    "fp4": Precision(
        "<NVFP4 checkpoint of the model>", "modelopt_fp4", "modelopt_fp4", "<NVFP4 checkpoint of the model>"
    ),
}
OWN = Precision(MODEL, "", "", MODEL)  # the format that the model's checkpoint states itself
OF_DTYPE = {
    "bf16": "fp16",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "int4",
    "fp4": "fp4",
    "mxfp4": "mxfp4",  # of no other checkpoint than the model's own
}  # of a table's metadata `dtypes`
PARALLEL = {  # word of a table's metadata `parallelism` -> flag of each engine
    "TP": {"vllm": "--tensor-parallel-size", "sglang": "--tp-size", "tensorrt_llm": "--tp_size"},
    "PP": {"vllm": "--pipeline-parallel-size", "sglang": "--pp-size", "tensorrt_llm": "--pp_size"},
    "EP": {"vllm": "", "sglang": "--ep-size", "tensorrt_llm": "--ep_size"},  # vLLM: --enable-expert-parallel, no number
}
CACHES = {"": True, "fp8": True, "int8": False}  # format of the KV cache -> whether the engines have a flag for it


@dataclass(frozen=True)
class Deployment:
    """What the flags are derived from.

    Attributes:
        knobs: of a ``ServeAction``, all of them.
        precision: key of ``PRECISIONS``, or "mxfp4".
        gpu: name of the GPU.
        gpu_memory_gb: what it has.
        memory_share: share of it that weights, runtime and KV pool may take, of ``SHARE_DIGITS`` digits.
        weights_gb, runtime_gb: what of that is no KV pool.
        max_model_len: tokens of the longest request that is served.
        token_budget: tokens of an iteration.
        parallel: ways in which several GPUs are one engine, "TP" 4 or "EP" 2; nothing for one GPU.
        kv_dtype: of the KV cache, "fp8" or "int8", or "" for 16 bits.
        own: whether the model's checkpoint is in that format itself, so that nothing has to be said of it.
        model: its name, where it is known.
    """

    knobs: Mapping[str, Any]
    precision: str
    gpu: str
    gpu_memory_gb: float
    memory_share: float
    weights_gb: float
    runtime_gb: float
    max_model_len: int
    token_budget: int
    parallel: Mapping[str, int] = field(default_factory=dict[str, int])
    kv_dtype: str = ""
    own: bool = False
    model: str = MODEL

    @property
    def words(self) -> Precision:
        """What each engine is told of the weight format."""
        return OWN if self.own else PRECISIONS[self.precision]

    @property
    def gpus(self) -> int:
        """GPUs of one engine."""
        return math.prod(count for word, count in self.parallel.items() if word != "EP")

    @property
    def memory_gb(self) -> float:
        """What the printed share comes to."""
        return self.memory_share * self.gpu_memory_gb


def deployment(knobs: Mapping[str, Any], table: LatencyTable, memory_gb: float, longest: int) -> Deployment:
    """The deployment of a configuration.

    Args:
        knobs: of a ``ServeAction``.
        table: its metadata say the format of each tier, its profile what GPU and model take.
        memory_gb: what the engine may use; the share that is printed is never more.
        longest: tokens (prompt and output) of the longest request; one that the KV pool cannot hold is not served.

    Raises:
        TableError: the weights do not fit.
    """
    profile, tier = profile_of(table), int(knobs["quant_tier"])
    named = table.metadata.get("model", MODEL) if "system" in table.metadata else MODEL  # of a table of any model
    name = precision(tier, table)
    share = memory_share(memory_gb, profile.memory_gb)
    pool = int(profile.pool_tokens(tier, share * profile.memory_gb))
    return Deployment(
        knobs=dict(knobs),
        precision=name,
        gpu=profile.gpu,
        gpu_memory_gb=profile.memory_gb,
        memory_share=share,
        weights_gb=float(profile.weights_gb[tier]),
        runtime_gb=profile.runtime_gb,
        max_model_len=min(longest, pool),
        token_budget=int(profile.tokens_per_iteration),
        parallel=parallel_of(table),
        kv_dtype=kv_dtype if (kv_dtype := table.metadata.get("kv_dtype", "")) in CACHES else "",
        own=name == "mxfp4" or OF_DTYPE.get(table.metadata.get("checkpoint_dtype", "bf16")) == name,
        model=MODEL if is_path(named) else named,
    )


def parallel_of(table: LatencyTable) -> dict[str, int]:
    """How the GPUs of a table's engine share its work: its metadata ``parallelism``, TP4 or TP2 EP2."""
    degrees = re.findall(r"\b(TP|PP|EP|DP)(\d+)", table.metadata.get("parallelism", ""))
    return {word: int(count) for word, count in degrees if int(count) > 1}


def memory_share(memory_gb: float, gpu_memory_gb: float) -> float:
    """Share of a GPU's memory as it is printed, rounded down."""
    return _rounded_down(memory_gb / gpu_memory_gb)


def _rounded_down(share: float) -> float:
    scale = 10**SHARE_DIGITS
    return math.floor(share * scale + 1e-9) / scale


def precision(tier: int, table: LatencyTable) -> str:
    """Weight format of a tier, a key of ``PRECISIONS`` or "mxfp4": what the metadata ``dtypes`` say; where there are
    none, INT4 and, unless the metadata ``weights`` tell that the 8-bit tier is FP8 there, INT8."""
    named = _json(table, "dtypes").get(str(int(tier)))
    if named in OF_DTYPE:
        return OF_DTYPE[named]
    if tier == QuantTier.INT4:
        return "int4"
    if tier == QuantTier.FP16:
        return "fp16"
    return "fp8" if "fp8" in str(_json(table, "weights").get("INT8", "")).lower() else "int8"


def _json(table: LatencyTable, key: str) -> dict[str, Any]:
    try:
        value = json.loads(table.metadata.get(key, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _parallel(made: Deployment, engine: str) -> list[str]:
    flags = [(PARALLEL[kind][engine], str(count)) for kind, count in made.parallel.items()]
    words = [word for flag, count in flags if flag for word in (flag, count)]
    return [*words, "--enable-expert-parallel"] if engine == "vllm" and "EP" in made.parallel else words


def _cannot_cut(made: Deployment, engine: str) -> str | None:
    """Why no flags of an engine cut a model as it was replayed; None where they do."""
    tp, dp, ep = (made.parallel.get(word, 1) for word in ("TP", "DP", "EP"))
    if dp > 1:
        return f"its slots and tokens are set for each of the {dp} attention copies, and were replayed for all together"
    if engine == "vllm" and ep not in (1, tp):
        return f"it deals the experts over all {tp} GPUs or none, not over {ep}"
    return None


def engine_flags(made: Deployment) -> dict[str, str]:
    """Engine name -> the commands that set the deployment, one a line; engines that cannot run it are left out."""
    commands = {"vllm": vllm, "sglang": sglang, "tensorrt_llm": tensorrt_llm}
    return {name: write(made) for name, write in commands.items() if name not in left_out(made)}


def left_out(made: Deployment) -> dict[str, str]:
    """Engine name -> why it cannot run the deployment on the GPU in question."""
    reasons = {name: cannot_run(name, made.precision, made.gpu) or _cannot_cut(made, name) for name in ENGINES}
    if not CACHES[made.kv_dtype]:
        reasons = dict.fromkeys(ENGINES, f"it has no flag for a KV cache in {made.kv_dtype}")
    return {name: reason for name, reason in reasons.items() if reason is not None}


def vllm(made: Deployment) -> str:
    """``vllm serve`` lines, and the router's where prefill is apart: it tells NIXL who prefills."""
    knobs, weights = made.knobs, made.words
    words = ["vllm", "serve", _named(weights.checkpoint, made), "--max-num-seqs", str(knobs["batch_size"])]
    words += ["--max-num-batched-tokens", str(made.token_budget), "--max-model-len", str(made.max_model_len)]
    words += ["--gpu-memory-utilization", f"{made.memory_share:g}", *_parallel(made, "vllm")]
    words += ["--kv-cache-dtype", "fp8"] if made.kv_dtype else []
    if weights.vllm:
        words += ["--quantization", weights.vllm]
    if knobs["spec_length"]:  # vLLM then captures the decode sizes itself; a stated size would replace them
        drafts = {"method": "eagle3", "model": DRAFT, "num_speculative_tokens": int(knobs["spec_length"])}
        words += ["--speculative-config", json.dumps(drafts)]
    elif 2 * knobs["batch_size"] < GRAPH_TOKENS:
        words += ["--max-cudagraph-capture-size", str(min(GRAPH_TOKENS, made.token_budget))]
    if not knobs["prefill_disagg"]:
        return _line(words)
    lines = []
    for role, gpu in (("kv_producer", 0), ("kv_consumer", 1)):
        transfer = json.dumps({"kv_connector": "NixlConnector", "kv_role": role})
        port = ["--port", str(8100 + 100 * gpu)]
        own = f"CUDA_VISIBLE_DEVICES={_devices(made, gpu)} VLLM_NIXL_SIDE_CHANNEL_PORT={5600 + gpu} "
        lines.append(own + _line([*words, *port, "--kv-transfer-config", transfer]))
    router = ["vllm-router", "--vllm-pd-disaggregation", "--prefill", "http://127.0.0.1:8100"]
    router += ["--decode", "http://127.0.0.1:8200", "--host", "127.0.0.1", "--port", "8000"]
    lines.append("# vLLM's router, maintained: github.com/vllm-project/router (pip install vllm-router)")
    lines.append(_line(router))
    lines.append(
        "# for a first try without it: toy_proxy_server.py among the NIXL tests of vLLM's source is a toy proxy, not"
        " for production"
    )
    return "\n".join(lines)


def sglang(made: Deployment) -> str:
    """``sglang.launch_server`` lines, and the router's where prefill is apart."""
    knobs, weights = made.knobs, made.words
    words = ["python", "-m", "sglang.launch_server", "--model-path", _named(weights.checkpoint, made)]
    words += ["--max-running-requests", str(knobs["batch_size"]), "--chunked-prefill-size", str(made.token_budget)]
    static = _rounded_down((made.memory_gb - made.runtime_gb) / made.gpu_memory_gb)  # weights and KV pool
    words += ["--context-length", str(made.max_model_len), "--mem-fraction-static", f"{static:g}"]
    words += [*_parallel(made, "sglang"), *(["--kv-cache-dtype", "fp8_e4m3"] if made.kv_dtype else [])]
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
        lines.append(f"CUDA_VISIBLE_DEVICES={_devices(made, gpu)} " + _line([*words, *apart]))
    lines.append(
        "python -m sglang_router.launch_router --pd-disaggregation"
        " --prefill http://127.0.0.1:30000 --decode http://127.0.0.1:30100"
    )
    return "\n".join(lines)


def tensorrt_llm(made: Deployment) -> str:
    """``trtllm-serve`` lines with the YAML that they read, and the orchestrator's where prefill is apart."""
    knobs, weights = made.knobs, made.words
    free = made.gpu_memory_gb - made.weights_gb - made.runtime_gb
    pool = _rounded_down((made.memory_gb - made.weights_gb - made.runtime_gb) / free)  # of what the weights leave free
    options = ["enable_chunked_prefill: true", "kv_cache_config:", f"  free_gpu_memory_fraction: {pool:g}"]
    options += [f"  dtype: {made.kv_dtype}"] if made.kv_dtype else []
    if knobs["spec_length"]:
        drafts = f"  max_draft_len: {int(knobs['spec_length'])}"
        options += ["speculative_config:", "  decoding_type: Eagle3", drafts, f'  speculative_model: "{DRAFT}"']
    words = ["trtllm-serve", _named(weights.tensorrt_llm, made), "--max_batch_size", str(knobs["batch_size"])]
    words += ["--max_num_tokens", str(made.token_budget), "--max_seq_len", str(made.max_model_len)]
    words += _parallel(made, "tensorrt_llm")
    lines: list[str] = []
    if not knobs["prefill_disagg"]:
        return "\n".join([*_file("options.yaml", options), _line([*words, "--config", "options.yaml"])])
    options += ["cache_transceiver_config:", "  backend: NIXL"]
    # a prefill server cannot overlap its scheduling yet (TensorRT-LLM's page on disaggregated serving)
    roles = {"prefill": ["disable_overlap_scheduler: true", *options], "decode": options}
    for gpu, (role, own) in enumerate(roles.items()):
        port = ["--host", "localhost", "--port", str(8101 + 100 * gpu), "--config", f"{role}.yaml"]
        lines += [*_file(f"{role}.yaml", own), f"CUDA_VISIBLE_DEVICES={_devices(made, gpu)} " + _line([*words, *port])]
    both = ["hostname: localhost", "port: 8000", "backend: pytorch"]
    both += ["context_servers:", "  num_instances: 1", "  urls: ['localhost:8101']"]
    both += ["generation_servers:", "  num_instances: 1", "  urls: ['localhost:8201']"]
    return "\n".join([*lines, *_file("disagg.yaml", both), "trtllm-serve disaggregated -c disagg.yaml"])


def _named(checkpoint: str, made: Deployment) -> str:
    """The checkpoint with the model's name, where that is known."""
    return checkpoint.replace(MODEL, made.model)


def _devices(made: Deployment, server: int) -> str:
    """GPUs of the first or the second server of a host."""
    return ",".join(str(server * made.gpus + i) for i in range(made.gpus))


def _file(name: str, lines: list[str]) -> list[str]:
    return [f"cat > {name} <<'END'", *lines, "END"]


def _line(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)
