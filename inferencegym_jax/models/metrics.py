"""What one second of serving measured, and its traffic: unit and meaning of each number, written once in ``METRICS``
and ``WORKLOAD``."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import jax

from inferencegym_jax.models.engine import Scalar
from inferencegym_jax.models.quantity import Quantity


class Phase(enum.IntEnum):
    """Where an episode stands in its burst calendar."""

    WARMUP = 0
    STEADY = 1
    BURST = 2
    COOLDOWN = 3


COST_UNIT = "scaled GPU s/1k tokens"
"""Of every cost: GPU-seconds per 1,000 output tokens, times the table's ``cost_scale``."""

METRICS: dict[str, Quantity] = {
    "ttft_p50_ms": Quantity(
        description="median time to first token", unit="ms", title="Time to first token", scale="log", chart="value"
    ),
    "ttft_p99_ms": Quantity(description="99th percentile of the time to first token", unit="ms", scale="log"),
    "tpot_ms": Quantity(
        description="time per output token", unit="ms", title="Time per output token", digits=1, chart="value"
    ),
    "tokens_per_sec": Quantity(
        description="output tokens a second", unit="tokens/s", title="Throughput", chart="value"
    ),
    "gpu_memory_gb": Quantity(
        description="GPU memory in use, capped at what the GPU has",
        unit="GB",
        title="GPU memory",
        digits=1,
        chart="value",
    ),
    "cost_per_1k": Quantity(
        description="GPU-seconds per 1,000 output tokens, times the cost scale of the table",
        unit=COST_UNIT,
        title="Cumulative cost",
        digits=2,
        chart="sum",
    ),
    "spec_accept_rate": Quantity(description="accepted share of the drafted tokens", unit="share", digits=2),
    "eviction_events": Quantity(description="evicted sequences", unit="sequences", kind="int"),
    "slo_violations": Quantity(
        description="requests that missed their objective, or were rejected", unit="requests", kind="int"
    ),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MetricsSnapshot:
    """What one second of serving measured; see ``METRICS``. Scalars for one environment, batched under vmap."""

    ttft_p50_ms: Scalar  # float32
    ttft_p99_ms: Scalar  # float32
    tpot_ms: Scalar  # float32
    tokens_per_sec: Scalar  # float32
    gpu_memory_gb: Scalar  # float32
    cost_per_1k: Scalar  # float32
    spec_accept_rate: Scalar  # float32
    eviction_events: Scalar  # int32
    slo_violations: Scalar  # int32


WORKLOAD: dict[str, Quantity] = {
    "arrival_rate": Quantity(
        description="10-step exponential moving average of the arrivals", unit="requests/s", exogenous=True
    ),
    "mean_prompt_len": Quantity(description="mean prompt length", unit="tokens", exogenous=True),
    "prompt_len_bucket": Quantity(description="bucket of the mean prompt length, 0 to 7", kind="int", exogenous=True),
    "queue_depth": Quantity(
        description="requests left waiting after service", unit="requests", kind="int", title="Queue", chart="value"
    ),
    "priority_distribution": Quantity(
        description="interactive, batch, best-effort shares of the last 50 seconds' arrivals",
        unit="share",
        size=3,
        title="Classes",
        digits=2,
        chart="classes",
        exogenous=True,
    ),
    "is_burst": Quantity(description="is this second inside a burst", kind="bool", exogenous=True),
    "phase": Quantity(description="0 warmup, 1 steady, 2 burst, 3 cooldown", kind="int", exogenous=True),
    "arrivals": Quantity(
        description="requests that arrived in this second",
        unit="requests/s",
        kind="int",
        title="Arrivals",
        chart="value",
        exogenous=True,
    ),
    "served": Quantity(description="requests taken from the queue in this second", unit="requests", kind="int"),
    "rejected": Quantity(
        description="requests turned away because the queue was full, or lost when memory ran out",
        unit="requests",
        kind="int",
    ),
    "running": Quantity(
        description="open loop: requests in the decode batch after the second", unit="requests", kind="int"
    ),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WorkloadState:
    """The traffic of one second; see ``WORKLOAD``. ``arrivals``, ``served`` and ``rejected`` account for every request
    of the step."""

    arrival_rate: Scalar  # float32
    mean_prompt_len: Scalar  # float32
    prompt_len_bucket: Scalar  # int32
    queue_depth: Scalar  # int32
    priority_distribution: Scalar  # float32[3]
    is_burst: Scalar  # bool
    phase: Scalar  # int32, a Phase
    arrivals: Scalar  # int32
    served: Scalar  # int32; in the open loop those that finished
    rejected: Scalar  # int32
    running: Scalar = 0  # int32
