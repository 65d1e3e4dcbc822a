"""Which tool wrote a benchmark's result: by the fields of its report, so that a message can call it by its name.

Fields as the tools write them: vLLM ``vllm bench serve`` (vllm/benchmarks/serve.py), SGLang ``sglang.bench_serving``,
NVIDIA genai-perf and aiperf (profile_export_*.json), guidellm (benchmarks.json), llmperf (*_summary.json),
inference-perf (*_lifecycle_metrics.json), InferenceX (agg_*.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VLLM, SGLANG = "vllm bench serve", "sglang.bench_serving"
GENAI_PERF, AIPERF, INFERENCE_PERF = "genai-perf", "aiperf", "inference-perf"
GUIDELLM, LLMPERF, INFERENCEX = "guidellm", "llmperf", "InferenceX"
PARALLEL: dict[str, tuple[str, ...]] = {
    "tp": ("tensor_parallel_size", "tensor_parallel", "tp_size", "tp", "TP", "num_gpus", "n_gpus", "gpu_count", "gpus"),
    "pp": ("pipeline_parallel_size", "pp_size", "pp", "PP"),
    "dp": ("data_parallel_size", "dp_size", "dp", "DP"),
}
FORMATS = ("quantization", "dtype", "weight_dtype", "precision", "kv_cache_dtype", "kv_dtype")
MOST_FAILED = 0.01  # share of a run's requests up to which its figures are still those of the run


def tool_of(report: Any) -> str | None:
    """Name of the tool that wrote a report; None where it is none that is known."""
    if not isinstance(report, Mapping):
        return None
    if isinstance(report.get("benchmarks"), list):
        return GUIDELLM
    if "load_summary" in report and "successes" in report:
        return INFERENCE_PERF
    if any(str(key).startswith("results_") for key in report) or "num_concurrent_requests" in report:
        return LLMPERF
    if "tput_per_gpu" in report or ("conc" in report and "hw" in report):
        return INFERENCEX
    if "combined" in report and "per_run" in report:
        return AIPERF
    first_token = report.get("time_to_first_token", report.get("request_latency"))
    if isinstance(first_token, Mapping) and not {"avg", "unit", "ci_low"}.isdisjoint(first_token):
        if "aiperf_version" in report or "ci_low" in first_token:
            return AIPERF
        config = report.get("input_config")
        old = isinstance(config, Mapping) and ("perf_analyzer" in config or "loadgen" not in config)
        return GENAI_PERF if old or config is None else AIPERF
    if "total_output_tokens_retokenized" in report or "server_info" in report or "mean_e2e_latency_ms" in report:
        return SGLANG
    if any(key in report for key in ("mean_ttft_ms", "median_ttft_ms", "total_input_tokens", "request_throughput")):
        return VLLM
    return None


def told(report: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that holds something, also in SGLang's ``server_info``; None: none does."""
    info = report.get("server_info")
    places = (report, info) if isinstance(info, Mapping) else (report,)
    for place in places:
        for name in names:
            if place.get(name) not in (None, "", "None", "null"):
                return place[name]
    return None


def failed_share(report: Mapping[str, Any]) -> float:
    """Share of a vLLM or SGLang run's requests that failed."""
    done = _number(report.get("completed"))
    asked = _number(report.get("num_prompts")) or done + _number(report.get("failed"))
    failed = max(_number(report.get("failed")), asked - done)
    return failed / asked if asked > 0 else 0.0


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
