"""A task as data: ``TaskSpec``, whose every field is checked when it is made."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inferencegym_jax.models import EPISODE_LENGTH, KNOBS, REWARD_WEIGHTS, shown
from inferencegym_jax.tasks import pools
from inferencegym_jax.tasks.checks import check_fields, three

DEFAULT_WEIGHTS = {key: weight.default for key, weight in REWARD_WEIGHTS.items()}
"""Reward weights of throughput, latency, violations and cost."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task: traffic, objectives, limits, the knobs that it leaves to the agent, reward weights.

    Raises ``ValueError`` or ``TypeError`` where a field is out of range; the message names task, field, value and what
    is allowed. Equal and hashed by content.

    Attributes:
        name: small letters, digits and hyphens, beginning with a letter; unique, like ``id`` and ``title``.
        id: a whole number above 0.
        title: as people read it, and without what is no letter or digit its Gymnasium id; default: from the name.
        difficulty: a word.
        description: a sentence.
        arrivals: ``rate`` (requests/s), and for bursts ``burst_rate``, ``burst_period``, ``burst_start`` and
            ``burst_length`` (seconds).
        prompts: lengths in tokens. ``kind`` "uniform": ``low``, ``high``; "mixture": also ``long_low``, ``long_high``
            and ``long_share``; "lognormal": ``log_mean``, ``log_sigma``, clamped to ``low`` to ``high``.
        slo_ttft_ms: TTFT objective of the interactive, batch and best-effort class; infinity (or None) for none.
        class_shares: of the three classes; they add up to 1.
        memory_limit_gb: what the grader asks for; None: nothing but the GPU's memory.
        gpu_memory_gb: what the GPU of a closed-loop task has; None: what the latency table's engine profile says. An
            open-loop task always has the profile's.
        acceptance: base acceptance rate of drafted tokens, above 0 and at most 1.
        active_knobs: those left to the agent.
        reward: its weights, see ``models.REWARD_WEIGHTS``.
        cost_budget: of an episode, for graders that have one.
        dynamics: "closed_loop", or "open_loop" (continuous batching).
        traffic: fitted to a log by ``data/fit_traces.py``, in place of arrivals and prompts; open-loop only: ``rate``
            (requests/s), ``sigma`` and ``periods`` of the load at three time scales, ``prompt`` and ``output`` with
            ``mean`` (tokens) and ``cv``. Or by kind and hour of the day: ``kinds`` and ``noise_hours``, with ``clock``
            (seconds of the day that pass in a step) and ``windows_a_day`` (episodes into which a day is cut); an entry
            of a file may name a ``pool`` of ``data/traffic_pools.json`` and a ``share`` of it instead. Further keys say
            where it comes from.
        slo_tpot_ms: objective on the time per output token, one or by class as ``slo_ttft_ms``; open-loop only.
        class_weights: what a request of each class counts in the share on time; open-loop only.
        episode_length: steps (seconds) of an episode.
        switching: what the second GPU is and what changes take, open-loop only: ``second_gpu`` ("prefill" or
            "replica"), ``start_s``, ``lease_s``, ``restart_s`` (seconds); what is left out is ``EngineParams``'
            default.
        draws: what is drawn anew for each episode (``tasks.draws``), open-loop with traffic by kind and hour only:
            ``pools``, ``engines`` (a GPU and a weight format, "h100_sxm INT8") and ``objectives`` (``ttft_ms``,
            ``tpot_ms``), of each also ``unseen_...`` that training never draws; ``load`` (GPUs that the busiest hour
            needs, lowest and highest), ``kinds_sigma`` (of the logarithm of each kind's rate), ``memory_share``,
            ``start_s``, ``clock``, ``lease_share`` (of the episodes in which a second GPU may be leased).
    """

    name: str
    id: int
    title: str = ""
    difficulty: str = "custom"
    description: str = ""
    arrivals: dict[str, float]
    prompts: dict[str, Any]
    slo_ttft_ms: tuple[float, ...]
    class_shares: tuple[float, ...] = (1.0, 0.0, 0.0)
    memory_limit_gb: float | None = None
    gpu_memory_gb: float | None = None
    acceptance: float = 0.65
    active_knobs: tuple[str, ...] = tuple(KNOBS)
    reward: dict[str, float] = field(default_factory=DEFAULT_WEIGHTS.copy)
    cost_budget: float | None = None
    dynamics: str = "closed_loop"
    traffic: dict[str, Any] | None = None
    slo_tpot_ms: float | tuple[float, ...] = math.inf
    class_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    episode_length: int = EPISODE_LENGTH
    switching: dict[str, Any] = field(default_factory=dict[str, Any])
    draws: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        own: dict[str, Any] = {
            "title": self.title or str(self.name).replace("-", " ").title(),
            "slo_ttft_ms": three(self, "slo_ttft_ms", math.inf),
            "class_shares": three(self, "class_shares", 0.0),
            "class_weights": three(self, "class_weights", 1.0),
            "active_knobs": tuple(self.active_knobs),
            "arrivals": copy.deepcopy(self.arrivals),  # so that changing the caller's dict changes no task
            "prompts": copy.deepcopy(self.prompts),
            "reward": copy.deepcopy(self.reward),
            "traffic": copy.deepcopy(pools.resolve(self.traffic)),
            "switching": copy.deepcopy(self.switching),
            "draws": copy.deepcopy(self.draws),
        }
        if not isinstance(self.slo_tpot_ms, int | float):
            own["slo_tpot_ms"] = three(self, "slo_tpot_ms", math.inf)
        for name, value in own.items():
            object.__setattr__(self, name, value)
        check_fields(self)
        if self.has_kinds:
            self._take_shares()

    def _take_shares(self) -> None:
        """Class shares are those of the kinds."""
        shares = pools.class_shares(self.traffic or {})
        usual = type(self).class_shares
        if self.class_shares != usual and not np.allclose(self.class_shares, shares, atol=1e-6):
            raise ValueError(
                f"task {shown(self.name)}: class_shares = {self.class_shares}: those of the traffic's kinds are "
                f"{shares}; leave the field out"
            )
        object.__setattr__(self, "class_shares", shares)

    @property
    def has_kinds(self) -> bool:
        """Whether the traffic is by kind and hour of the day."""
        return self.traffic is not None and "kinds" in self.traffic

    @property
    def tpot_objectives_ms(self) -> tuple[float, ...]:
        """``slo_tpot_ms`` of the three classes."""
        objectives = self.slo_tpot_ms
        return (float(objectives),) * 3 if isinstance(objectives, int | float) else objectives

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        content = dataclasses.asdict(self)
        if content["draws"] is None:  # a task that draws nothing is what it was before there were any that do
            del content["draws"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __hash__(self) -> int:
        """Hash of the content."""
        return hash(self.digest)

    @classmethod
    def from_entry(cls, name: str, entry: Mapping[str, Any]) -> TaskSpec:
        """The task of an entry of a JSON file of tasks, as ``data/workload_configs.json`` is one.

        Raises:
            ValueError, TypeError: an unknown or missing field, or one out of range.
        """
        if not isinstance(entry, Mapping):
            raise TypeError(f"task {shown(name)} = {shown(entry)}: must be an object of the task's fields")
        known = {f.name: f for f in dataclasses.fields(cls) if f.name != "name"}
        unknown = [key for key in entry if key not in known]
        if unknown:
            raise ValueError(f"task {shown(name)}: unknown field {shown(unknown[0])}; allowed are {', '.join(known)}")
        needed = ("id", "arrivals", "prompts", "slo_ttft_ms")
        absent = [key for key in needed if key not in entry]
        if absent:
            raise ValueError(f"task {shown(name)}: field {absent[0]!r} is missing; needed are {', '.join(needed)}")
        return cls(name=name, **entry)
