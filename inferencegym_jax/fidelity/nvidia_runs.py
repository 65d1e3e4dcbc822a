"""A run of NVIDIA's genai-perf or aiperf (profile_export_*.json) as a row of measured runs.

``report -> row of measured_runs.py``; ``bench_runs.py`` reads the other tools'. aiperf's fields are those of its
documentation's "JSON Export Schema" and "YAML Configuration Files", 0.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferencegym_jax.fidelity.bench_checks import RunError, check_cap, count_of, positive
from inferencegym_jax.models import shown
from inferencegym_jax.table.bench_files import AIPERF, MOST_FAILED

CSV_WAY = "or write it as a row of a CSV of runs (docs/fidelity.md)"
CLOSED = "keeps a number of requests in flight, and the prediction is of requests that arrive at a rate"
RAMPS = ("request_rate_ramp_duration", "concurrency_ramp_duration")  # of aiperf, s


def nvidia_run(source: str, run: Mapping[str, Any], tool: str) -> tuple[dict[str, Any], list[str]]:
    """(row of ``measured_runs``, notices) of a run of genai-perf or aiperf: its request rate, means over its requests.

    Args:
        source: what messages call it.
        run: the report.
        tool: which of them wrote it.

    Raises:
        RunError: it was cancelled, kept a number of requests in flight, or lacks a field; field and value are named.
    """
    first_token: Any = run.get("time_to_first_token")
    if "per_run" in run or (isinstance(first_token, Mapping) and "ci_low" in first_token):
        raise RunError(f"{source}: its figures are of several runs together; wanted: profile_export_aiperf.json of one")
    config: Any = run.get("input_config") or {}
    loadgen: Any = _object(source, config, "loadgen") or _phase(source, config)
    stimulus: Any = _object(source, _object(source, config, "perf_analyzer"), "stimulus")
    rate = loadgen.get("request_rate") or stimulus.get("request_rate")
    if rate is None:
        raise RunError(
            f"{source}: a result of {tool} without a request rate: it {CLOSED}; wanted: --request-rate; {CSV_WAY}"
        )
    mode = str(loadgen.get("request_rate_mode") or loadgen.get("arrival_pattern") or "")
    mode = mode.rpartition(".")[2].lower() or ("poisson" if tool == AIPERF else "constant")  # each tool's own default
    if mode not in ("poisson", "constant"):
        raise RunError(f"{source}: request_rate_mode is {shown(mode)}; wanted: poisson or constant")
    if run.get("was_cancelled"):
        raise RunError(f"{source}: was_cancelled is {shown(run['was_cancelled'])}; wanted: a run to its end")
    ramp = next((name for name in RAMPS if loadgen.get(name)), None)
    if ramp is not None:
        raise RunError(f"{source}: {ramp} is {shown(loadgen[ramp])}; wanted: one rate over the run")
    errors, requests = (
        count_of(source, name, _average(run, name)) for name in ("error_request_count", "request_count")
    )
    if requests and errors / (requests + errors) > MOST_FAILED:
        raise RunError(
            f"{source}: {errors:g} of {requests + errors:g} requests failed; wanted: at most {MOST_FAILED:.0%}"
        )
    models = _models(source, config)
    rate, latency = positive(source, "request_rate", rate), _milliseconds(source, run, "request_latency", "avg")
    check_cap(source, {"max_concurrency": loadgen.get("concurrency")}, rate, latency)
    row = {
        "model": models,
        "gpu": config.get("gpu"),
        "arrivals": mode,
        "rate_rps": rate,
        "requests": requests or None,
        "mean_prompt_tokens": positive(source, "input_sequence_length.avg", _average(run, "input_sequence_length")),
        "mean_output_tokens": positive(source, "output_sequence_length.avg", _average(run, "output_sequence_length")),
        "ttft_mean_ms": _milliseconds(source, run, "time_to_first_token", "avg"),
        "latency_mean_ms": latency,
        **{
            f"ttft_{q}_ms": _milliseconds(source, run, "time_to_first_token", q)
            for q in ("p50", "p90", "p99")
            if q in run["time_to_first_token"]
        },
    }
    return row, []


def _phase(source: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one phase of aiperf's newer configuration that was measured, under the names of the older one."""
    stated: Any = config.get("phases") or []
    phases = list(stated.values()) if isinstance(stated, Mapping) else stated
    if not isinstance(phases, list) or not all(isinstance(phase, Mapping) for phase in phases):
        raise RunError(f"{source}: input_config: phases is {shown(stated)}; wanted: objects")
    measured = [p for p in phases if not p.get("exclude_from_results") and p.get("name") != "warmup"]
    if not measured:
        return {}
    if len(measured) > 1:
        raise RunError(f"{source}: its figures are of {len(measured)} phases together; wanted: one rate over the run")
    phase = measured[0]
    ramps = {"request_rate_ramp_duration": phase.get("rate_ramp") or phase.get("request_rate_ramp_duration")}
    return ramps | {
        "request_rate": phase.get("rate"),
        "arrival_pattern": phase.get("type"),
        "concurrency": phase.get("concurrency"),
    }


def _models(source: str, config: Mapping[str, Any]) -> Any:
    models: Any = config.get("model") or config.get("model_names") or config.get("models")
    models = models or _object(source, config, "endpoint").get("model_names")
    if isinstance(models, Mapping):
        models = models.get("items")
    first: Any = models[0] if isinstance(models, list) and models else models
    return first.get("name") if isinstance(first, Mapping) else first


def _object(source: str, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise RunError(f"{source}: input_config: {name} is {shown(value)}; wanted: an object")
    return value or {}


def _average(run: Mapping[str, Any], name: str) -> Any:
    value = run.get(name)
    return value.get("avg") if isinstance(value, Mapping) else value


def _milliseconds(source: str, run: Mapping[str, Any], name: str, statistic: str) -> float:
    value: Any = run.get(name)
    if not isinstance(value, Mapping):
        raise RunError(f"{source}: lacks {name}; wanted: a run with --streaming")
    scale = {"ms": 1.0, "s": 1e3, "sec": 1e3, "us": 1e-3, "ns": 1e-6}.get(str(value.get("unit", "ms")))
    if scale is None:
        raise RunError(f"{source}: {name}.unit is {shown(value['unit'])}; wanted: ms, s, us or ns")
    return scale * positive(source, f"{name}.{statistic}", value.get(statistic))
