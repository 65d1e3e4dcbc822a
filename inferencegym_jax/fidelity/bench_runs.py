"""One run of a benchmark tool as a row of measured runs, after a look at every field that a prediction rests on.

``report of a tool -> row of measured_runs.py, notices``; a run that the step cannot play as it was is refused with its
reason: a cap on concurrency that binds, failed requests, arrivals of another kind, drafts, other arithmetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from inferencegym_jax.fidelity.bench_checks import (
    UNCAPPED,
    RunError,
    check_load,
    check_rate,
    count_of,
    odd_duration,
    odd_latency,
    positive,
    positive_or_zero,
)
from inferencegym_jax.fidelity.nvidia_runs import CLOSED, CSV_WAY, nvidia_run
from inferencegym_jax.models import shown
from inferencegym_jax.table.bench_files import (
    AIPERF,
    FORMATS,
    GENAI_PERF,
    GUIDELLM,
    INFERENCE_PERF,
    INFERENCEX,
    LLMPERF,
    MOST_FAILED,
    PARALLEL,
    SGLANG,
    VLLM,
    failed_share,
    told,
    tool_of,
)

EVEN_BURSTINESS = 100.0  # of vLLM's Gamma gaps: their squared coefficient of variation is 1 in so many
CHUNKED = 1.15  # mean gap between chunks over mean time per token from which chunks hold several tokens
SIXTEEN_BITS = frozenset("auto bf16 bfloat16 fp16 float16 half none".split())
QUANTISED = re.compile(
    r"(?<![a-z])(fp8|fp4|nvfp4|mxfp4|int8|int4|w\d+a\d+|awq|gptq|gguf|bnb|[48]-?bit|q[2-8]_\w+)(?![a-z])", re.IGNORECASE
)
SERVERS = frozenset("tgi lmdeploy tensorrt-llm trtllm deepspeed-mii scalellm llama.cpp".split())  # that clients can ask


def row_of(source: str, report: Any) -> tuple[dict[str, Any], list[str]]:
    """(row of ``measured_runs``, notices) of one report.

    Raises:
        RunError: of another tool, which is named, or a run that cannot be played as it was.
    """
    tool = tool_of(report)
    if not isinstance(report, Mapping):
        raise RunError(
            f"{source}: got {type(report).__name__}; wanted: an object as `vllm bench serve --save-result` writes"
        )
    if tool in (VLLM, SGLANG):
        return _serving(source, report, tool)
    for name in ("input_config", "load_summary", "successes", "failures"):
        value = report.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise RunError(f"{source}: {name} is {shown(value)}; wanted: an object as {tool} writes")
    if tool in (GENAI_PERF, AIPERF):
        return nvidia_run(source, report, tool)
    if tool == INFERENCE_PERF:
        return _inference_perf(source, report)
    reasons = {
        GUIDELLM: "its sweep is not read; repeat the run with `vllm bench serve --request-rate R --save-result`",
        LLMPERF: CLOSED,
        INFERENCEX: CLOSED,
    }
    if tool is not None:
        raise RunError(f"{source}: a result of {tool}: {reasons[tool]}; {CSV_WAY}")
    raise RunError(
        f"{source}: completed is None and it is no result of a known tool; read are vllm bench serve, SGLang,"
        f" genai-perf, aiperf, inference-perf; {CSV_WAY}"
    )


def _serving(source: str, run: Mapping[str, Any], tool: str) -> tuple[dict[str, Any], list[str]]:
    """A run of vLLM's or SGLang's client."""
    notices: list[str] = []
    done = positive(source, "completed", run.get("completed"))
    asked = run.get("num_prompts")
    if asked is not None and done > positive(source, "num_prompts", asked):
        raise RunError(f"{source}: completed is {done:g} of num_prompts {shown(asked)}; wanted: at most as many")
    failed = failed_share(run)
    if failed > MOST_FAILED:
        raise RunError(
            f"{source}: {failed:.0%} of its requests failed (completed {done:g}); wanted: at most {MOST_FAILED:.0%}, or"
            " the figures are those of the few that did not"
        )
    if failed:
        notices.append(f"{source}: {failed:.2%} of its requests failed")
    rate = run.get("request_rate")
    if rate is None or str(rate).strip().lower() in UNCAPPED:
        raise RunError(f"{source}: request_rate is {rate!r}; wanted: a finite rate (an open-loop run)")
    rate = positive(source, "request_rate", rate)
    prompt = positive(source, "total_input_tokens", told(run, "total_input_tokens", "total_input")) / done
    output = positive(source, "total_output_tokens", told(run, "total_output_tokens", "total_output")) / done
    ttft = positive(source, "mean_ttft_ms", run.get("mean_ttft_ms"))
    tpot, gap = (count_of(source, name, run.get(name)) for name in ("mean_tpot_ms", "mean_itl_ms"))
    per_token = positive(source, "mean_tpot_ms", tpot or gap or run.get("mean_tpot_ms"))
    if tpot and gap > CHUNKED * tpot:
        notices.append(
            f"{source}: mean_itl_ms is {gap:g} a chunk of about {gap / tpot:.1f} tokens; mean_tpot_ms, {tpot:g} a"
            " token, is used"
        )
    latency = told(run, "mean_e2el_ms", "mean_e2e_latency_ms") or ttft + per_token * (output - 1)
    latency = positive(source, "mean_e2el_ms", latency)
    check_load(source, run, rate, latency)
    notices += odd_latency(source, latency, ttft, per_token, output)
    notices += odd_duration(source, run, done, rate, latency)
    cached = told(run, "prefix_cache_hit_rate")
    if cached is not None and positive_or_zero(cached) > 0 and run.get("prefix_share") is None:
        notices.append(
            f"{source}: prefix_cache_hit_rate is {shown(cached)}, and prompts are taken as computed whole; state"
            " prefix_share"
        )
    if told(run, "ramp_up_strategy") is not None:
        raise RunError(f"{source}: ramp_up_strategy is {shown(run['ramp_up_strategy'])}; wanted: one rate over the run")
    row = {
        "model": told(run, "model_id", "model", "model_path", "model_name"),
        "gpu": told(run, "gpu", "gpu_name", "gpu_type", "hardware", "accelerator", "device_name"),
        "max_num_seqs": told(run, "max_num_seqs", "max_running_requests"),
        "max_num_batched_tokens": told(run, "max_num_batched_tokens", "chunked_prefill_size"),
        "arrivals": _arrivals(source, run),
        "rate_rps": rate,
        "requests": run.get("num_prompts") or done,
        "mean_prompt_tokens": prompt,
        "mean_output_tokens": output,
        "ttft_mean_ms": ttft,
        "latency_mean_ms": latency,
        **{
            f"ttft_{q}_ms": run.get(f"{name}_ttft_ms")
            for q, name in (("p50", "median"), ("p90", "p90"), ("p99", "p99"))
        },
        "prefix_share": run.get("prefix_share"),
        "engine": told(run, "engine") or _engine(run, tool),
        "engine_version": told(run, "vllm_version", "sglang_version", "engine_version", "version"),
        "dtype": format_of(source, run),
    }
    return row | parallel_of(source, run), notices


def _engine(run: Mapping[str, Any], tool: str) -> str:
    backend = str(run.get("backend", tool)).lower()
    return "sglang" if "sglang" in backend else backend if backend in SERVERS else "vllm"


def _arrivals(source: str, run: Mapping[str, Any]) -> str:
    stated = run.get("burstiness")
    if stated == math.inf:
        return "constant"
    burstiness = 1.0 if stated is None else positive(source, "burstiness", stated)
    if burstiness == 1.0:
        return "poisson"
    if burstiness >= EVEN_BURSTINESS:
        return "constant"
    raise RunError(
        f"{source}: burstiness is {burstiness:g}; wanted: 1 (Poisson), or at least {EVEN_BURSTINESS:g} (even)"
    )


def parallel_of(source: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """The number of GPUs of tensor parallelism, as ``{"tp": n}``.

    Raises:
        RunError: pipeline or data parallelism, which no prediction knows, or two figures that contradict each other.
    """
    for kind in ("pp", "dp"):
        for name in PARALLEL[kind]:
            value = told(run, name)
            if value is not None and positive(source, name, value) > 1:
                raise RunError(f"{source}: {name} is {value}; wanted: 1, one engine on its GPUs")
    stated = {name: _whole(source, name, told(run, name)) for name in PARALLEL["tp"] if told(run, name) is not None}
    if len(set(stated.values())) > 1:
        said = ", ".join(f"{name} is {value}" for name, value in stated.items())
        raise RunError(f"{source}: {said}; wanted: one number of GPUs")
    return {"tp": next(iter(stated.values()), None)}


def _whole(source: str, name: str, value: Any) -> int:
    number = positive(source, name, value)
    if number != int(number):
        raise RunError(f"{source}: {name} is {shown(value)}; wanted: a whole number of GPUs")
    return int(number)


def format_of(source: str, run: Mapping[str, Any]) -> str | None:
    """The number format that a run states, None where it states none or a 16-bit one.

    Raises:
        RunError: it is no text.
    """
    for name in FORMATS:
        value = told(run, name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise RunError(f"{source}: {name} is {shown(value)}; wanted: a name such as bfloat16 or fp8")
        if value.strip().lower().removeprefix("torch.") not in SIXTEEN_BITS:
            return f"{name}={value.strip()}"
    return None


def _inference_perf(source: str, run: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A stage of inference-perf, where it states the rate that was asked for."""
    load: Any = run["load_summary"] or {}
    good: Any = run["successes"] or {}
    if load.get("requested_rate") is None:
        raise RunError(f"{source}: a result of {INFERENCE_PERF} without load_summary.requested_rate; {CSV_WAY}")
    rate = positive(source, "load_summary.requested_rate", load["requested_rate"])
    check_rate(source, "load_summary.achieved_rate", load.get("achieved_rate"), rate)
    done = positive(source, "successes.count", good.get("count"))
    failed = count_of(source, "failures.count", (run.get("failures") or {}).get("count"))
    if failed / (done + failed) > MOST_FAILED:
        raise RunError(f"{source}: {failed:g} of {done + failed:g} requests failed; wanted: at most {MOST_FAILED:.0%}")

    def mean(*path: str) -> float:
        value: Any = good
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return positive(
            source, ".".join(("successes", *path, "mean")), value.get("mean") if isinstance(value, Mapping) else None
        )

    return {
        "arrivals": "poisson" if "poisson" in str(load).lower() else "constant",
        "rate_rps": rate,
        "requests": done + failed,
        "mean_prompt_tokens": mean("prompt_len"),
        "mean_output_tokens": mean("output_len"),
        "ttft_mean_ms": 1e3 * mean("latency", "time_to_first_token"),
        "latency_mean_ms": 1e3 * mean("latency", "request_latency"),
    }, []
