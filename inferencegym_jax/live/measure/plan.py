"""A latency table from a live server in minutes: which cells, in which order, for how long.

``scan -> axes -> grid -> refinement -> table``. The scan doubles the concurrency twice at a time until throughput
stops to rise; the grid takes every axis combination once; what is left of the budget goes, by turns, to a node where
the straight line between its neighbours is wrong, and to the cell whose interval is widest.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from inferencegym_jax.live.measure.cell_run import Slice, run_cell
from inferencegym_jax.live.measure.cells import Cell, Cells
from inferencegym_jax.live.measure.engine_figures import acceptance_lengths, pool_seen
from inferencegym_jax.live.measure.table import build_columns, build_metadata, fit, pool_metadata, write_table
from inferencegym_jax.live.server.probe import Engine, EngineError, read_metrics
from inferencegym_jax.models import KNOBS
from inferencegym_jax.table.latency_table import PROMPT_LENGTHS, LatencyTable

SCAN_STEP = 4  # factor between scanned concurrencies
KNEE = 1.05  # throughput that rises by less over a scan step has reached its knee
SERVER_WAITS = 0.25  # share of the requests in flight that the server itself keeps waiting, beyond which it is full
SINGLE_OUTPUT = 4  # mean output of the lone requests of one prompt token: many first tokens in a slice
CURVATURE = 0.05  # a node is worth its column where the straight line misses it by more


@dataclass(frozen=True)
class MeasureSettings:
    """What to measure and how long.

    Attributes:
        budget_s: seconds in all, earlier sittings included.
        output_tokens: mean output length.
        most_concurrency: largest batch_size.
        longest_prompt: tokens; the server's own limit counts besides.
        precision: half-width of the 95 % intervals, as a share, at which a cell is left alone.
        slice_s: shortest slice.
        base_memory_gb: memory of weights and runtime.
        kv_cache_tokens, kv_bytes_per_token: size of the KV pool and of a token in it, where the server tells neither;
            0 is unknown. Open-loop tasks need both.
        token_budget: tokens of one iteration (vLLM's max_num_batched_tokens), where the server does not tell; 0 is
            unknown.
        seed: of lengths and prompts.
    """

    budget_s: float = 600.0
    output_tokens: int = 64
    most_concurrency: int = 64
    longest_prompt: int = 2048
    precision: float = 0.05
    slice_s: float = 2.0
    base_memory_gb: float = 0.0
    kv_cache_tokens: float = 0.0
    kv_bytes_per_token: float = 0.0
    token_budget: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        high = int(KNOBS["batch_size"].high)
        checks = [
            (self.budget_s > 0, "budget", self.budget_s, "seconds above 0"),
            (self.output_tokens >= 4, "output-tokens", self.output_tokens, "at least 4"),
            (1 <= self.most_concurrency <= high, "max-concurrency", self.most_concurrency, f"from 1 to {high}"),
            (self.longest_prompt >= PROMPT_LENGTHS[0], "max-prompt", self.longest_prompt, "at least 64 tokens"),
            (0 < self.precision < 1, "precision", self.precision, "a share above 0 and below 1"),
            (self.slice_s > 0, "slice", self.slice_s, "seconds above 0"),
            (self.base_memory_gb >= 0, "base-memory-gb", self.base_memory_gb, "at least 0"),
            (0 <= self.kv_cache_tokens < math.inf, "kv-cache-tokens", self.kv_cache_tokens, "at least 0"),
            (0 <= self.kv_bytes_per_token < math.inf, "kv-bytes-per-token", self.kv_bytes_per_token, "at least 0"),
            (0 <= self.token_budget < 2**31, "max-num-batched-tokens", self.token_budget, "at least 0"),
        ]
        for good, name, value, allowed in checks:
            if not good:
                raise ValueError(f"{name} = {value}: must be {allowed}")


@dataclass(frozen=True)
class Progress:
    """Where a measurement stands, for a progress bar."""

    elapsed_s: float
    budget_s: float
    doing: str


class Measurement:
    """One measurement; ``run`` it, again and again if it was interrupted."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        engine: Engine,
        settings: MeasureSettings,
        cells: Cells,
        state: Path | None = None,
        report: Callable[[Progress], None] = lambda _: None,
    ):
        self.client, self.engine, self.settings, self.cells, self.state = client, engine, settings, cells, state
        self.report = report
        self.batch_sizes: list[int] = []
        limit = engine.max_model_len or 10**9
        longest = min(settings.longest_prompt, limit - settings.output_tokens * 3 // 2 - 1)
        self.buckets_allowed = [i for i, length in enumerate(PROMPT_LENGTHS) if length <= longest]
        if not self.buckets_allowed:
            raise EngineError(
                f"the server's context of {limit} tokens leaves no room for a prompt of 64 and outputs of "
                f"{settings.output_tokens * 3 // 2}; pass a smaller --output-tokens"
            )
        self.buckets = sorted({self.buckets_allowed[0], self.buckets_allowed[-1]})
        self._straight: set[tuple[str, int]] = set()  # nodes tried and seen to lie on the line

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.settings.budget_s - self.cells.elapsed_s

    async def run(self) -> None:
        """Measure until every cell is known well enough or the budget is spent; the grid is always completed."""
        before = await read_metrics(self.client)
        await self._scan()
        if not self.cells.single:
            await self._single()
        for bucket in self.buckets:
            for n in self.batch_sizes:
                await self._once((n, bucket))
        if len(self.cells.single) < 2:  # once more, some time later: the machine is not always equally fast
            await self._single()
        while self.left_s > 0:
            refined = await self._refine()
            repeated = await self._repeat()
            if not refined and not repeated:
                break
        lengths = acceptance_lengths(before, await read_metrics(self.client))
        if lengths is not None:  # else nothing was verified in this sitting, and an earlier one's stands
            self.cells.acceptance = lengths
            if self.state is not None:
                self.cells.save(self.state)

    def table(self, path: Path) -> LatencyTable:
        """Write what was measured as a latency table."""
        output, base = self.settings.output_tokens, self.settings.base_memory_gb
        budget = self.engine.token_budget or self.settings.token_budget or None
        columns = build_columns(
            self.cells, self.batch_sizes, self.buckets, self.engine, output, base, budget, self.in_flight
        )
        fitted = fit(self.cells, columns, self.buckets, output, budget)
        metadata = build_metadata(self.cells, self.batch_sizes, self.buckets, self.engine, fitted, output, base)
        seen = pool_seen(self.cells, output)
        metadata |= pool_metadata(self.engine, self.settings.kv_cache_tokens, self.settings.kv_bytes_per_token, seen)
        if budget is not None:
            metadata["tokens_per_iteration"] = str(budget)
        if (acceptance := self.cells.acceptance) is not None:
            metadata |= {"spec_length": str(acceptance[0]), "acceptance_lengths": json.dumps(acceptance[1])}
        return write_table(columns, metadata, path)

    def in_flight(self, n: int, prompt: int) -> int:
        """As many of ``n`` requests as the KV pool holds to their ends: beyond, an engine makes them wait or preempts
        them and computes them again, which is no property of an iteration. One at least."""
        pool = self.engine.kv_cache_tokens or self.settings.kv_cache_tokens
        if not pool:
            return n
        block = self.engine.kv_block_tokens or 1.0
        held = math.ceil((prompt + self.settings.output_tokens * 3 // 2) / block) * block
        return min(n, max(int(pool // held), 1))

    async def _scan(self) -> None:
        bucket, n, before = self.buckets[0], 1, 0.0
        while True:
            await self._once((n, bucket))
            self.batch_sizes.append(n)
            tps, waiting = self.cells.tps((n, bucket)), self.cells.slices[(n, bucket)][-1].waiting
            full = waiting is not None and waiting > SERVER_WAITS * n
            full = full or self.in_flight(n, PROMPT_LENGTHS[bucket]) < n
            if full and len(self.batch_sizes) > 2:
                self.batch_sizes.pop()
            if tps < KNEE * before:  # once more: a slice in which something else took the machine is no knee
                await self._measure((n, bucket))
                tps = self.cells.tps((n, bucket))
            if full or tps < KNEE * before or n >= self.settings.most_concurrency:
                return
            before, n = tps, min(n * SCAN_STEP, self.settings.most_concurrency)

    async def _refine(self) -> bool:
        """Try one untried node between two of an axis; keep it with its whole line where it is off the straight
        line."""
        for axis, node, (low, high) in self._candidates():
            others = self.buckets if axis == "batch" else self.batch_sizes
            probes = sorted({others[0], others[-1]})
            if self._estimate(axis, node, others) > self.left_s:
                continue
            off = 0.0
            for other in probes:
                await self._once(self._cell(axis, node, other))
                off = max(off, self._distance(axis, node, low, high, other))
            self._straight.add((axis, node))
            if off > CURVATURE:
                for other in others:
                    await self._once(self._cell(axis, node, other))
                nodes = self.batch_sizes if axis == "batch" else self.buckets
                nodes.append(node)
                nodes.sort()
            return True
        return False

    def _candidates(self) -> list[tuple[str, int, tuple[int, int]]]:
        candidates = []
        for low, high in zip(self.buckets[:-1], self.buckets[1:], strict=True):
            if high - low > 1:
                candidates.append(("prompt", (low + high) // 2, (low, high)))
        for low, high in zip(self.batch_sizes[:-1], self.batch_sizes[1:], strict=True):
            if high >= low * 2 and round((low * high) ** 0.5) not in (low, high):
                candidates.append(("batch", round((low * high) ** 0.5), (low, high)))
        return [(axis, node, ends) for axis, node, ends in candidates if (axis, node) not in self._straight]

    @staticmethod
    def _cell(axis: str, node: int, other: int) -> Cell:
        return (node, other) if axis == "batch" else (other, node)

    def _distance(self, axis: str, node: int, low: int, high: int, other: int) -> float:
        """By how much, as a share, the line between two nodes misses the one between, beyond what their intervals
        explain."""
        cell, left, right = (self._cell(axis, x, other) for x in (node, low, high))
        x, a, b = (float(i) if axis == "batch" else float(PROMPT_LENGTHS[i]) for i in (node, low, high))
        place = (x - a) / (b - a)
        misses = []
        for name, value in (("tpot", self.cells.tpot_ms), ("ttft", lambda at: self.cells.ttft_ms(at, 50))):
            straight = value(left) + place * (value(right) - value(left))
            noise = [min(self.cells.spread(at)[name], 1.0) for at in (cell, left, right)]
            misses.append(abs(straight / value(cell) - 1.0) - math.hypot(*noise))
        return max(misses)

    def _estimate(self, axis: str, node: int, others: list[int]) -> float:
        """Seconds that a whole line of cells would take: as long as its dearer neighbour's."""
        nodes = self.batch_sizes if axis == "batch" else self.buckets
        dearer = min(x for x in nodes if x > node)
        return sum(self.cells.cost_s(self._cell(axis, dearer, other)) for other in others)

    async def _repeat(self) -> bool:
        """One more slice of the cell with the widest interval."""
        grid = [(n, bucket) for n in self.batch_sizes for bucket in self.buckets]
        wide = [cell for cell in grid if self.cells.worst(cell) > self.settings.precision]
        wide = [cell for cell in wide if self.cells.cost_s(cell) <= self.left_s]
        if not wide:
            return False
        await self._measure(max(wide, key=lambda cell: self.cells.worst(cell) / len(self.cells.slices[cell]) ** 0.5))
        return True

    async def _once(self, cell: Cell) -> None:
        if cell not in self.cells.slices:
            await self._measure(cell)

    async def _measure(self, cell: Cell) -> None:
        n, bucket = cell
        length = PROMPT_LENGTHS[bucket]
        n = self.in_flight(n, length)
        spacing = self.cells.ttft_ms((1, bucket), 50) / 1000.0 if (1, bucket) in self.cells.slices else 0.0
        again = len(self.cells.slices.get(cell, []))
        async with self._timed(f"{n} at once, prompts of {length}"):
            self.cells.add(cell, await self._slice(n, length, self.settings.output_tokens, again, spacing))

    async def _single(self) -> None:
        """Lone requests with a prompt of one token."""
        async with self._timed("1 at once, prompts of 1"):
            self.cells.single.append(await self._slice(1, 1, SINGLE_OUTPUT, len(self.cells.single)))

    async def _slice(self, n: int, length: int, output: int, again: int, spacing_s: float = 0.0) -> Slice:
        return await run_cell(
            self.client,
            self.engine.endpoint,
            n,
            length,
            output,
            seconds=self.settings.slice_s,
            spacing_s=spacing_s,
            most_seconds=max(self.settings.budget_s / 12.0, 8.0 * self.settings.slice_s),
            seed=self.settings.seed + again,
        )

    @contextlib.asynccontextmanager
    async def _timed(self, doing: str) -> AsyncIterator[None]:
        """Time that counts as measuring, reported and kept."""
        self.report(Progress(self.cells.elapsed_s, self.settings.budget_s, doing))
        begun = time.monotonic()
        yield
        self.cells.elapsed_s += time.monotonic() - begun
        if self.state is not None:
            self.cells.save(self.state)
        self.report(Progress(self.cells.elapsed_s, self.settings.budget_s, doing))
