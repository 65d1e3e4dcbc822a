"""N GPUs, a model and a request log: how to cut the GPUs, replayed request by request before it is said.

``log, model, GPU -> a table of each width (hardware.build) -> layouts -> EngineReplay -> GpuChoice``. Every layout that
is shown was replayed on the whole load that the log's stretches stand for, under the settings that its commands print.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inferencegym_jax.hardware import Placement, Request, build
from inferencegym_jax.hardware.gpus import money_per_million_tokens
from inferencegym_jax.hardware.memory import MEMORY_SHARE
from inferencegym_jax.hardware.model_files import is_path
from inferencegym_jax.hardware.table_metadata import doubts
from inferencegym_jax.models import finite_number, shown
from inferencegym_jax.physics.speculation import DRAFT_LENGTHS
from inferencegym_jax.recommend.engine_flags import MODEL, Deployment, deployment, engine_flags, left_out
from inferencegym_jax.recommend.engine_replay import EngineReplay, Replayed
from inferencegym_jax.recommend.layouts import Layout, busy_rate, expected, layouts, neighbours, worth_replaying
from inferencegym_jax.recommend.log_requests import LoggedRequests, load_requests
from inferencegym_jax.recommend.notices import deployment_notices
from inferencegym_jax.recommend.quality import Objective, check_objective
from inferencegym_jax.table import LatencyTable, TableError, profile_of
from inferencegym_jax.traffic.log_files import ReadOptions

WIDTHS = (1, 2, 4, 8, 16)
MOST_GPUS = 64
MOST_REPLAYED = 10  # layouts of different kinds
LOOKED_AT = 2  # engines of a layout that are served
KIND = "chat"  # of traffic whose accepted drafts are assumed


@dataclass(frozen=True)
class Tried:
    """A layout and its replay.

    Attributes:
        layout: of the GPUs.
        attainment: share of requests within the objective.
        ttft_p99_ms, tpot_ms: 99th percentile of TTFT, mean TPOT over tokens.
        money: dollars a million output tokens that were served; None without a price.
        gpu_seconds: GPU-seconds per 1,000 of them.
        meets: whether the replay meets the objective.
    """

    layout: Layout
    attainment: float
    ttft_p99_ms: float
    tpot_ms: float
    money: float | None
    gpu_seconds: float
    meets: bool


@dataclass(frozen=True)
class GpuChoice:
    """The answer.

    Attributes:
        model, system, backend: that were asked about.
        objective: what counts as good.
        best: the cheapest layout that meets the objective, else the one that comes closest.
        front: layouts that no other one beats in on-time share, GPU-seconds, TTFT and TPOT, the cheapest first.
        tried: all that were replayed.
        dtypes: weight format by tier.
        flags: engine -> commands of one engine of the best layout.
        skipped: engine -> why it has none.
        searched: layouts that the closed forms judged.
        price_per_gpu_hour, price_source: of a GPU.
        notices: what a reader should know.
    """

    model: str
    system: str
    backend: str
    objective: Objective
    best: Tried
    front: tuple[Tried, ...]
    tried: tuple[Tried, ...]
    dtypes: dict[int, str]
    flags: dict[str, str]
    skipped: dict[str, str]
    searched: int
    price_per_gpu_hour: float | None
    price_source: str
    notices: tuple[str, ...]


def choose_gpus(
    trace: str | Path,
    request: Request,
    gpus: int,
    *,
    slo_ttft_ms: float = 300.0,
    slo_tpot_ms: float | None = None,
    attainment: float = 0.99,
    options: ReadOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GpuChoice:
    """Search the cuts of up to ``gpus`` GPUs and replay the promising ones.

    Args:
        trace: request log, see ``load_trace``.
        request: model, system, backend, formats and price; its placement is not read.
        gpus: at most.
        slo_ttft_ms: objective on the time to first token, ms.
        slo_tpot_ms: objective on the time per output token, ms.
        attainment: share of requests that must meet both.
        options: how to read the log.
        progress: called with replays done and in all.

    Raises:
        TableError: the model fits no width, or has no kernels; ValueError: a number out of range.
        FileNotFoundError, TraceError: the log cannot be used.
    """
    number = finite_number(gpus)
    if number is None or number != int(number) or not 1 <= number <= MOST_GPUS:
        raise ValueError(f"gpus = {shown(gpus)}: must be a whole number from 1 to {MOST_GPUS}")
    objective = check_objective(slo_ttft_ms, slo_tpot_ms, attainment)
    tables, notices = tables_of(request, int(gpus))
    requests = load_requests(trace, options)
    tiers = {tp: [int(tier) for tier in table.axes["quant_tier"]] for tp, table in tables.items()}
    candidates = layouts(int(gpus), tiers)
    rate, prompt, output = busy_rate(requests), requests.log.mean_prompt, requests.log.mean_output
    lengths = {tp: accepted_by_drafts(table) for tp, table in tables.items()}
    seen = [
        expected(layout, profile_of(tables[layout.tp]), rate, prompt, output, lengths[layout.tp][layout.drafts])
        for layout in candidates
    ]
    picked = worth_replaying(candidates, seen, objective.ttft_ms, objective.tpot_ms, MOST_REPLAYED)
    judge = _Judge(tables, requests, objective, MODEL if is_path(request.model) else request.model)
    tried: dict[Layout, Tried] = {}
    for i, layout in enumerate(picked):
        progress(i, len(picked))
        tried[layout] = judge(layout)
    best = better(tried)
    for layout in neighbours(best.layout):
        tried.setdefault(layout, judge(layout))
    best = better(tried)
    made = judge.deployment(best.layout)
    about = tables[best.layout.tp].metadata
    profile = profile_of(tables[best.layout.tp])
    said = [*requests.log.notices, *notices, *doubts(about, best.layout.tier)]
    if best.layout.replicas > LOOKED_AT:
        said.append(f"{LOOKED_AT} of the {best.layout.replicas} engines were replayed, each with its share of the log")
    if best.layout.drafts:
        said.append("accepted lengths of drafts are assumed for chat")
    skipped = left_out(made)
    said += deployment_notices(made, skipped)
    return GpuChoice(
        model=about["model"],
        system=about["system"],
        backend=about["backend"],
        objective=objective,
        best=best,
        front=front(list(tried.values())),
        tried=tuple(tried.values()),
        dtypes={int(tier): name for table in tables.values() for tier, name in dtypes(table).items()},
        flags=engine_flags(made),
        skipped=skipped,
        searched=len(candidates),
        price_per_gpu_hour=profile.price_per_gpu_hour,
        price_source=about["price_source"],
        notices=tuple(dict.fromkeys(said)),
    )


def tables_of(request: Request, gpus: int) -> tuple[dict[int, LatencyTable], list[str]]:
    """The table of each width that fits and is measured, and what was said on the way.

    Raises:
        TableError: none does; the reason of the widest.
    """
    tables: dict[int, LatencyTable] = {}
    said: list[str] = []
    failed: TableError | None = None
    for tp in (width for width in WIDTHS if width <= gpus):
        try:
            built = build(dataclasses.replace(request, placement=Placement(tp=tp)))
        except TableError as error:
            failed = error
            continue
        tables[tp] = built.table
        said += [f"TP{tp}: {notice}" for notice in built.notices if "does not fit" in notice or "computed" in notice]
    if not tables:
        assert failed is not None
        raise failed
    return tables, said


def dtypes(table: LatencyTable) -> dict[str, str]:
    """Tier (text) -> weight format of a built table."""
    return json.loads(table.metadata["dtypes"])


def accepted(table: LatencyTable) -> np.ndarray:
    """Tokens that a verification of 0, 1, 2, 4 and 8 drafts yields."""
    return profile_of(table).acceptance_lengths[KIND]


def accepted_by_drafts(table: LatencyTable) -> dict[int, float]:
    """Number of drafts -> tokens that a verification yields."""
    drafts: tuple[int, ...] = (0, *DRAFT_LENGTHS)
    return {k: float(tokens) for k, tokens in zip(drafts, accepted(table), strict=True)}


class _Judge:
    """Replays layouts on the log."""

    def __init__(self, tables: Mapping[int, LatencyTable], requests: LoggedRequests, objective: Objective, model: str):
        self.tables: Mapping[int, LatencyTable] = tables
        self.requests: LoggedRequests = requests
        self.objective: Objective = objective
        self.model: str = model
        self.replays: dict[int, EngineReplay] = {
            tp: EngineReplay(table, requests, objective, accepted(table)) for tp, table in tables.items()
        }

    def deployment(self, layout: Layout) -> Deployment:
        """One engine of a layout, as its flags set it: at the share of the memory that its table assumes.

        A built table's ``memory_gb`` less ``runtime_gb`` is what weights and cache have at that share of what the
        driver reports, so the whole of it is the engine's.
        """
        table = self.tables[layout.tp]
        memory = profile_of(table).memory_gb
        made = deployment(layout.knobs, table, memory, self.requests.longest)
        return dataclasses.replace(
            made,
            gpu_memory_gb=memory / MEMORY_SHARE,
            memory_share=MEMORY_SHARE,
            token_budget=layout.token_budget,
            model=self.model,
        )

    def __call__(self, layout: Layout) -> Tried:
        replayed: Replayed = self.replays[layout.tp].replay(self.deployment(layout), layout.replicas, LOOKED_AT)
        quality = replayed.quality
        tokens = float(quality.tokens_per_sec[0])
        seconds = 1000.0 * layout.gpus / tokens if tokens > 0 else float("inf")
        price = profile_of(self.tables[layout.tp]).price_per_gpu_hour
        return Tried(
            layout=layout,
            attainment=float(quality.attainment[0]),
            ttft_p99_ms=float(quality.ttft_p99_ms[0]),
            tpot_ms=float(quality.tpot_ms[0]),
            money=None if price is None else money_per_million_tokens(seconds, price),
            gpu_seconds=seconds,
            meets=float(quality.attainment[0]) >= self.objective.attainment,
        )


def better(tried: Mapping[Layout, Tried]) -> Tried:
    """The cheapest that meets the objective, of several with as many GPUs one without drafts, which need a head, then
    the best kept; else the one that comes closest."""

    def order(one: Tried) -> tuple[float, ...]:
        cost = (one.layout.gpus, one.layout.drafts > 0) if one.meets else (0, 0)
        return (not one.meets, *cost, -one.attainment, one.tpot_ms)

    return min(tried.values(), key=order)


def front(tried: list[Tried]) -> tuple[Tried, ...]:
    """Those that no other beats in on-time share, GPU-seconds, p99 TTFT and TPOT; the cheapest first."""

    def sizes(one: Tried) -> tuple[float, ...]:
        return (-one.attainment, one.gpu_seconds, one.ttft_p99_ms, one.tpot_ms)

    def beaten(one: Tried) -> bool:
        mine = sizes(one)
        return any(
            other is not one and all(a <= b for a, b in zip(sizes(other), mine, strict=True)) and sizes(other) != mine
            for other in tried
        )

    best: dict[tuple[object, ...], Tried] = {}  # one of each cut, format and number of drafts
    for one in sorted((one for one in tried if not beaten(one)), key=lambda t: (t.layout.gpus, -t.attainment)):
        best.setdefault((one.layout.kind, one.layout.tier, one.layout.drafts), one)
    return tuple(best.values())
