"""The request-level reference engine on a latency table's own kernel times, for one static action.

``LatencyTable, knobs -> KernelTimes, EngineLimits -> quick_engine.first_tokens -> TTFT of every request``. Where
prefill has a GPU of its own, ``serve_apart``: one prompt after the other there, then the decode batch here; a request
holds its slot through both.
"""

from __future__ import annotations

import bisect
import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from inferencegym_jax.table.iterations import engine_grid
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.traffic.calendar import BUCKET_EDGES
from tests.reference.engine import EngineLimits, KernelTimes
from tests.reference.quick_engine import first_tokens

TOKEN_BUDGET = 2048


def cell(nodes: Sequence[float], value: float) -> tuple[int, float]:
    """Lower node and place between it and the next, clamped at the edges."""
    if len(nodes) == 1:
        return 0, 0.0
    inside = min(max(value, nodes[0]), nodes[-1])
    low = min(bisect.bisect_right(nodes, inside) - 1, len(nodes) - 2)
    return low, (inside - nodes[low]) / (nodes[low + 1] - nodes[low])


def bilinear(xs: Sequence[float], ys: Sequence[float], values: np.ndarray) -> Callable[[float, float], float]:
    """Linear interpolation on a grid, in plain Python."""
    rows = [[float(x) for x in row] for row in values]

    def at(x: float, y: float) -> float:
        i, u = cell(xs, x)
        j, v = cell(ys, y)
        low, high, k = rows[i], rows[min(i + 1, len(rows) - 1)], min(j + 1, len(ys) - 1)
        return (low[j] * (1 - v) + low[k] * v) * (1 - u) + (high[j] * (1 - v) + high[k] * v) * u

    return at


class TableEngine:
    """The kernel times of one action; tokens/s of drafts enter as a faster decode.

    Args:
        table: the latency table.
        knobs: of a ServeAction.
        acceptance: base acceptance rate of drafted tokens.
        mean_prompt: of the traffic, tokens; the acceptance falls with it.
        memory_gb: what the engine may use.
    """

    def __init__(
        self, table: LatencyTable, knobs: Mapping[str, Any], acceptance: float, mean_prompt: float, memory_gb: float
    ):
        grid, axes = engine_grid(table), table.axes
        names = ("spec_length", "quant_tier", "batch_size", "kv_budget", "prompt_len_bucket")
        shape = tuple(len(axes[name]) for name in names)
        spec, quant = axes["spec_length"].index(knobs["spec_length"]), axes["quant_tier"].index(knobs["quant_tier"])
        low, place = cell(axes["kv_budget"], knobs["kv_budget"])
        high = min(low + 1, shape[3] - 1)

        def surface(column: np.ndarray) -> Callable[[float, float], float]:
            values = column.reshape(shape)[spec, quant]
            return bilinear(
                axes["batch_size"], axes["prompt_len_bucket"], values[:, low] * (1 - place) + values[:, high] * place
            )

        decode = surface(grid.running[:, 0])
        self.prefill = surface(grid.joining[:, 0])
        self.stand_alone = [float(x) for x in grid.first_token[quant]]
        self.prompts, self.knobs = axes["prompt_len_bucket"], knobs
        k, bucket = knobs["spec_length"], bisect.bisect_right(BUCKET_EDGES, mean_prompt)
        rate = max(acceptance * (1 - 0.1 * bucket) / (1 + 0.15 * k), 0.0)
        per_iteration = sum(rate**i for i in range(k + 1))
        gain = per_iteration / sum(table.reference_acceptance**i for i in range(k + 1))
        output = table.output_length
        self.overhead = table.engine_overhead_ms / per_iteration
        self.decode = lambda n, context: decode(n, context - output / 2) / gain
        base = table.base_memory_gb[quant]
        kv_bytes = float(table.metadata.get("kv_bytes_per_token", 131072))
        self.kv_tokens = (memory_gb - base) * 1e9 / kv_bytes / knobs["kv_budget"]

    def alone(self, prompt: float) -> float:
        """ms of a prefill that nothing shares."""
        i, u = cell(self.prompts, prompt)
        return self.stand_alone[i] * (1 - u) + self.stand_alone[min(i + 1, len(self.prompts) - 1)] * u

    def ttft(self, arrivals: Sequence[float], prompts: Sequence[int], outputs: Sequence[int]) -> np.ndarray:
        """TTFT (ms) of every request; arrivals in ms, lengths in tokens."""
        if self.knobs["prefill_disagg"]:
            return self.serve_apart(arrivals, prompts, outputs)
        times = KernelTimes(
            decode=self.decode,
            prefill=lambda prompt, running: self.prefill(running, prompt),
            overhead=self.overhead,
            first_token=lambda prompt: max(self.alone(prompt) - self.prefill(1, prompt), 0.0),
        )
        limits = EngineLimits(self.knobs["batch_size"], TOKEN_BUDGET, self.kv_tokens)
        return np.asarray(first_tokens(arrivals, prompts, outputs, times, limits)) - np.asarray(arrivals)

    def serve_apart(self, arrivals: Sequence[float], prompts: Sequence[int], outputs: Sequence[int]) -> np.ndarray:
        """Prefill on its own GPU, first come first served; decoding iteration by iteration on the other."""
        first = np.full(len(arrivals), np.nan)
        waiting: deque[int] = deque()
        ready: list[tuple[float, int]] = []  # prefilled, by the time at which decoding may start
        ending: defaultdict[int, list[int]] = defaultdict(list)  # iteration -> requests whose last token it makes
        slots = self.knobs["batch_size"]
        ahead, now, prefill_free, holding, running, context, iteration = 0, 0.0, 0.0, 0, 0, 0, 0
        while ahead < len(arrivals) or waiting or holding:
            while ahead < len(arrivals) and arrivals[ahead] <= now:
                waiting.append(ahead)
                ahead += 1
            while waiting and holding < slots:
                i = waiting.popleft()
                prefill_free = max(prefill_free, arrivals[i] if holding < slots - 1 else now)
                start, prefill_free = prefill_free, prefill_free + self.prefill(max(running, 1), prompts[i])
                first[i] = start + self.alone(prompts[i])
                heapq.heappush(ready, (first[i], i))
                holding += 1
            while ready and ready[0][0] <= now:
                i = heapq.heappop(ready)[1]
                running += 1
                context += prompts[i] + 1
                ending[iteration + max(outputs[i] - 1, 1) - 1].append(i)
            if not running:
                now = min([*arrivals[ahead : ahead + 1], *(time for time, _ in ready[:1])])
                continue
            now += self.decode(running, context / running) + self.overhead
            context += running
            for i in ending.pop(iteration, ()):
                running -= 1
                holding -= 1
                context -= prompts[i] + max(outputs[i], 2)
            iteration += 1
        return first - np.asarray(arrivals)
