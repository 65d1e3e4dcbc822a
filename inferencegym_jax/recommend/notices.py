"""What a reader should know before acting on a recommendation: one sentence each, and the log in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inferencegym_jax.recommend.engine_flags import CHECKED, Deployment
from inferencegym_jax.recommend.gpu_formats import ENGINES
from inferencegym_jax.recommend.log_requests import LoggedRequests
from inferencegym_jax.table import LatencyTable

SHORT_LOG_S = 60  # a log of less is suspected of another unit of time
USUAL_CONTEXT = 8192  # tokens; a model of a shorter context refuses a longer --max-model-len
CROWDED = 0.95  # share of a GPU's memory above which an engine may not start


def traffic_notices(table: LatencyTable, requests: LoggedRequests) -> list[str]:
    """About the log and how it was replayed."""
    log = requests.log
    said = list(log.notices)
    if log.seconds < SHORT_LOG_S:
        said.append(
            f"the log covers only {log.seconds} s ({log.rate:,.4g} requests/s): is the unit of its times right? (unit)"
        )
    if requests.seconds < log.seconds:
        said.append(
            f"the log is long: {len(requests.starts)} stretches of {requests.length} s, its busiest hour and minute"
            f" among them, were replayed: {requests.count / log.requests:.1%} of the requests,"
            f" {requests.seconds / log.seconds:.1%} of the time; each stands for the stretches of about its load"
        )
    longest = table.axes["prompt_len_bucket"][-1]
    beyond = float((requests.prompt > longest).mean())
    if beyond > 0:
        said.append(
            f"{beyond:.2%} of the prompts are beyond the table's longest, {longest:g} tokens: the search takes them for"
            " that, the replay extends its kernels' last segment"
        )
    return said


def deployment_notices(made: Deployment, skipped: Mapping[str, str]) -> list[str]:
    """About the commands.

    Args:
        made: what they set.
        skipped: engine -> why it has none.
    """
    knobs = made.knobs
    said = [f"{CHECKED}; another version may name them otherwise"]
    said += [f"no command for {ENGINES[name]}: {reason}" for name, reason in skipped.items()]
    if made.memory_share > CROWDED:
        said.append(
            f"the engine takes {made.memory_share:.1%} of the GPU's {made.gpu_memory_gb:g} GB; above {CROWDED:.0%} it"
            " may not start, because driver and libraries need some"
        )
    if made.max_model_len > USUAL_CONTEXT:
        said.append(
            f"the longest request has {made.max_model_len:,} tokens; a model of a shorter context refuses that length"
        )
    if knobs["quant_tier"] != 0 and not made.own:
        said.append(
            "a quantised model may answer differently: check its quality on your own prompts before deploying it"
        )
    if knobs["spec_length"]:
        said.append("speculation needs a draft head of the model; its acceptance on your prompts may differ")
    if knobs["prefill_disagg"]:
        said.append("prefill has a GPU and a server of its own: run each server's command in a shell of its own")
    return said


def too_long_notice(requests: LoggedRequests, pool_tokens: int) -> list[str]:
    """Whether requests are longer than the KV pool."""
    share = float(np.average(requests.prompt + requests.output > pool_tokens, weights=requests.weight))
    if not share:
        return []
    return [
        f"{share:.2%} of the requests are longer than the KV pool ({pool_tokens:,} tokens) and are turned away; the"
        f" longest has {requests.longest:,}"
    ]


def about(requests: LoggedRequests) -> dict[str, Any]:
    """The log and what of it was replayed, in numbers; rates and means of the replayed are of those requests alone."""
    log, hour = requests.log, requests.in_busiest_hour
    first, end = requests.stretches.hour
    return {
        "name": log.name,
        "requests": log.requests,
        "seconds": log.seconds,
        "requests_per_sec": log.rate,
        "mean_prompt_tokens": log.mean_prompt,
        "mean_output_tokens": log.mean_output,
        "replayed_requests": requests.count,
        "replayed_seconds": requests.seconds,
        "replayed_share": requests.count / log.requests,
        "replayed_requests_per_sec": requests.count / requests.seconds,
        "replayed_prompt_tokens": float(requests.prompt.mean()),
        "replayed_output_tokens": float(requests.output.mean()),
        "stretches": [
            {"start_s": int(start), "seconds": requests.length, "weight": float(weight)}
            for start, weight in zip(requests.starts, requests.stretches.weights, strict=True)
        ],
        "busiest_hour": {
            "start_s": first,
            "seconds": end - first,
            "requests": int(log.counts[first:end].sum()),
            "replayed_requests": int(hour.sum()),
        },
    }
