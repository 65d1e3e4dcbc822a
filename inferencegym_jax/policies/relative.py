"""The observation in units of the task's own objectives and capacity, so that one network reads any task.

``observation, Engine, Seen -> relative -> float32[RELATIVE_SIZE], Seen``; ``acted`` keeps what was asked for. Loads are
shares of one GPU's capacity, waits seconds of it, latencies stand over their objectives; beside them what the task is:
bare latencies over the objectives, start-up delay, what drafts yield, which knobs are free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import Scalar, ServeAction, ServeObservation
from inferencegym_jax.policies.engine_units import Engine

AVERAGES_S = (15.0, 120.0)  # spans of the load's moving averages
MOST_LOAD = 4.0  # GPUs
MOST_RATIO = 16.0  # of a latency to its objective
FIELDS = (
    "load",
    "load_15s",
    "load_120s",
    "waiting_s",
    "kv_cache_occupancy",
    "running_over_slots",
    "ttft_over_objective",
    "tpot_over_objective",
    "slo_violation_rate",
    "second_gpu",
    "second_gpu_for",
    "drafts",
    "bare_ttft_over_objective",
    "bare_tpot_over_objective",
    "slots",
    "pool_over_slots",
    "start",
    "clock",
    "may_lease",
    "may_draft",
    "accepted_with_one",
    "accepted_with_four",
)
"""What the numbers are, in order; each about 0 to 1, none above 2.5."""
RELATIVE_SIZE = len(FIELDS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """What is remembered of the seconds before; float32, of one environment."""

    seconds: Scalar  # observations seen
    fast: Scalar  # load over 15 s
    slow: Scalar  # over 120 s
    second_gpu: Scalar  # 1 where it was asked for last
    second_gpu_s: Scalar  # seconds since that changed
    drafts: Scalar  # asked for last

    @classmethod
    def start(cls) -> Seen:
        """Before an episode's first second."""
        return cls(*(np.float32(0.0),) * 6)


def _log(ratio: jax.Array) -> jax.Array:
    """A ratio of 0 to 16 and up as 0 to 1, 0.24 at 1."""
    return jnp.log1p(jnp.clip(ratio, 0.0, MOST_RATIO)) / math.log1p(MOST_RATIO)


def relative(engine: Engine, observation: ServeObservation, seen: Seen) -> tuple[jax.Array, Seen]:
    """One second's numbers.

    Args:
        engine: GPU, traffic and objectives of the task.
        observation: of one environment.
        seen: of the seconds before.

    Returns:
        (float32[RELATIVE_SIZE] in the order of ``FIELDS``, what is remembered with this second in it).
    """
    load = jnp.clip(engine.load(observation), 0.0, MOST_LOAD)
    seconds = seen.seconds + 1.0
    fast, slow = (
        before + jnp.maximum(1.0 / span, 1.0 / seconds) * (load - before)
        for before, span in zip((seen.fast, seen.slow), AVERAGES_S, strict=True)
    )
    slots = engine.slots(observation)
    ttft, tpot = engine.ttft_objective_ms(observation), engine.tpot_objective_ms(observation)
    acceptance = jnp.asarray(engine.acceptance)
    requests_in_pool = engine.pool / (observation.mean_prompt_len + 0.5 * engine.output)
    values = {
        "load": load / 2.0,
        "load_15s": fast / 2.0,
        "load_120s": slow / 2.0,
        "waiting_s": _log(observation.queue_depth * engine.work(observation) / 1000.0),
        "kv_cache_occupancy": observation.kv_cache_occupancy,
        "running_over_slots": _log(engine.running(observation) / slots),
        "ttft_over_objective": _log(observation.ttft_p50 / ttft),
        "tpot_over_objective": _log(observation.tpot_p50 / tpot),
        "slo_violation_rate": observation.slo_violation_rate,
        "second_gpu": seen.second_gpu,
        "second_gpu_for": _log(seen.second_gpu_s / 60.0),
        "drafts": jnp.log2(1.0 + seen.drafts) / 3.2,
        "bare_ttft_over_objective": _log(jnp.asarray(engine.prompt_ms) / ttft),
        "bare_tpot_over_objective": _log(jnp.asarray(engine.tpot_ms)[..., 0] / tpot),
        "slots": jnp.log2(slots) / 9.0,
        "pool_over_slots": _log(requests_in_pool / slots),
        "start": jnp.asarray(engine.start_s) / 100.0,
        "clock": jnp.log10(jnp.maximum(jnp.asarray(engine.clock), 1.0)) / 2.0,
        "may_lease": jnp.asarray(engine.may_lease),
        "may_draft": jnp.asarray(engine.may_draft),
        "accepted_with_one": acceptance[..., 1] - 1.0,
        "accepted_with_four": (acceptance[..., 3] - 1.0) / 2.0,
    }
    numbers = jnp.stack([jnp.asarray(values[name], jnp.float32) for name in FIELDS], axis=-1)
    return numbers, Seen(seconds, fast, slow, seen.second_gpu, seen.second_gpu_s, seen.drafts)


def acted(seen: Seen, action: ServeAction) -> Seen:
    """What is remembered once an action has been asked for."""
    wanted = jnp.asarray(action.prefill_disagg, jnp.float32)
    same = wanted == seen.second_gpu
    return Seen(
        seen.seconds,
        seen.fast,
        seen.slow,
        wanted,
        jnp.where(same, seen.second_gpu_s + 1.0, 0.0),
        jnp.asarray(action.spec_length, jnp.float32),
    )
