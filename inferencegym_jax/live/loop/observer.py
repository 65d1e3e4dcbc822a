"""One second of measured timings as the environment's own types: ``MetricsSnapshot``, ``WorkloadState``,
``RequestOutcome``, ``ServeObservation``.

The live environment and the proxy both report their requests here, so that a policy sees the same numbers in both.
They are counted as the open-loop physics counts them: violations are requests, each once, and a second costs its GPUs.
What is measured differs in one place, on purpose: TTFT is that of the requests whose first token came in this second
(arrival at the gate to first token).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from inferencegym_jax.live.loop.admission_line import AdmissionLine
from inferencegym_jax.live.loop.fates import Ended, Fates, Watched, violations
from inferencegym_jax.live.server.probe import EngineMetrics
from inferencegym_jax.models import (
    EPISODE_LENGTH,
    OBSERVATION,
    MetricsSnapshot,
    Phase,
    RequestOutcome,
    ServeObservation,
    WorkloadState,
)
from inferencegym_jax.physics.observation import observe
from inferencegym_jax.tasks import calibration
from inferencegym_jax.traffic.calendar import BUCKET_EDGES, EMA_STEPS, WINDOW


@dataclass
class _Second:
    """What happened since the last ``close``."""

    arrivals: list[int] = field(default_factory=lambda: [0, 0, 0])
    prompt_tokens: float = 0.0
    rejected: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    gap_s: float = 0.0
    gaps: int = 0


@dataclass(frozen=True)
class Snapshot:
    """What one second measured, in the environment's types, and its length."""

    metrics: MetricsSnapshot
    workload: WorkloadState
    outcome: RequestOutcome
    observation: ServeObservation
    seconds: float
    ttft_p90_ms: float
    ttft_mean_ms: float


class Observer:
    """Collects events of requests and closes a window once a second.

    Args:
        slo_ms: TTFT objective of each class; inf for none.
        gate: whose line is reported.
        base_memory_gb: memory of weights and runtime; the KV cache's used share is added where the server tells it.
        cost_scale: cost of one GPU-second, as in the latency table (``scale x 1000 / tokens per second``); default:
            calibration's.
        episode_length: steps after which the observation's timestep begins again.
        slo_tpot_ms: objective on the time per output token of each class; inf for none.
    """

    def __init__(
        self,
        slo_ms: Any,
        gate: AdmissionLine[Any],
        base_memory_gb: float = 0.0,
        cost_scale: float | None = None,
        episode_length: int = EPISODE_LENGTH,
        slo_tpot_ms: Any = (np.inf, np.inf, np.inf),
    ):
        self.fates = Fates(slo_ms, slo_tpot_ms)
        self.gate = gate
        self.base_memory_gb = base_memory_gb
        self.cost_scale = float(calibration()["cost_scale"]) if cost_scale is None else cost_scale
        self.episode_length = episode_length
        self._second = _Second()
        self._admitted = gate.admitted
        self._history: deque[list[int]] = deque(maxlen=WINDOW)
        self._last = EngineMetrics()
        self.ema = 0.0
        self.prompt_len = float(OBSERVATION["mean_prompt_len"].low)
        self.ttft = (1.0, 1.0, 1.0, 1.0)  # ms: p50, p90, p99, mean
        self.tpot = 1.0
        self.cost_so_far = 0.0
        self.steps = 0

    def arrive(self, now: float, klass: int, prompt_tokens: float, output_tokens: float = 0.0) -> Watched:
        """A request came in, which asks for ``output_tokens`` at most, where that is known."""
        self._second.arrivals[klass] += 1
        self._second.prompt_tokens += prompt_tokens
        watched = Watched(now, klass, output_tokens)
        self.fates.arrive(watched)
        return watched

    def reject(self, watched: Watched) -> None:
        """It was turned away because the queue was full."""
        self._second.rejected += 1
        self.fates.reject(watched)

    def token(self, watched: Watched, now: float, count: int = 1) -> None:
        """``count`` of its tokens came."""
        second = self._second
        second.tokens += count
        watched.tokens += count
        if watched.first_s is None:
            watched.first_s = now
            second.ttft_ms.append(1000.0 * (now - watched.arrived_s))
            self.fates.first_token(watched, now)
            count -= 1
        if count and watched.last_s is not None:
            second.gap_s += now - watched.last_s
            second.gaps += count
        watched.last_s = now

    def admit_untimed(self, watched: Watched, now: float) -> None:
        """A request whose answer comes in one piece was admitted: its wait counts, a first token will not be seen."""
        self.fates.first_token(watched, now)

    def add_tokens(self, count: int, watched: Watched | None = None) -> None:
        """Tokens that were not seen one by one, of a request if it is known."""
        self._second.tokens += count
        if watched is not None:
            watched.tokens += count

    def finish(self, watched: Watched, ended: Ended = "completed", tokens: int | None = None) -> None:
        """It ended; ``tokens`` that it got, where the engine said so."""
        self.fates.finish(watched, ended, tokens)

    def close(
        self,
        now: float,
        seconds: float,
        engine: EngineMetrics | None,
        phase: Phase = Phase.STEADY,
        gpus: float = 1.0,
        quality: float = 1.0,
    ) -> Snapshot:
        """End the window.

        Args:
            now: on the requests' clock.
            seconds: length of the window; rates are divided by it.
            engine: a reading of the server's own figures, if it has any.
            phase: where the calendar stands.
            gpus: that are paid for.
            quality: what the weight format keeps of the 16-bit model's answers, 1 at most.
        """
        outcome = self.fates.close(now, gpus * seconds, quality)
        second, self._second = self._second, _Second()
        served, self._admitted = self.gate.admitted - self._admitted, self.gate.admitted
        engine = engine or EngineMetrics()
        arrivals = sum(second.arrivals)
        self.steps += 1
        self._history.append(second.arrivals)
        self.ema += 2.0 / (EMA_STEPS + 1) * (arrivals / seconds - self.ema)
        if arrivals:
            self.prompt_len = second.prompt_tokens / arrivals
        self._latencies(second, now)
        tpot_ms = max(self.tpot, 1.0)
        # a second with fewer tokens than one request gets is billed as if it had those, as in the simulator
        cost = 1000.0 * self.cost_scale * gpus * seconds / max(second.tokens, 1000.0 * seconds / tpot_ms)
        self.cost_so_far += cost
        metrics = MetricsSnapshot(
            ttft_p50_ms=np.float32(max(self.ttft[0], 1.0)),
            ttft_p99_ms=np.float32(max(self.ttft[2], 1.0)),
            tpot_ms=np.float32(tpot_ms),
            tokens_per_sec=np.float32(second.tokens / seconds),
            gpu_memory_gb=np.float32(self._memory(engine)),
            cost_per_1k=np.float32(cost),
            spec_accept_rate=np.float32(self._accepted(engine)),
            eviction_events=np.int32(_delta(engine.preemptions, self._last.preemptions)),
            slo_violations=np.int32(violations(outcome)),
        )
        self._last = engine
        workload = self._workload(second, arrivals, served, phase)
        violated = min(violations(outcome) / max(arrivals, 1), 1.0)
        p90, mean = self.ttft[1], self.ttft[3]
        observation = self._observation(metrics, workload, engine, violated)
        return Snapshot(metrics, workload, outcome, observation, seconds, p90, mean)

    def _latencies(self, second: _Second, now: float) -> None:
        if second.ttft_ms:
            percentiles = (float(x) for x in np.percentile(second.ttft_ms, (50, 90, 99)))
            self.ttft = (*percentiles, float(np.mean(second.ttft_ms)))
        elif (first := self.fates.oldest_pending) is not None:  # nothing came: at least as long as the oldest waits
            oldest = 1000.0 * (now - first.arrived_s)
            self.ttft = tuple(max(oldest, before) for before in self.ttft)
        if second.gaps:
            self.tpot = 1000.0 * second.gap_s / second.gaps

    def _memory(self, engine: EngineMetrics) -> float:
        if engine.kv_usage is None or engine.kv_cache_gb is None:
            return self.base_memory_gb
        return self.base_memory_gb + engine.kv_usage * engine.kv_cache_gb

    def _accepted(self, engine: EngineMetrics) -> float:
        drafted = _delta(engine.draft_tokens, self._last.draft_tokens)
        return _delta(engine.accepted_tokens, self._last.accepted_tokens) / drafted if drafted else 0.0

    def _workload(self, second: _Second, arrivals: int, served: int, phase: Phase) -> WorkloadState:
        counts = np.sum(self._history, axis=0)
        shares = counts / counts.sum() if counts.sum() else np.array([1.0, 0.0, 0.0])
        return WorkloadState(
            arrival_rate=np.float32(self.ema),
            mean_prompt_len=np.float32(self.prompt_len),
            prompt_len_bucket=np.int32(np.digitize(self.prompt_len, BUCKET_EDGES)),
            queue_depth=np.int32(self.gate.waiting),
            priority_distribution=shares.astype(np.float32),
            is_burst=np.bool_(phase == Phase.BURST),
            phase=np.int32(phase),
            arrivals=np.int32(arrivals),
            served=np.int32(served),
            rejected=np.int32(second.rejected),
            running=np.int32(self.gate.inside),
        )

    def _observation(
        self, metrics: MetricsSnapshot, workload: WorkloadState, engine: EngineMetrics, violated_share: float
    ) -> ServeObservation:
        limit = self.gate.limit
        occupancy = engine.kv_usage
        if occupancy is None:
            occupancy = self.gate.inside / limit if limit else 0.0
        seen = _observe(
            metrics,
            workload,
            kv_cache_occupancy=occupancy,
            timestep=(self.steps - 1) % self.episode_length + 1,
            cost_so_far=self.cost_so_far,
            slo_violation_rate=violated_share,
        )
        return jax.tree.map(np.asarray, seen)


_observe = jax.jit(observe)  # operation by operation it takes milliseconds of every second


def _delta(now: float | None, before: float | None) -> float:
    """Rise of a counter; 0 where it is unknown or was reset."""
    return max(now - before, 0.0) if now is not None and before is not None else 0.0
