"""A fleet task as data, and as numbers: ``data/fleets.json -> FleetSpec -> FleetParams``.

The engine and its traffic are a ``TaskSpec``'s, so what a task checks is checked here too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from inferencegym_jax.fleet.action import FLEET_KNOBS, GPUS
from inferencegym_jax.fleet.state import DECISION_S, FleetParams
from inferencegym_jax.models import KINDS, LEVELS, QUEUE_CAPACITY, SHORT_OUTPUTS, EngineParams, finite_number, shown
from inferencegym_jax.physics.capacity import work_within
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.table import LatencyTable, TableError
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.tasks import TaskSpec, engine_params
from inferencegym_jax.traffic.request_log import RequestLog

DAY_S = 86400
SWING_HOURS = 0.25  # noise of a pool that is faster is a swing of minutes, for which SWINGS stand
SWINGS: dict[str, tuple[float, ...]] = {"periods": (450, 40, 2), "sigma": (0.187, 0.0978, 0.1485)}
"""Swings of the rate within minutes, of task 4: fitted to AzureLLMInferenceTrace_conv.csv (Azure Public Dataset)."""
LATE_PRICE = 10.0
NUMBERS: dict[str, tuple[float, float]] = {
    "slo_ttft_ms": (1.0, 1e6),
    "slo_tpot_ms": (1.0, 1e6),
    "clock": (0.01, 3600.0),
    "start_s": (0.0, 600.0),
    "lease_s": (0.0, 3600.0),
    "role_s": (0.0, 600.0),
    "failures": (0.0, 100.0),
    "busiest": (0.0, float(GPUS)),
    "kv_budget": (0.1, 1.0),
    "late_price": (0.0, 1e4),
    "prompt_scale": (0.1, 10.0),
    "output_scale": (0.1, 10.0),
}
"""Numbers of a fleet task and their ranges."""


@dataclass(frozen=True, kw_only=True)
class FleetSpec:
    """One fleet task. Raises ``ValueError`` where a field is out of range; the message names it.

    Attributes:
        name, id, title, difficulty, description: as of ``TaskSpec``.
        pool: of ``data/traffic_pools.json``, whose days come.
        slo_ttft_ms, slo_tpot_ms: objectives on the time to first token and per output token, ms.
        gpus: that the fleet has, 1 to 8.
        clock: seconds of the day that pass in a second.
        start_s, lease_s, role_s: seconds from asking until a GPU serves; for which it is paid at least; without service
            when it goes from prompts to decoding.
        failures: of a serving GPU, an hour.
        busiest: GPUs that are busy in each day's busiest quarter of an hour, without the swings of minutes; 0:
            the pool as it is. The shipped tasks' is such that seven GPUs keep 99 % on time.
        prompt_scale, output_scale: times the pool's mean prompts and outputs.
        windows_a_day: episodes into which a day is cut; 1: an episode is a day of the clock.
        quant_tier: weight format, 0 to 2.
        kv_budget: share of the KV pool up to which new requests enter.
        late_price: of a late request in the reward, in mean requests' GPU time.
        active_knobs: those left to the agent.
    """

    name: str
    id: int
    title: str = ""
    difficulty: str = "custom"
    description: str = ""
    pool: str = "azure-day"
    slo_ttft_ms: float = 1000.0
    slo_tpot_ms: float = 50.0
    gpus: int = GPUS
    clock: float = 12.0
    start_s: float = 30.0
    lease_s: float = 60.0
    role_s: float = 5.0
    failures: float = 0.0
    busiest: float = 3.6
    prompt_scale: float = 1.0
    output_scale: float = 1.0
    windows_a_day: int = 1
    quant_tier: int = 0
    kv_budget: float = 1.0
    late_price: float = LATE_PRICE
    active_knobs: tuple[str, ...] = ("gpus", "batch_size", "spec_length")

    def __post_init__(self) -> None:
        object.__setattr__(self, "active_knobs", tuple(self.active_knobs))
        for name, (low, high) in NUMBERS.items():
            value = finite_number(getattr(self, name))
            if value is None or not low <= value <= high:
                text = shown(getattr(self, name))
                raise ValueError(f"fleet {self.name!r}: {name} = {text}: must be a number from {low:g} to {high:g}")
        for name, low, high in (("gpus", 1, GPUS), ("quant_tier", 0, 2), ("windows_a_day", 1, 96)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(
                    f"fleet {self.name!r}: {name} = {shown(value)}: must be a whole number from {low} to {high}"
                )
        if self.busiest > self.gpus:
            raise ValueError(
                f"fleet {self.name!r}: busiest = {self.busiest:g}: is more than gpus = {self.gpus} have; at most that"
            )
        unknown = [knob for knob in self.active_knobs if knob not in FLEET_KNOBS]
        if unknown:
            raise ValueError(
                f"fleet {self.name!r}: active_knobs: {unknown[0]!r} is unknown; there are {', '.join(FLEET_KNOBS)}"
            )
        _ = self.task  # checks the rest

    @functools.cached_property
    def task(self) -> TaskSpec:
        """One engine under a share of the fleet's traffic, as a task."""
        return TaskSpec(
            name=self.name,
            id=self.id,
            title=self.title,
            difficulty=self.difficulty,
            description=self.description,
            arrivals={"rate": 10.0},
            prompts={"kind": "lognormal", "log_mean": 6.2, "log_sigma": 0.9, "low": 32, "high": 8192},
            slo_ttft_ms=(self.slo_ttft_ms,),
            slo_tpot_ms=float(self.slo_tpot_ms),
            dynamics="open_loop",
            traffic={"pool": self.pool, "clock": float(self.clock), "windows_a_day": self.windows_a_day},
            switching={"start_s": self.start_s, "lease_s": self.lease_s},
        )

    @property
    def decisions(self) -> int:
        """Of an episode, which is a day of the clock, or a window of it."""
        return max(1, round(DAY_S / self.clock / self.windows_a_day / DECISION_S))

    def replace(self, **changes: Any) -> FleetSpec:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@functools.cache
def fleet_specs() -> dict[str, FleetSpec]:
    """The fleet tasks that ship, by name."""
    entries: Mapping[str, Any] = json.loads(data_path("fleets.json").read_text())
    return {name: FleetSpec(name=name, **entry) for name, entry in entries.items()}


def get_fleet(task: int | str | FleetSpec) -> FleetSpec:
    """The fleet task of a name or an id; a ``FleetSpec`` is returned as it is.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if isinstance(task, FleetSpec):
        return task
    for spec in fleet_specs().values():
        if task == spec.name or (not isinstance(task, bool | str) and task == spec.id):
            return spec
    raise ValueError(f"fleet = {shown(task)}: no such fleet task; there are {', '.join(fleet_specs())}")


def fleet_params(spec: FleetSpec, table: LatencyTable, trace: RequestLog | None = None) -> FleetParams:
    """A fleet task on one engine's table as numbers.

    Args:
        spec: the task.
        table: of one engine.
        trace: a request log that is replayed in place of the pool's days; an episode is then as long as the log.

    Raises:
        TableError: the table says too little of an engine, its weights do not fit, or the KV pool does not hold one
            mean request.
    """
    grid = iterations_of(table)
    engine = _with_swings(engine_params(spec.task, table, "open_loop", trace), spec, trace)
    prompt = float(engine.prompt_mean) * spec.prompt_scale if trace is None else trace.mean_prompt
    output = float(engine.output_mean) * spec.output_scale if trace is None else trace.mean_output
    engine = engine.replace(
        prompt_mean=np.float32(prompt),
        output_mean=np.float32(output),
        queue_capacity=np.int32(QUEUE_CAPACITY * spec.gpus),
    )
    room = grid.profile.pool_tokens(spec.quant_tier, float(engine.memory_gb))
    if room < prompt + output:
        raise TableError(
            f"KV pool of {room:.0f} tokens: does not hold one mean request of {prompt:.0f} prompt and {output:.0f} "
            "output tokens; more memory, a smaller weight format or shorter requests would"
        )
    with jax.ensure_compile_time_eval():
        work = work_within(
            grid, engine, np.float32(prompt), np.float32(output), np.float32(spec.slo_tpot_ms), spec.quant_tier
        )
    length = spec.decisions if trace is None else max(1, -(-trace.seconds // DECISION_S))
    return FleetParams(
        task_id=np.int32(spec.id),
        episode_length=np.int32(length),
        engine=engine,
        slo_ttft_ms=np.full(3, spec.slo_ttft_ms, np.float32),
        class_shares=np.asarray((1.0, 0.0, 0.0), np.float32),
        gpus=np.int32(spec.gpus),
        active=np.asarray([name in spec.active_knobs for name in FLEET_KNOBS]),
        quant_tier=np.int32(spec.quant_tier),
        kv_budget=np.float32(spec.kv_budget),
        start_s=np.float32(spec.start_s),
        lease_s=np.float32(spec.lease_s),
        role_s=np.float32(spec.role_s),
        failures=np.float32(spec.failures),
        busiest=np.float32(0.0 if trace is not None else spec.busiest),
        short_outputs=_short_outputs(engine, trace),
        prompt_gpus=np.float32(float(work.prompt_ms) / prompt / 1000.0),
        output_gpus=np.float32(float(work.decode_ms) / output / 1000.0),
        bare_ttft=np.float32(float(work.bare_prompt_ms) / spec.slo_ttft_ms),
        bare_tpot=np.float32(float(work.bare_tpot_ms) / spec.slo_tpot_ms),
        work_s=np.float32(float(work.ms) / 1000.0),
        late_price=np.float32(spec.late_price),
    )


def _with_swings(engine: EngineParams, spec: FleetSpec, trace: RequestLog | None) -> EngineParams:
    """Days with ``SWINGS`` in place of a pool's noise within minutes; a log has its own."""
    if trace is not None:
        return engine
    # counts are overdispersed by the gaps' CV itself: its square mixes swings of minutes into the seconds
    day = engine.day.replace(
        gaps_scv=np.sqrt(np.asarray(engine.day.gaps_scv, np.float32)),
        prompt_mean=np.asarray(engine.day.prompt_mean, np.float32) * np.float32(spec.prompt_scale),
        output_mean=np.asarray(engine.day.output_mean, np.float32) * np.float32(spec.output_scale),
    )
    if max(np.asarray(day.noise_hours)) < SWING_HOURS:
        flat = np.ones((*np.shape(day.levels)[:-1], LEVELS), np.float32)
        day = day.replace(weights=np.zeros_like(day.weights), levels=flat)
    return engine.replace(
        day=day,
        modulation=np.asarray(SWINGS["sigma"], np.float32),
        periods=np.asarray(SWINGS["periods"], np.int32),
    )


def _short_outputs(engine: EngineParams, trace: RequestLog | None) -> np.ndarray:
    """float32[KINDS, len(SHORT_OUTPUTS)]: shares of each kind's requests that have so few tokens, of lognormal outputs
    rounded to whole tokens; of a log its own, in every row."""
    if trace is not None:
        return np.tile(np.asarray(trace.short_outputs, np.float32), (KINDS, 1))
    day = engine.day
    means, cvs = np.asarray(day.output_mean, np.float64), np.asarray(day.output_cv, np.float64)
    variance = np.maximum(np.log1p(cvs**2), 1e-6)[:, None]
    edges = np.log(np.asarray(SHORT_OUTPUTS, np.float64) + 0.5)
    z = (edges - np.log(means)[:, None] + 0.5 * variance) / np.sqrt(variance)
    below = 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))
    return np.diff(below, axis=1, prepend=0.0).astype(np.float32)
