"""What the agent of a fleet sees: range, unit and meaning of each field, written once in ``FLEET_OBSERVATION``.

Loads are in GPUs: tokens a second times the time that one GPU, which keeps the time per output token within the task's
objective, takes for each (``physics.capacity``). A policy that reads them needs to know neither model nor GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from inferencegym_jax.fleet.action import GPUS
from inferencegym_jax.models import LONGEST_EPISODE, ObservationField, Scalar, plain

AVERAGES_S = (15.0, 120.0, 600.0)  # time constants of the averages of the load
MOST_LOAD = 64.0
MOST_REQUESTS = 16384.0


def _load(what: str, over: str) -> ObservationField:
    return ObservationField(
        low=0,
        high=MOST_LOAD,
        unit_at=GPUS,
        unit="GPUs",
        digits=2,
        description=f"{what} tokens/s {over}, as GPUs that are busy with them",
    )


def _requests(description: str, full: float) -> ObservationField:
    return ObservationField(
        low=0, high=MOST_REQUESTS, unit_at=full, unit="requests", scale="log", description=description
    )


def _ratio(description: str) -> ObservationField:
    return ObservationField(low=0, high=100, unit_at=4, unit="share", digits=2, description=description)


def _gpus(description: str) -> ObservationField:
    return ObservationField(low=0, high=GPUS, unit="GPUs", description=description)


def _seconds(description: str) -> ObservationField:
    return ObservationField(low=0, high=600, unit_at=120, unit="s", description=description)


FLEET_OBSERVATION: dict[str, ObservationField] = {
    "prompt_load": _load("prompt", "in the last decision"),
    "output_load": _load("output", "asked for in the last decision"),
    "prompt_load_15s": _load("prompt", "averaged over 15 s"),
    "output_load_15s": _load("output", "averaged over 15 s"),
    "prompt_load_2min": _load("prompt", "averaged over 120 s"),
    "output_load_2min": _load("output", "averaged over 120 s"),
    "prompt_load_10min": _load("prompt", "averaged over 10 min"),
    "output_load_10min": _load("output", "averaged over 10 min"),
    "running": _requests("requests that run, on all GPUs", GPUS * 128),
    "queue": _requests("requests that wait, at all GPUs", GPUS * 128),
    "kv_use": ObservationField(low=0, high=1, unit="share", digits=2, description="share of the KV pools in use"),
    "on_time_share": ObservationField(
        low=0, high=1, unit="share", digits=3, description="of the requests judged in the last decision; 1 of none"
    ),
    "ttft": _ratio("mean time to first token over its objective"),
    "tpot": _ratio("time per output token over its objective"),
    "bare_ttft": _ratio("time to first token of a mean prompt on an idle GPU over its objective"),
    "bare_tpot": _ratio("time per output token of a single request over its objective"),
    "asked": _gpus("GPUs asked for"),
    "serving": _gpus("GPUs that take new requests, those for prompts among them"),
    "starting": _gpus("GPUs asked for that do not serve yet"),
    "draining": _gpus("GPUs given back that are still paid for"),
    "start_left_s": _seconds("until all that were asked for serve"),
    "lease_left_s": _seconds("for which the last GPU asked for must still be paid"),
    "start_s": _seconds("from asking for a GPU until it serves"),
    "clock": ObservationField(
        low=0, high=86400, unit_at=60, unit="s", scale="log", description="seconds of the day that pass in a second"
    ),
    "hour": ObservationField(low=0, high=24, unit="h", digits=1, description="of the day"),
    "timestep": ObservationField(
        low=0, high=LONGEST_EPISODE, unit_at=17280, unit="decisions", description="decisions taken in this episode"
    ),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetObservation:
    """What the agent sees, in natural units; each float32. Ranges: ``FLEET_OBSERVATION``."""

    prompt_load: Scalar
    output_load: Scalar
    prompt_load_15s: Scalar
    output_load_15s: Scalar
    prompt_load_2min: Scalar
    output_load_2min: Scalar
    prompt_load_10min: Scalar
    output_load_10min: Scalar
    running: Scalar
    queue: Scalar
    kv_use: Scalar
    on_time_share: Scalar
    ttft: Scalar
    tpot: Scalar
    bare_ttft: Scalar
    bare_tpot: Scalar
    asked: Scalar
    serving: Scalar
    starting: Scalar
    draining: Scalar
    start_left_s: Scalar
    lease_left_s: Scalar
    start_s: Scalar
    clock: Scalar
    hour: Scalar
    timestep: Scalar

    @property
    def load(self) -> jax.Array:
        """Prompt and output load of the last decision, GPUs."""
        return self.prompt_load + self.output_load

    def to_array(self) -> jax.Array:
        """Flatten to float32[..., fields] in field order."""
        values = [jnp.asarray(getattr(self, name), jnp.float32) for name in FLEET_OBSERVATION]
        return jnp.stack(values, axis=-1)

    def to_unit(self) -> jax.Array:
        """float32[..., fields], each from 0 to 1: over its full value, logarithmic where the field says so."""
        columns = []
        for name, spec in FLEET_OBSERVATION.items():
            value = jnp.asarray(getattr(self, name), jnp.float32)
            if spec.scale == "log":
                share = jnp.log1p(value) / jnp.log1p(jnp.float32(spec.full))
            else:
                share = (value - spec.low) / jnp.float32(spec.full - spec.low)
            columns.append(jnp.clip(share, 0.0, 1.0))
        return jnp.stack(columns, axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """The observation of one fleet as plain Python numbers (JSON-ready)."""
        return plain(self)


def clipped(values: dict[str, jax.Array]) -> FleetObservation:
    """The observation of these values, each clipped to its field's range; float32."""
    fields = {}
    for name, spec in FLEET_OBSERVATION.items():
        fields[name] = jnp.clip(jnp.asarray(values[name], jnp.float32), spec.low, spec.high)
    return FleetObservation(**fields)
