"""What a fleet carries from one decision to the next, a fleet task as numbers, and what a decision came to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from inferencegym_jax.models import EngineParams, EngineState, EpisodeState, Quantity, Scalar

DECISION_S = 5
"""Seconds that a decision holds, each a step of the engines' fluid."""
TRAINING_SEEDS = 2**31
"""Seeds from here on are for training."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetState(EpisodeState):
    """Everything that an episode carries from one decision to the next.

    A fleet's GPUs stand in slots: asked for are the first ``asked``, so the last one started is the first given back.
    Of those the first ``prefill`` compute prompts for the others.
    """

    seed: jax.Array  # uint32, seed of this episode
    episode: jax.Array  # int32, episodes finished before this one
    time: jax.Array  # int32, decisions taken in this episode
    scale: jax.Array  # float32, by which the day's rates are multiplied
    engine: EngineState  # of all engines together
    asked: jax.Array  # int32
    prefill: jax.Array  # int32
    start_s: jax.Array  # float32[GPUS], until the slot's GPU serves
    lease_s: jax.Array  # float32[GPUS], for which it must still be paid
    apart: jax.Array  # float32[GPUS], requests that run on it while it takes no new ones
    most: jax.Array  # float32, requests that run on the engine that has most
    prompt_load: jax.Array  # float32[3], averages over AVERAGES_S, GPUs
    output_load: jax.Array  # float32[3]

    def replace(self, **changes: Any) -> FleetState:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetParams:
    """One fleet task as numbers; all have the same structure, so params stack and ``vmap`` mixes tasks."""

    task_id: Scalar  # int32
    episode_length: Scalar  # int32, decisions of an episode
    engine: EngineParams  # one engine, objectives on the time per output token, and the traffic
    slo_ttft_ms: Scalar  # float32[3], objective on the time to first token, by class
    class_shares: Scalar  # float32[3], of a log's requests, or of days without classes
    gpus: Scalar  # int32, GPUs that there are
    active: Scalar  # bool[4], knobs of FLEET_KNOBS that are the agent's; others keep their default
    quant_tier: Scalar  # int32, weight format
    kv_budget: Scalar  # float32, share of the KV pool up to which new requests enter
    start_s: Scalar  # float32, from asking for a GPU until it serves
    lease_s: Scalar  # float32, least time for which it is paid
    role_s: Scalar  # float32, without service when a GPU goes from prompts to decoding or back
    failures: Scalar  # float32, failures of a serving GPU an hour
    busiest: Scalar  # float32, GPUs that a day's busiest hour is scaled to need; 0: days as they are
    short_outputs: Scalar  # float32[KINDS, len(SHORT_OUTPUTS)], of each kind's requests; of a log the first row
    prompt_gpus: Scalar  # float32, GPUs that a prompt token a second keeps busy
    output_gpus: Scalar  # float32, the same of an output token
    bare_ttft: Scalar  # float32, first token of a mean prompt on an idle GPU over its objective
    bare_tpot: Scalar  # float32, time per output token of a single request over its objective
    work_s: Scalar  # float32, GPU time of a mean request
    late_price: Scalar  # float32, times work_s, that a late request costs in the reward

    def replace(self, **changes: Any) -> FleetParams:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


FLEET_METRICS: dict[str, Quantity] = {
    "ttft_mean_ms": Quantity(
        description="mean time to first token of those that got it",
        unit="ms",
        title="Time to first token",
        scale="log",
        chart="value",
    ),
    "ttft_p99_ms": Quantity(description="mean over the seconds of its 99th percentile", unit="ms", scale="log"),
    "tpot_ms": Quantity(
        description="time per output token", unit="ms", title="Time per output token", digits=1, chart="value"
    ),
    "tokens": Quantity(description="output tokens", unit="tokens"),
    "first_tokens": Quantity(description="requests that left the line for an engine", unit="requests", digits=1),
    "completed": Quantity(description="requests that finished", unit="requests", digits=1),
    "preempted": Quantity(description="requests sent back to be recomputed", unit="requests", digits=1),
    "running": Quantity(description="requests that run at the end", unit="requests", digits=1),
    "queue": Quantity(
        description="requests that wait at the end", unit="requests", title="Queue", digits=1, chart="value"
    ),
    "kv_use": Quantity(description="share of the KV pools in use", unit="share", digits=2),
    "asked": Quantity(description="GPUs asked for", unit="GPUs", title="GPUs asked for", chart="value"),
    "prefill": Quantity(description="of them, for prompts", unit="GPUs"),
    "serving": Quantity(
        description="GPUs that take new requests at the end", unit="GPUs", title="serving", digits=0, chart="band"
    ),
    "starting": Quantity(
        description="GPUs asked for that do not serve at the end", unit="GPUs", title="starting", digits=0, chart="band"
    ),
    "draining": Quantity(
        description="GPUs given back and still paid for at the end",
        unit="GPUs",
        title="draining",
        digits=0,
        chart="band",
    ),
    "failures": Quantity(description="GPUs that failed", unit="GPUs"),
    "changed": Quantity(description="GPUs asked for more or less than before", unit="GPUs"),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetMetrics:
    """What one decision's seconds measured; each float32. Meaning: ``FLEET_METRICS``."""

    ttft_mean_ms: Scalar
    ttft_p99_ms: Scalar
    tpot_ms: Scalar
    tokens: Scalar
    first_tokens: Scalar
    completed: Scalar
    preempted: Scalar
    running: Scalar
    queue: Scalar
    kv_use: Scalar
    asked: Scalar
    prefill: Scalar
    serving: Scalar
    starting: Scalar
    draining: Scalar
    failures: Scalar
    changed: Scalar


FLEET_WORKLOAD: dict[str, Quantity] = {
    "arrivals": Quantity(description="requests that arrived", unit="requests", digits=1, exogenous=True),
    "prompt_tokens": Quantity(description="prompt tokens of those that arrived", unit="tokens", exogenous=True),
    "output_tokens": Quantity(description="output tokens of those that arrived", unit="tokens", exogenous=True),
    "load": Quantity(
        description="GPUs that those that arrived keep busy",
        unit="GPUs",
        title="Load",
        digits=1,
        chart="value",
        exogenous=True,
    ),
    "hour": Quantity(description="hour of the day", unit="h", digits=1, exogenous=True),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetWorkload:
    """What came in one decision's seconds; each float32. Meaning: ``FLEET_WORKLOAD``."""

    arrivals: Scalar
    prompt_tokens: Scalar
    output_tokens: Scalar
    load: Scalar
    hour: Scalar
