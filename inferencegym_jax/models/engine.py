"""The pytrees of the open-loop engine: what an episode carries and what a task sets. Imports nothing of the package.

``models.EnvState`` and ``models.EnvParams`` hold one of each, so that all tasks, closed-loop and open-loop, have one
structure. The closed-loop tasks carry zeros and never touch them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Scalar: TypeAlias = Any  # a Python number, a NumPy or JAX scalar, or a traced array of any batch shape

TRAFFIC_OF_TASK, TRAFFIC_FITTED, TRAFFIC_DAY, TRAFFIC_TRACE = (
    0,
    1,
    2,
    3,
)  # EngineParams.traffic: where requests come from
TIME_SCALES = 3  # of the load's modulation
KINDS = 4  # of requests that a day's traffic may mix
HOURS = 24
LEVELS = 13  # nodes of a rate's distribution: at -3, -2.5, ... 3 deviations of a normal
CLASSES = 3  # interactive, batch, best effort
DRAFTS = 5  # lengths of drafts: 0, 1, 2, 4, 8
PHASES = 4  # that a running request passes on its way to its last token
LINE_SECONDS = 32  # seconds for which the line remembers how many came
DRAWN = -1  # EngineParams.table: the task is drawn anew for each episode (``tasks/draws.py``)
PREFILL_GPU, REPLICA = 0, 1  # what EngineParams.second_gpu makes of a second GPU
INFINITE = float("inf")
SHORT_OUTPUTS = (1, 2, 3, 4, 7, 11, 18, 30)
"""Tokens up to which outputs are short, in parts: (1), (2), (3), (4), 5 to 7, ... A first token alone has no gap."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EngineState:
    """What a continuous-batching engine carries from one second to the next.

    ``running`` counts whole requests, as ``EnvState.queue`` does; the physics moves real numbers, whose ceilings those
    are. The step treats an episode's first second as an empty engine in the configuration that its first action asks
    for, whatever is in here. Classes: interactive, batch, best effort.
    """

    running: Scalar = 0  # int32, requests in the decode batch
    phases: Scalar = (0.0,) * PHASES  # float32[4], running requests by phase
    prompt: Scalar = 0.0  # float32, mean prompt of the running, tokens
    output: Scalar = 0.0  # float32, mean output of the running, tokens
    held: Scalar = 0.0  # float32, tokens that they hold in the KV pool
    had_ms: Scalar = 0.0  # float32, time that they have run, together, request-ms
    had_tokens: Scalar = 0.0  # float32, tokens that they got in it
    unjudged: Scalar = (0.0, 0.0, 0.0)  # float32[3], running requests whose first token was on time, by class
    waiting: Scalar = (0.0, 0.0, 0.0)  # float32[3], requests that wait, by class
    young: Scalar = (0.0, 0.0, 0.0)  # float32[3], of them those that are not late so far
    age_ms: Scalar = (0.0, 0.0, 0.0)  # float32[3], since the first of each line came
    waiting_prompt: Scalar = 0.0  # float32, their mean prompt, tokens
    waiting_output: Scalar = 0.0  # float32, their mean output, tokens
    arrived: Scalar = (0.0,) * LINE_SECONDS  # float32[32], requests that joined the line in the last 1, 2, ... seconds
    earlier_rate: Scalar = 0.0  # float32, requests/s before that, slow average
    preempted: Scalar = (0.0,) * PHASES  # float32[4], requests that wait to be recomputed, by the phase they were in
    preempted_tokens: Scalar = 0.0  # float32, mean tokens of each to recompute
    tier: Scalar = 0  # int32, weight format in force
    restart_s: Scalar = 0.0  # float32, seconds until the engine serves again
    second_gpu: Scalar = 0  # int32, 1: a second GPU is paid for
    start_s: Scalar = 0.0  # float32, seconds until it serves
    lease_s: Scalar = 0.0  # float32, seconds for which it must still be paid
    second_running: Scalar = 0.0  # float32, requests that run on it, as a replica

    @classmethod
    def empty(cls, shape: tuple[int, ...] = ()) -> EngineState:
        """An engine without requests: every field zero, float32 and int32 arrays of this batch shape."""

        def zeros(value: Any) -> jax.Array:
            kind = jnp.int32 if isinstance(value, int) else jnp.float32
            return jnp.zeros((*shape, *np.shape(value)), kind)

        return cls(*(zeros(f.default) for f in dataclasses.fields(cls)))

    def replace(self, **changes: Any) -> EngineState:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def _kinds(value: float, *shape: int) -> Any:
    """A tuple of (KINDS, *shape) numbers."""
    one: Any = value
    for size in (*reversed(shape), KINDS):
        one = (one,) * size
    return one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DayTraffic:
    """Traffic by kind and hour of the day (``traffic/days.py``); a kind that is not there has rate 0."""

    clock: Scalar = 1.0  # float32, seconds of the day that pass in a step
    windows: Scalar = 1  # int32, episodes into which a day is cut: seed s is window s mod windows of day s / windows
    noise_hours: Scalar = (1.0,) * TIME_SCALES  # float32[3], hours for which a level of the noise holds
    rate: Scalar = _kinds(0.0)  # float32[4], requests/s, mean over a day
    hours: Scalar = _kinds(1.0, HOURS)  # float32[4, 24], rate at the middle of an hour over the mean
    weights: Scalar = _kinds(0.0, TIME_SCALES)  # float32[4, 3], of the noise's time scales; squares add up to 1, or 0
    levels: Scalar = _kinds(1.0, LEVELS)  # float32[4, 13], rate over the hour's, at deviations of the noise
    gaps_scv: Scalar = _kinds(1.0)  # float32[4], squared coefficient of variation of the gaps between requests
    prompt_mean: Scalar = _kinds(1.0)  # float32[4], tokens
    prompt_cv: Scalar = _kinds(0.0)  # float32[4]
    output_mean: Scalar = _kinds(1.0)  # float32[4], tokens
    output_cv: Scalar = _kinds(0.0)  # float32[4]
    correlation: Scalar = _kinds(0.0)  # float32[4], between a request's prompt and its output
    prefix_share: Scalar = _kinds(0.0)  # float32[4], share of prompt tokens that the prefix cache holds
    of_class: Scalar = _kinds(0.0, CLASSES)  # float32[4, 3], 1 at the kind's class
    acceptance: Scalar = _kinds(1.0, DRAFTS)  # float32[4, 5], tokens a verification yields with 0, 1, 2, 4, 8 drafts

    def replace(self, **changes: Any) -> DayTraffic:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EngineParams:
    """The open-loop part of a task. All defaults for a closed-loop one."""

    open_loop: Scalar = 0  # int32, 1: ENVIRONMENT.md section 9; 0: the closed loop of section 5
    table: Scalar = 0  # int32, which engine of a stack of tables; DRAWN: the episode's seed says, with all else
    # the engine, from the table's profile
    overhead_ms: Scalar = 0.0  # float32, c: scheduler and sampler time of an iteration
    overhead_ms_per_sequence: Scalar = 0.0  # float32, c1: the same for each running request
    path_ms: Scalar = 0.0  # float32, h: ms of a request outside iterations; part of TTFT alone
    first_token_iterations: Scalar = 1.0  # float32, iterations after its own until a first token is seen
    token_budget: Scalar = 2048.0  # float32, tokens of one iteration: max_num_batched_tokens
    memory_gb: Scalar = 0.0  # float32, of one GPU
    draft_share: Scalar = 0.12  # float32, a draft step's share of an iteration
    acceptance_lengths: Scalar = (1.0,) * 5  # float32[5], tokens a verification yields with 0, 1, 2, 4, 8 drafts
    # switching; 0 is at once
    restart_s: Scalar = 30.0  # float32, seconds without service when the weight format changes
    start_s: Scalar = 30.0  # float32, seconds from asking for a second GPU until it serves
    lease_s: Scalar = 60.0  # float32, least seconds for which it is paid
    second_gpu: Scalar = PREFILL_GPU  # int32, PREFILL_GPU or REPLICA
    link_gb_s: Scalar = INFINITE  # float32, over which a prefill GPU hands keys and values on; infinite: at once
    # objectives and the line
    slo_tpot_ms: Scalar = (INFINITE,) * 3  # float32[3], objective on the time per output token, by class
    queue_capacity: Scalar = 512  # int32, requests that may wait; what does not fit is rejected
    # traffic
    arrival_scv: Scalar = 1.0  # float32, squared coefficient of variation of gaps within a second: 1 Poisson, 0 even
    prefix_share: Scalar = 0.0  # float32, share of prompt tokens that the prefix cache holds
    traffic: Scalar = TRAFFIC_OF_TASK  # int32, TRAFFIC_*
    rate: Scalar = 0.0  # float32, requests/s, long-run mean of the fitted traffic
    modulation: Scalar = (0.0,) * TIME_SCALES  # float32[3], standard deviation of the log rate at each time scale
    periods: Scalar = (1,) * TIME_SCALES  # int32[3], steps for which a level holds
    prompt_mean: Scalar = 0.0  # float32, tokens a request
    prompt_cv: Scalar = 0.0  # float32, coefficient of variation between requests
    output_mean: Scalar = 0.0  # float32, output tokens a request
    output_cv: Scalar = 0.0  # float32
    length_correlation: Scalar = 0.0  # float32, between a request's prompt and its output
    day: DayTraffic = DayTraffic()  # traffic by kind and hour, where ``traffic`` is TRAFFIC_DAY
    # what scores and rewards divide by, from calibration
    class_weights: Scalar = (1.0,) * 3  # float32[3], what a request of each class counts in the share on time
    demand_tps: Scalar = 1.0  # float32, output tokens asked in the mean second
    demand_rps: Scalar = 1.0  # float32, requests asked in the mean second
    static_gpus: Scalar = 1.0  # float32, GPUs that the best static action pays for

    def replace(self, **changes: Any) -> EngineParams:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
