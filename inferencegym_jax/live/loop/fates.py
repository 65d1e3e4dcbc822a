"""What became of a live engine's requests, by class, as the simulator's ``RequestOutcome`` counts it.

Each request is counted once, when its fate is known: late when its wait passes the TTFT objective of its class (or at
its first token, or at its finish where TPOT is over), on time at its finish, rejected or failed when that happens. So
``asked = on_time + late + rejected + failed + the growth of present``, class by class. A client that leaves before
its request is judged takes it out of the count: ``asked`` of that second is one less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from inferencegym_jax.live.loop.admission_line import CLASSES
from inferencegym_jax.models import RequestOutcome

Fate = Literal["on_time", "late", "rejected", "failed"]
FATES: tuple[Fate, ...] = ("on_time", "late", "rejected", "failed")
Ended = Literal["completed", "failed", "gone"]  # gone: the client left, or the episode ended first


@dataclass(eq=False)
class Watched:
    """One request from its arrival on; times on one monotonic clock, seconds."""

    arrived_s: float
    klass: int
    output_tokens: float = 0.0  # that it asks for
    first_s: float | None = None
    last_s: float | None = None
    tokens: int = 0  # that it got
    fate: Fate | Literal["gone"] | None = None


class Fates:
    """Counts of the second in progress, and who is not judged yet.

    Args:
        slo_ttft_ms: objective on the time to first token by class; inf for none.
        slo_tpot_ms: objective on the time per output token by class; inf for none.
    """

    def __init__(self, slo_ttft_ms: Any, slo_tpot_ms: Any):
        self.slo_ttft_s = np.asarray(slo_ttft_ms, np.float64) / 1000.0
        self.slo_tpot_s = np.asarray(slo_tpot_ms, np.float64) / 1000.0
        self.present = np.zeros(len(CLASSES))
        self._pending: dict[Watched, None] = {}  # without a first token yet, oldest first
        self._start()

    def _start(self) -> None:
        self._asked = np.zeros(len(CLASSES))
        self._counts = {fate: np.zeros(len(CLASSES)) for fate in FATES}
        self._tokens_asked = self._on_time_tokens = 0.0

    @property
    def oldest_pending(self) -> Watched | None:
        """The first to come of those without a first token."""
        return next(iter(self._pending), None)

    def arrive(self, watched: Watched) -> None:
        """A request came in."""
        self._pending[watched] = None
        self.present[watched.klass] += 1
        self._asked[watched.klass] += 1
        self._tokens_asked += watched.output_tokens

    def reject(self, watched: Watched) -> None:
        """It was turned away."""
        self._pending.pop(watched, None)
        self._judge(watched, "rejected")

    def first_token(self, watched: Watched, now: float) -> None:
        """Its first token came, or an answer in one piece was admitted, whose first token is never seen."""
        self._pending.pop(watched, None)
        self._judge_wait(watched, now)

    def finish(self, watched: Watched, ended: Ended, tokens: int | None = None) -> None:
        """It ended.

        Args:
            watched: the request.
            ended: how.
            tokens: that it got, where the engine said so; default: those that were seen.
        """
        self._pending.pop(watched, None)
        if watched.fate is not None:
            return
        count = watched.tokens if tokens is None else tokens
        if ended == "failed":
            self._judge(watched, "failed")
        elif ended == "gone":
            watched.fate = "gone"
            self.present[watched.klass] -= 1
            self._asked[watched.klass] -= 1
            self._tokens_asked -= watched.output_tokens
        elif _tpot_s(watched, count) > self.slo_tpot_s[watched.klass]:
            self._judge(watched, "late")
        else:
            self._judge(watched, "on_time")
            self._on_time_tokens += count

    def close(self, now: float, gpu_seconds: float, quality: float) -> RequestOutcome:
        """End the second: float32[3] by class and float32 scalars, see ``RequestOutcome``."""
        for watched in self._pending:  # late already, whenever the first token comes
            self._judge_wait(watched, now)
        counts = {fate: self._counts[fate].astype(np.float32) for fate in FATES}
        outcome = RequestOutcome(
            asked=self._asked.astype(np.float32),
            present=self.present.astype(np.float32),
            tokens_asked=np.float32(self._tokens_asked),
            on_time_tokens=np.float32(self._on_time_tokens),
            gpu_seconds=np.float32(gpu_seconds),
            quality=np.float32(quality),
            **counts,
        )
        self._start()
        return outcome

    def _judge_wait(self, watched: Watched, now: float) -> None:
        if now - watched.arrived_s > self.slo_ttft_s[watched.klass]:
            self._judge(watched, "late")

    def _judge(self, watched: Watched, fate: Fate) -> None:
        if watched.fate is None:
            watched.fate = fate
            self.present[watched.klass] -= 1
            self._counts[fate][watched.klass] += 1


def violations(outcome: RequestOutcome) -> int:
    """Requests that became late, were rejected or failed in the second."""
    return round(float(np.sum(outcome.late) + np.sum(outcome.rejected) + np.sum(outcome.failed)))


def _tpot_s(watched: Watched, tokens: int) -> float:
    """Mean time per output token after the first, seconds; 0 where there is one token, or none was seen."""
    if watched.first_s is None or watched.last_s is None or tokens < 2:
        return 0.0
    return (watched.last_s - watched.first_s) / (tokens - 1)
