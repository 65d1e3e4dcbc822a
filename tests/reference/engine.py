"""A request-by-request, iteration-by-iteration serving engine in plain Python: the slow, obvious reference of the
fluid step.

Continuous batching as vLLM's V1 scheduler does it: one loop of iterations; each iteration decodes one token of every
running request and fills what is left of the token budget (`max_num_batched_tokens`) with chunks of prompts, first
come first served; at most `max_num_seqs` requests hold a slot, and a request is let in only while the KV pool has room
for its whole length (so nothing is preempted). An arrival is seen when the iteration that is under way ends.

Times come from three functions, so that the engine runs on exactly the kernel times of what it is compared with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Request:
    """One request and what became of it; times in ms."""

    arrival: float
    prompt: int
    output: int
    prefilled: int = 0
    generated: int = 0
    first_token: float = float("nan")
    finished: float = float("nan")


@dataclass(frozen=True)
class KernelTimes:
    """What one iteration costs, ms."""

    decode: Callable[[float, float], float]  # (running requests, mean context in tokens) -> ms
    prefill: Callable[[float, float], float]  # (prompt tokens of a whole prompt, running requests) -> ms added
    overhead: float = 0.0  # per iteration
    first_token: Callable[[float], float] = lambda prompt: 0.0  # ms on the way to the client, outside the loop


@dataclass(frozen=True)
class EngineLimits:
    """The engine's settings."""

    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    kv_tokens: float = float("inf")


@dataclass
class EngineResult:
    """Every request, and the time integrals of what the engine did."""

    requests: list[Request]
    duration: float = 0.0  # ms
    running_time: float = 0.0  # integral of requests in decode, request-ms
    samples: list[tuple[float, int, int]] = field(default_factory=list)  # (time, waiting or prefilling, decoding)

    def done(self, skip_ms: float = 0.0) -> list[Request]:
        """Finished requests that arrived after `skip_ms`."""
        return [r for r in self.requests if r.finished == r.finished and r.arrival >= skip_ms]

    def ttft(self, skip_ms: float = 0.0) -> np.ndarray:
        """TTFT of every finished request, ms."""
        return np.array([r.first_token - r.arrival for r in self.done(skip_ms)])

    def tpot(self, skip_ms: float = 0.0) -> float:
        """Mean time per output token after the first, ms, over tokens."""
        found = [r for r in self.done(skip_ms) if r.output > 1]
        return sum(r.finished - r.first_token for r in found) / sum(r.output - 1 for r in found)

    def tokens_per_sec(self, start_ms: float, end_ms: float) -> float:
        """Output tokens of the requests that finished in the window, a second."""
        return 1000 * sum(r.output for r in self.requests if start_ms <= r.finished < end_ms) / (end_ms - start_ms)

    def concurrency(self, start_ms: float, end_ms: float) -> float:
        """Time-average of requests between first token and finish."""
        total = 0.0
        for r in self.requests:
            if r.first_token == r.first_token:
                end = r.finished if r.finished == r.finished else end_ms
                total += max(0.0, min(end, end_ms) - max(r.first_token, start_ms))
        return total / (end_ms - start_ms)


def serve(
    arrivals: Sequence[float],
    prompts: Sequence[int],
    outputs: Sequence[int],
    times: KernelTimes,
    limits: EngineLimits,
    horizon_ms: float = float("inf"),
) -> EngineResult:
    """Run the engine until every request has finished or `horizon_ms` has passed.

    Args:
        arrivals: ms, ascending.
        prompts: tokens.
        outputs: tokens, at least 1.
        times: kernel times.
        limits: the engine's settings.
        horizon_ms: stop here.
    """
    requests = [Request(*row) for row in zip(arrivals, prompts, outputs, strict=True)]
    result = EngineResult(requests)
    ahead = deque(requests)
    waiting: deque[Request] = deque()
    slots: list[Request] = []
    kv_used = 0.0
    now = 0.0
    while now < horizon_ms and (ahead or waiting or slots):
        while ahead and ahead[0].arrival <= now:
            waiting.append(ahead.popleft())
        decoding = [r for r in slots if r.prefilled >= r.prompt]
        budget = limits.max_num_batched_tokens - len(decoding)
        chunks: list[tuple[Request, int]] = []
        for r in slots:
            if r.prefilled < r.prompt and budget > 0:
                chunks.append((r, min(budget, r.prompt - r.prefilled)))
                budget -= chunks[-1][1]
        while waiting and budget > 0 and len(slots) < limits.max_num_seqs:
            r = waiting[0]
            if r.prompt + r.output > limits.kv_tokens:  # longer than the pool: refused, as engines do
                waiting.popleft()
                continue
            if kv_used + r.prompt + r.output > limits.kv_tokens:
                break
            slots.append(waiting.popleft())
            kv_used += r.prompt + r.output
            chunks.append((r, min(budget, r.prompt)))
            budget -= chunks[-1][1]
        if not decoding and not chunks:
            now = ahead[0].arrival if ahead else now
            continue
        n = len(decoding)
        context = sum(r.prompt + r.generated for r in decoding) / n if n else 0.0
        length = times.overhead + times.decode(max(n, 1), context or chunks[0][0].prompt)
        length += sum(times.prefill(r.prompt, n) * take / r.prompt for r, take in chunks)
        now += length
        result.running_time += n * length
        for r in decoding:
            r.generated += 1
        for r, take in chunks:
            r.prefilled += take
            if r.prefilled >= r.prompt:
                r.generated = 1
                r.first_token = now
        for r in [r for r in slots if r.generated >= r.output]:
            r.finished = now
            slots.remove(r)
            kv_used -= r.prompt + r.output
    for r in requests:
        if r.first_token == r.first_token:
            extra = times.first_token(r.prompt)
            r.first_token += extra
            r.finished += extra
    result.duration = now
    return result
