"""What the agent sets, what the simulator answers, and the ranges of both.

First room of the data flow: everything else imports from here; this module imports only the engine's pytrees.
The range, unit and meaning of every knob and of every observation field are written once, in ``KNOBS`` and
``OBSERVATION``; action spaces, the HTTP schemas, the command line's help and the docs read them from here.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from inferencegym_jax.engine_models import EngineParams, EngineState, Scalar


class QuantTier(enum.IntEnum):
    """Weight format of the target model."""

    FP16 = 0
    INT8 = 1
    INT4 = 2


class Phase(enum.IntEnum):
    """Where an episode stands in its burst calendar."""

    WARMUP = 0
    STEADY = 1
    BURST = 2
    COOLDOWN = 3


@dataclass(frozen=True)
class Knob:
    """One field of an action: its kind, allowed values, default and meaning."""

    kind: str  # "float", "int", "choice" or "bool"
    default: float | int | bool
    description: str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[int, ...] = ()

    @property
    def allowed(self) -> str:
        """The allowed values in words, for error messages and help texts."""
        if self.kind == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        if self.kind == "bool":
            return "true or false"
        return f"{'a whole number' if self.kind == 'int' else 'a number'} from {self.low:g} to {self.high:g}"


KNOBS: dict[str, Knob] = {
    "kv_budget": Knob(
        "float", 1.0, "share of the running batch's KV cache kept resident; the rest is evicted", 0.1, 1.0
    ),
    "spec_length": Knob("choice", 0, "speculative draft tokens; 0 is off", choices=(0, 1, 2, 4, 8)),
    "batch_size": Knob("int", 32, "most requests running at once", 1, 512),
    "prefill_disagg": Knob("bool", False, "prefill runs on a second GPU"),
    "quant_tier": Knob("choice", 0, "weight format: 0 FP16, 1 INT8, 2 INT4", choices=(0, 1, 2)),
}


@dataclass(frozen=True)
class ObservationField:
    """One field of an observation: range, unit and meaning."""

    low: float
    high: float
    unit: str
    description: str
    size: int = 1


EPISODE_LENGTH = 200
SEEDS = 2**32  # episodes of a task: seeds are 0 to SEEDS - 1
QUEUE_CAPACITY = 512

OBSERVATION: dict[str, ObservationField] = {
    "queue_depth": ObservationField(0, QUEUE_CAPACITY, "requests", "requests left waiting after this step's service"),
    "mean_prompt_len": ObservationField(32, 8192, "tokens", "mean prompt length of this step's requests"),
    "arrival_rate": ObservationField(0, 400, "requests/s", "10-step exponential moving average of the arrivals"),
    "kv_cache_occupancy": ObservationField(0, 1, "share", "share of the available KV cache in use"),
    "ttft_p50": ObservationField(0, 5000, "ms", "median time to first token, clipped"),
    "tpot_p50": ObservationField(0, 500, "ms", "median time per output token, clipped"),
    "slo_violation_rate": ObservationField(0, 1, "share", "violations / max(queue_depth, 1), clipped"),
    "gpu_memory_used_gb": ObservationField(0, 80, "GB", "GPU memory in use (1 GB = 1e9 bytes)"),
    "spec_accept_rate": ObservationField(0, 1, "share", "accepted share of the drafted tokens; 0 when drafts are off"),
    "priority_distribution": ObservationField(
        0, 1, "share", "interactive, batch, best-effort shares of the last 50 steps' arrivals", 3
    ),
    "timestep": ObservationField(0, EPISODE_LENGTH, "s", "steps taken in this episode"),
    "cost_so_far": ObservationField(0, math.inf, "cost", "sum of cost_per_1k over the episode"),
}
FLAT_OBSERVATION_SIZE = sum(f.size for f in OBSERVATION.values())  # 14


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ServeAction:
    """The five knobs. Defaults are the baseline agent's action ("naive vLLM defaults"). Fields may be batched."""

    kv_budget: Scalar = KNOBS["kv_budget"].default
    spec_length: Scalar = KNOBS["spec_length"].default
    batch_size: Scalar = KNOBS["batch_size"].default
    prefill_disagg: Scalar = KNOBS["prefill_disagg"].default
    quant_tier: Scalar = KNOBS["quant_tier"].default

    def replace(self, **changes: Any) -> ServeAction:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_arrays(self) -> ServeAction:
        """The same action as float32, int32 and bool arrays, so that every caller compiles to one signature."""
        return ServeAction(
            kv_budget=jnp.asarray(self.kv_budget, jnp.float32),
            spec_length=jnp.asarray(self.spec_length, jnp.int32),
            batch_size=jnp.asarray(self.batch_size, jnp.int32),
            prefill_disagg=jnp.asarray(self.prefill_disagg, jnp.bool_),
            quant_tier=jnp.asarray(self.quant_tier, jnp.int32),
        )

    def to_dict(self) -> dict[str, float | int | bool]:
        """The action of one environment as plain Python numbers (JSON-ready).

        The budget is the float32 that the simulator uses, printed with the fewest digits that name it.
        """
        return {
            "kv_budget": float(str(np.float32(self.kv_budget))),
            "spec_length": int(self.spec_length),
            "batch_size": int(self.batch_size),
            "prefill_disagg": bool(self.prefill_disagg),
            "quant_tier": int(self.quant_tier),
        }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MetricsSnapshot:
    """What one second of serving measured. Scalars for one environment, batched under vmap."""

    ttft_p50_ms: Scalar  # float32, ms
    ttft_p99_ms: Scalar  # float32, ms
    tpot_ms: Scalar  # float32, ms
    tokens_per_sec: Scalar  # float32, output tokens/s
    gpu_memory_gb: Scalar  # float32, GB, capped at 40
    cost_per_1k: Scalar  # float32, cost per 1,000 output tokens
    spec_accept_rate: Scalar  # float32, share
    eviction_events: Scalar  # int32
    slo_violations: Scalar  # int32, requests


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WorkloadState:
    """The traffic of one second. ``arrivals``, ``served`` and ``rejected`` account for every request of the step."""

    arrival_rate: Scalar  # float32, requests/s, 10-step exponential moving average
    mean_prompt_len: Scalar  # float32, tokens
    prompt_len_bucket: Scalar  # int32, 0 to 7
    queue_depth: Scalar  # int32, requests left waiting after service
    priority_distribution: Scalar  # float32[3], shares: interactive, batch, best effort
    is_burst: Scalar  # bool
    phase: Scalar  # int32, a Phase
    arrivals: Scalar  # int32, requests that arrived in this step
    served: Scalar  # int32, requests taken from the queue in this step
    rejected: Scalar  # int32, requests turned away because the queue was full, or lost when memory ran out
    running: Scalar = 0  # int32, open loop: requests in the decode batch after the step; there `served` has finished


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RequestOutcome:
    """What became of requests in one second of an open-loop task, by class: interactive, batch, best effort.

    Each request is counted once, when its fate is known, and ``asked = on_time + late + rejected + failed + the growth
    of present``, class by class, to float32 rounding. Requests are real numbers: the physics is a fluid. All zeros in
    the closed-loop tasks, which are not scored by request. Sums over seconds are an episode's.
    """

    asked: Scalar  # float32[3], requests that arrived
    on_time: Scalar  # float32[3], finished with TTFT and TPOT within their class's objectives
    late: Scalar  # float32[3], missed one: counted when the wait passes the objective, else at first token or finish
    rejected: Scalar  # float32[3], turned away by a full waiting line
    failed: Scalar  # float32[3], lost by the engine
    present: Scalar  # float32[3], not yet judged at the second's end: waiting or running, and not late so far
    tokens_asked: Scalar  # float32, output tokens of the second's arrivals
    on_time_tokens: Scalar  # float32, output tokens of the requests that finished on time
    gpu_seconds: Scalar  # float32, GPUs paid for in this second
    quality: Scalar  # float32, what the weight format keeps of the 16-bit model's answers, 1 at most


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ServeObservation:
    """What the agent sees, in natural units; 12 fields, 14 numbers when flattened. Ranges: ``OBSERVATION``."""

    queue_depth: Scalar
    mean_prompt_len: Scalar
    arrival_rate: Scalar
    kv_cache_occupancy: Scalar
    ttft_p50: Scalar
    tpot_p50: Scalar
    slo_violation_rate: Scalar
    gpu_memory_used_gb: Scalar
    spec_accept_rate: Scalar
    priority_distribution: Scalar
    timestep: Scalar
    cost_so_far: Scalar

    def to_array(self) -> jax.Array:
        """Flatten to float32[..., 14] in field order (priority_distribution takes three places)."""
        columns = []
        for name, spec in OBSERVATION.items():
            value = jnp.asarray(getattr(self, name), jnp.float32)
            columns.append(value if spec.size > 1 else value[..., None])
        return jnp.concatenate(columns, axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """The observation of one environment as plain Python numbers (JSON-ready)."""
        return plain(self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EnvState:
    """Everything that an episode carries from one step to the next; 10 numbers an environment.

    Randomness is not state: each step's draws are a function of (seed, time), so any step can be regenerated.
    """

    seed: jax.Array  # uint32, seed of this episode
    episode: jax.Array  # int32, episodes finished before this one
    time: jax.Array  # int32, steps taken in this episode
    queue: jax.Array  # int32, requests waiting
    arrival_ema: jax.Array  # float32, requests/s
    class_counts: jax.Array  # int32[3], arrivals by class over the last 50 steps
    cost_so_far: jax.Array  # float32
    engine: EngineState = EngineState()  # what an open-loop engine carries; untouched by the closed loop


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EnvParams:
    """One task as numbers. All tasks have the same structure, so params stack and ``vmap`` mixes tasks.

    Built by ``inferencegym_jax.make`` from ``data/workload_configs.json`` and ``data/calibration.json``.
    """

    task_id: Scalar  # int32
    # arrivals: Poisson(rate), or Poisson(burst_rate) where burst_start <= time mod burst_period < burst_start + length
    rate: Scalar  # float32, requests/s
    burst_rate: Scalar  # float32, requests/s
    burst_period: Scalar  # int32, steps
    burst_start: Scalar  # int32, steps into the period
    burst_length: Scalar  # int32, steps
    # prompts: uniform [short_low, short_high], or with long_share uniform [long_low, long_high]; or lognormal, clamped
    short_low: Scalar  # float32, tokens
    short_high: Scalar
    long_low: Scalar
    long_high: Scalar
    long_share: Scalar  # float32, share
    lognormal: Scalar  # bool: exp(N(log_mean, log_sigma)) clamped to [short_low, short_high] instead
    log_mean: Scalar  # float32, log tokens
    log_sigma: Scalar  # float32, log tokens
    class_shares: Scalar  # float32[3], interactive, batch, best effort; [1, 0, 0] where a task has no classes
    slo_ms: Scalar  # float32[3], TTFT objective of each class; inf for none
    memory_limit_gb: Scalar  # float32, what the task's grader asks for
    oom_limit_gb: Scalar  # float32, what the GPU has
    acceptance: Scalar  # float32, base acceptance rate of drafted tokens
    alpha: Scalar  # float32, reward weight of throughput
    beta: Scalar  # float32, of latency
    gamma: Scalar  # float32, of violations
    delta: Scalar  # float32, of cost
    optimal_tps: Scalar  # float32, tokens/s, from calibration
    cost_normaliser: Scalar  # float32, cost_per_1k, from calibration
    active: Scalar  # bool[5], which knobs the task leaves to the agent, in the order of KNOBS
    noise_sigma: Scalar  # float32, standard deviation of the latency noise
    episode_length: Scalar  # int32, steps
    engine: EngineParams = EngineParams()  # the open-loop part

    @property
    def max_steps_in_episode(self) -> Scalar:
        """gymnax's name of ``episode_length``."""
        return self.episode_length

    def replace(self, **changes: Any) -> EnvParams:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def plain(tree: Any) -> Any:
    """A pytree of scalars and short arrays as JSON-ready dicts, lists and Python numbers."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {f.name: plain(getattr(tree, f.name)) for f in dataclasses.fields(tree)}
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return np.asarray(tree).tolist()


def shown(value: Any) -> str:
    """A given value as an error message shows it: cut to 60 characters, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def finite_number(value: Any) -> float | None:
    """The value as a float where it is a finite number (not a bool, not text), else None."""
    if isinstance(value, bool | np.bool_ | str | bytes) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer: inside jit, vmap or grad no value can be inspected."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def check_seed(seed: Any) -> int:
    """The seed of one episode as an int.

    Raises:
        ValueError: it is no whole number from 0 to 4294967295.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed = {shown(seed)}: must be a whole number from 0 to {SEEDS - 1}")
    return int(seed)


def check_action(action: Any) -> None:
    """Raise if a concrete action, single or batched, leaves its range; do nothing for a traced one.

    Raises:
        TypeError: action is no ServeAction, or a knob is not of its kind.
        ValueError: a knob is not finite or outside its range; the message names knob, value and what is allowed.
    """
    if not isinstance(action, ServeAction):
        raise TypeError(f"action: got {type(action).__name__}; pass a ServeAction (or use a wrapper)")
    if is_traced(action):
        return
    for name, knob in KNOBS.items():
        _check_knob(name, knob, getattr(action, name))


def _is_plainly_good(knob: Knob, given: Any) -> bool:
    """Whether it is a Python number in range: one environment's usual case, which needs no arrays to be seen."""
    if knob.kind == "bool":
        return type(given) is bool
    if type(given) is not int and type(given) is not float:
        return False
    if knob.kind == "choice":
        return given in knob.choices
    return knob.low <= given <= knob.high and (knob.kind == "float" or given == int(given))


def _check_knob(name: str, knob: Knob, given: Any) -> None:
    if _is_plainly_good(knob, given):
        return
    value = np.asarray(given)
    if value.dtype == object and isinstance(given, int):  # beyond 64 bits
        raise ValueError(f"{name} = {shown(given)}: must be {knob.allowed}")
    if value.dtype.kind not in ("b" if knob.kind == "bool" else "iuf"):
        raise TypeError(f"{name} = {shown(given)}: must be {knob.allowed}")
    if knob.kind == "bool":
        return
    if knob.kind == "choice":
        good = np.isin(value, knob.choices)
    else:
        # float32(0.1) is below the double 0.1: compare as float32, which is what the simulator uses
        single = value.astype(np.float32)
        good = (single >= np.float32(knob.low)) & (single <= np.float32(knob.high))
        if knob.kind == "int":
            good &= value == np.floor(value)
    if not np.all(good):
        worst = value[~good].flat[0] if value.ndim else given
        raise ValueError(f"{name} = {worst}: must be {knob.allowed}")
