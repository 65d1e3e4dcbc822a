"""How N GPUs may be cut for a model and a log, screened by closed forms: width x replicas x prefill engines x formats.

``tables (one a width) + log -> layouts -> those worth a replay``; ``gpu_choice`` replays and answers. The screen takes
the busiest minutes' rate as steady, so it ranks and never decides.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.hardware.steady_state import Point, along, decode_ms, prompt_ms
from inferencegym_jax.recommend.log_requests import LoggedRequests
from inferencegym_jax.table import EngineProfile

SLOTS = (8, 16, 32, 64, 128, 256, 512)
TOKEN_BUDGETS = (2048, 8192)
DRAFTS = (0, 2, 4)
BUSY = 0.9  # quantile of the minutes' rates that the screen takes as steady
MOST_LOAD = 0.95  # of what prompts leave of an engine's time, beyond which it does not keep up
ROUNDS = 25


@dataclass(frozen=True)
class Layout:
    """A cut of the GPUs.

    Attributes:
        tp: GPUs of one engine.
        replicas: engines, or pairs of a prefill and a decode engine, that share the log.
        apart: whether prompts have engines of their own, one for each decode engine.
        tier: weight format, 0 to 2.
        slots: most requests that run at once on an engine.
        token_budget: of an iteration.
        drafts: of a verification.
    """

    tp: int
    replicas: int
    apart: bool
    tier: int
    slots: int
    token_budget: int
    drafts: int

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.tp * self.replicas * (2 if self.apart else 1)

    @property
    def kind(self) -> tuple[int, int, bool]:
        """Width, replicas and whether prompts are apart."""
        return self.tp, self.replicas, self.apart

    @property
    def knobs(self) -> dict[str, Any]:
        """Of a ``ServeAction``."""
        return {
            "kv_budget": 1.0,
            "spec_length": self.drafts,
            "batch_size": self.slots,
            "prefill_disagg": self.apart,
            "quant_tier": self.tier,
        }

    def __str__(self) -> str:
        """``2 x TP4``, ``1 + 1 x TP2``."""
        count = f"{self.replicas} + {self.replicas}" if self.apart else f"{self.replicas}"
        return f"{count} x TP{self.tp}"


@dataclass(frozen=True)
class Expected:
    """What the closed forms say of a layout: ms, requests that run on an engine, and whether it keeps up."""

    ttft_ms: float
    tpot_ms: float
    running: float
    keeps_up: bool


def layouts(gpus: int, tiers_of: Mapping[int, Sequence[int]]) -> list[Layout]:
    """Every layout of up to so many GPUs, each with the most slots.

    Args:
        gpus: at most.
        tiers_of: width -> weight formats of its table.
    """
    every_layout: list[Layout] = []
    for tp, tiers in tiers_of.items():
        for apart in (False, True):
            each = tp * (2 if apart else 1)
            sizes = itertools.product(range(1, gpus // each + 1), tiers, TOKEN_BUDGETS, DRAFTS)
            every_layout += [Layout(tp, n, apart, tier, SLOTS[-1], budget, k) for n, tier, budget, k in sizes]
    return every_layout


def with_slots(layout: Layout, running: float) -> Layout:
    """The layout with slots for bursts of twice what runs in the mean."""
    slots = next((n for n in SLOTS if n >= 2 * running + 8), SLOTS[-1])
    return dataclasses.replace(layout, slots=slots)


def neighbours(layout: Layout) -> list[Layout]:
    """The layouts that differ in one setting of the engine: slots a size up or down, the other budget, other drafts."""
    at = SLOTS.index(layout.slots)
    alternatives = [dataclasses.replace(layout, slots=SLOTS[i]) for i in (at - 1, at + 1) if 0 <= i < len(SLOTS)]
    alternatives += [dataclasses.replace(layout, token_budget=b) for b in TOKEN_BUDGETS if b != layout.token_budget]
    return alternatives + [dataclasses.replace(layout, drafts=k) for k in DRAFTS if k != layout.drafts]


def busy_rate(requests: LoggedRequests) -> float:
    """Requests/ms of the log's busy minutes (quantile ``BUSY``)."""
    minute = (requests.second // 60).astype(np.int64) + 1_000_000 * requests.stretch
    counts = np.unique(minute, return_counts=True)[1]
    return float(np.quantile(counts, BUSY)) / 60_000.0


def expected(layout: Layout, profile: EngineProfile, rate: float, prompt: float, output: float, al: float) -> Expected:
    """Steady state of one engine of a layout.

    n = lambda O T and T = t(n) / (1 - lambda p), as far as slots and cache hold n; the first token takes its own
    prompt, two and a half iterations and h, and waits as its prefill's utilisation says.

    Args:
        layout: of the engines.
        profile: of one engine.
        rate: requests/ms of the whole log.
        prompt: mean prompt tokens.
        output: mean output tokens.
        al: tokens that a verification of the layout's drafts yields.
    """
    mine = rate / layout.replicas
    pool = profile.pool_tokens(layout.tier)
    most = min(float(layout.slots), pool / (prompt + output / 2))
    if most < 1:
        return Expected(np.inf, np.inf, most, False)
    running, step, added = 1.0, 0.0, 0.0
    for _ in range(ROUNDS):
        point = Point(running, prompt, output, layout.drafts, layout.tier, layout.apart)
        added = 0.0 if layout.apart else prompt_ms(profile, point, running, layout.token_budget)
        left = 1 - mine * added
        if left <= 1 - MOST_LOAD:
            return Expected(np.inf, np.inf, most, False)
        step = decode_ms(profile, point) / left
        wanted = mine * output * step / al
        if wanted > most:
            return Expected(np.inf, step / al, most, False)
        running = 0.5 * running + 0.5 * max(wanted, 1.0)
    plain = Point(1, prompt, output, 0, layout.tier)
    alone = prompt_ms(profile, plain, 0, layout.token_budget) + along(1, profile.head_tokens, profile.head_ms)
    work = alone if layout.apart else added
    busy = mine * work
    if busy >= MOST_LOAD:
        return Expected(np.inf, step / al, most, False)
    wait = busy * work / (2 * (1 - busy))
    link = prompt * profile.kv_bytes_per_token / (profile.host_link_gb_s * 1e6) if layout.apart else 0.0
    return Expected(wait + work + link + 2.5 * step + profile.path_ms, step / al, running, True)


def worth_replaying(
    found: Sequence[Layout], seen: Sequence[Expected], ttft_ms: float, tpot_ms: float, most: int
) -> list[Layout]:
    """The layouts to replay, the likeliest first: of each width, number and split the best settings, and of those the
    fewest GPUs that meet the objective; two replicas of one GPU, one pair and one engine of two GPUs always compete.
    """

    def score(i: int) -> tuple[bool, float]:
        ratio = max(seen[i].ttft_ms / ttft_ms, seen[i].tpot_ms / tpot_ms)
        return (not (seen[i].keeps_up and ratio <= 1.0), ratio)

    best: dict[tuple[int, int, bool], int] = {}
    for i, layout in enumerate(found):
        held = best.get(layout.kind)
        if held is None or score(i) < score(held):
            best[layout.kind] = i
    order = sorted(best.values(), key=lambda i: (score(i)[0], found[i].gpus if not score(i)[0] else 0, score(i)[1]))
    always = [kind for kind in ((1, 2, False), (1, 1, True), (2, 1, False)) if kind in best]
    picked = order[:most] + [best[kind] for kind in always if best[kind] not in order[:most]]
    return [with_slots(found[i], seen[i].running) for i in picked]
