"""What is set on the reference engine, and what is changed while it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Settings:
    """One engine's settings and the switching times.

    Attributes:
        batch_size: requests that may run at once (each holds a slot from its entry to its last token).
        kv_budget: share of the pool up to which requests are let in.
        spec_length: tokens drafted before each verification; 0 without drafts.
        quant_tier: weights, 0 FP16, 1 INT8, 2 INT4.
        prefix_share: share of each prompt that the cache holds.
        memory_gb: of the GPU; None: the profile's.
        token_budget: tokens of an iteration; None: the profile's.
        queue_capacity: requests that may wait; one more is rejected. None: any number.
        second_gpu: "none"; "replica", an engine like the first; "prefill", which computes the prompts.
        restart_s: seconds without service when quant_tier changes.
        start_s: seconds from the asking for the second GPU to its service.
        lease_s: seconds for which it is billed at least.
        transfer_gb_s: link over which a prefill GPU hands keys and values on; infinite: at once.
        seed: of the draws of accepted drafts.
    """

    batch_size: int = 128
    kv_budget: float = 1.0
    spec_length: int = 0
    quant_tier: int = 0
    prefix_share: float = 0.0
    memory_gb: float | None = None
    token_budget: int | None = None
    queue_capacity: int | None = None
    second_gpu: str = "none"
    restart_s: float = 30.0
    start_s: float = 30.0
    lease_s: float = 60.0
    transfer_gb_s: float = math.inf
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or self.spec_length < 0 or self.quant_tier not in (0, 1, 2):
            raise ValueError(f"batch_size must be at least 1, spec_length at least 0, quant_tier 0 to 2: {self}")
        if not 0 < self.kv_budget <= 1 or not 0 <= self.prefix_share <= 1:
            raise ValueError(f"kv_budget must be in (0, 1] and prefix_share in [0, 1]: {self}")
        if self.second_gpu not in ("none", "replica", "prefill"):
            raise ValueError(f"second_gpu is {self.second_gpu!r}; it must be none, replica or prefill")
        for name in ("restart_s", "start_s", "lease_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and at least 0")


@dataclass(frozen=True)
class Change:
    """Settings that change at `time_s`: ``Change(60, quant_tier=1)``."""

    time_s: float
    values: dict[str, Any]

    def __init__(self, time_s: float, **values: Any):
        unknown = set(values) - {field.name for field in fields(Settings)}
        if unknown or {"memory_gb", "token_budget", "seed"} & set(values):
            raise ValueError(f"cannot change {sorted(values)} while the engine runs")
        object.__setattr__(self, "time_s", time_s)
        object.__setattr__(self, "values", values)

    def of(self, settings: Settings) -> Settings:
        """The settings after the change."""
        return replace(settings, **self.values)
