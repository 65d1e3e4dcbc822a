"""What a fleet's network reads: the fleet's observation in units of capacity and of the objectives.

``FleetObservation -> fleet_numbers -> float32[FLEET_SIZE]``. Loads are GPUs, and shares of those that serve; latencies
stand over their objectives; requests are counted by serving GPU. Nothing in it is a model's, a GPU's or a pool's own.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from inferencegym_jax.fleet.action import GPUS
from inferencegym_jax.fleet.observation import FleetObservation

MOST_RATIO = 16.0  # of a latency to its objective
MOST_BUSY = 4.0  # load over the GPUs that serve
FLEET_FIELDS = (
    "load",
    "load_15s",
    "load_2min",
    "load_10min",
    "prompt_share",
    "busy_15s",
    "busy_2min",
    "queue_by_gpu",
    "running_by_gpu",
    "kv_use",
    "late",
    "ttft_over_objective",
    "tpot_over_objective",
    "bare_ttft_over_objective",
    "bare_tpot_over_objective",
    "asked",
    "serving",
    "starting",
    "draining",
    "start_left",
    "lease_left",
    "start",
    "clock",
    "hour_sine",
    "hour_cosine",
)
"""What the numbers are, in order."""
FLEET_SIZE = len(FLEET_FIELDS)


def _log(value: jax.Array, full: float) -> jax.Array:
    """0 to ``full`` and up as 0 to 1, steep at 0."""
    return jnp.log1p(jnp.clip(value, 0.0, full)) / math.log1p(full)


def fleet_numbers(seen: FleetObservation) -> jax.Array:
    """float32[..., FLEET_SIZE] in the order of ``FLEET_FIELDS``, each from -1 to 1.

    Args:
        seen: of one fleet or a batch of them.
    """
    quick = seen.prompt_load_15s + seen.output_load_15s
    middle = seen.prompt_load_2min + seen.output_load_2min
    slow = seen.prompt_load_10min + seen.output_load_10min
    serving = jnp.maximum(jnp.asarray(seen.serving, jnp.float32), 1.0)
    angle = jnp.asarray(seen.hour, jnp.float32) * (2.0 * math.pi / 24.0)
    values = {
        "load": jnp.minimum(seen.load / GPUS, 1.0),
        "load_15s": jnp.minimum(quick / GPUS, 1.0),
        "load_2min": jnp.minimum(middle / GPUS, 1.0),
        "load_10min": jnp.minimum(slow / GPUS, 1.0),
        "prompt_share": seen.prompt_load_2min / jnp.maximum(middle, 1e-6),
        "busy_15s": jnp.minimum(quick / serving, MOST_BUSY) / MOST_BUSY,
        "busy_2min": jnp.minimum(middle / serving, MOST_BUSY) / MOST_BUSY,
        "queue_by_gpu": _log(seen.queue / serving, 256.0),
        "running_by_gpu": _log(seen.running / serving, 256.0),
        "kv_use": seen.kv_use,
        "late": _log(100.0 * (1.0 - jnp.asarray(seen.on_time_share)), 100.0),
        "ttft_over_objective": _log(seen.ttft, MOST_RATIO),
        "tpot_over_objective": _log(seen.tpot, MOST_RATIO),
        "bare_ttft_over_objective": _log(seen.bare_ttft, MOST_RATIO),
        "bare_tpot_over_objective": _log(seen.bare_tpot, MOST_RATIO),
        "asked": seen.asked / GPUS,
        "serving": seen.serving / GPUS,
        "starting": seen.starting / GPUS,
        "draining": seen.draining / GPUS,
        "start_left": jnp.minimum(seen.start_left_s / 100.0, 1.0),
        "lease_left": jnp.minimum(seen.lease_left_s / 100.0, 1.0),
        "start": jnp.minimum(seen.start_s / 100.0, 1.0),
        "clock": jnp.minimum(jnp.log10(jnp.maximum(seen.clock, 1.0)) / 2.0, 1.0),
        "hour_sine": jnp.sin(angle),
        "hour_cosine": jnp.cos(angle),
    }
    return jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(values[name], jnp.float32) for name in FLEET_FIELDS)), axis=-1)
