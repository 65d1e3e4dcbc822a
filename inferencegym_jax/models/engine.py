"""The pytrees of the open-loop engine: what an episode carries and what a task sets. Imports nothing of the package.

``models.EnvState`` and ``models.EnvParams`` hold one of each, so that all tasks, closed-loop and open-loop, have one
structure. The closed-loop tasks carry zeros and never touch them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

Scalar: TypeAlias = Any  # a Python number, a NumPy or JAX scalar, or a traced array of any batch shape

TRAFFIC_OF_TASK, TRAFFIC_FITTED, TRAFFIC_TRACE = 0, 1, 2  # where EngineParams.traffic says that requests come from
TIME_SCALES = 3  # of the load's modulation


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EngineState:
    """What a continuous-batching engine carries from one second to the next.

    Requests are counted whole (``running`` here, ``queue`` in ``EnvState``); the physics moves the real numbers, whose
    ceilings those are. The step treats an episode's first second as an empty engine, whatever is in here.
    """

    running: Scalar = 0  # int32, requests in the decode batch
    concurrency: Scalar = 0.0  # float32, the same as a real number
    owed: Scalar = 0.0  # float32, output tokens that the running requests still owe
    running_prompt: Scalar = 0.0  # float32, their mean prompt, tokens
    waiting: Scalar = 0.0  # float32, requests waiting as a real number
    waiting_prompt: Scalar = 0.0  # float32, their mean prompt, tokens
    waiting_output: Scalar = 0.0  # float32, their mean output, tokens

    def replace(self, **changes: Any) -> EngineState:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EngineParams:
    """The open-loop part of a task. All zeros for a closed-loop one."""

    open_loop: Scalar = 0  # int32, 1: ENVIRONMENT.md section 9; 0: the closed loop of section 5
    overhead_ms: Scalar = 0.0  # float32, scheduler and sampler time of an iteration, from the table's metadata
    token_budget: Scalar = 2048.0  # float32, tokens of one iteration: max_num_batched_tokens
    arrival_scv: Scalar = 1.0  # float32, squared coefficient of variation of gaps within a second: 1 Poisson, 0 even
    queue_capacity: Scalar = 512  # int32, requests that may wait; what does not fit is rejected
    slo_tpot_ms: Scalar = float("inf")  # float32, objective on the time per output token; for the grader
    traffic: Scalar = TRAFFIC_OF_TASK  # int32, TRAFFIC_*
    rate: Scalar = 0.0  # float32, requests/s, long-run mean of the fitted traffic
    modulation: Scalar = (0.0,) * TIME_SCALES  # float32[3], standard deviation of the log rate at each time scale
    periods: Scalar = (1,) * TIME_SCALES  # int32[3], steps for which a level holds
    prompt_mean: Scalar = 0.0  # float32, tokens a request of the fitted traffic
    prompt_cv: Scalar = 0.0  # float32, its coefficient of variation
    output_mean: Scalar = 0.0  # float32, output tokens a request
    output_cv: Scalar = 0.0  # float32

    def replace(self, **changes: Any) -> EngineParams:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
