"""A request log served by the engine that the printed flags set up, request by request: the judge of every answer.

``LoggedRequests, EngineSettings -> request_engine -> Quality``. Stretches that follow each other are served as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from inferencegym_jax.physics.speculation import DRAFT_LENGTHS
from inferencegym_jax.recommend.engine_flags import Deployment
from inferencegym_jax.recommend.engine_settings import EngineSettings
from inferencegym_jax.recommend.log_requests import LoggedRequests
from inferencegym_jax.recommend.quality import Objective, Quality, block_sums, stood_for
from inferencegym_jax.recommend.request_engine import serve_requests
from inferencegym_jax.table import LatencyTable, profile_of

MOST_SERVED = 8  # of many engines that share a log so many are served, evenly picked
ALONE = 2000  # requests that are served one by one to see what an idle engine does
APART_MS = 1e7
KEPT = 24  # engines' results that are not computed again
PATIENCE_MS = 600_000.0  # after a stretch's last arrival; who has waited so long is late under any objective


@dataclass(frozen=True)
class Replayed:
    """What became of the log's requests.

    Attributes:
        quality: of one entry, as the search's.
        ttft_ms: float64[requests]; infinite for one that was turned away or had none ten minutes after the last
            arrival; NaN for one of an engine that was not looked at.
        tpot_ms: float64[requests], of single requests; 0 for one token, infinite where it was not finished by then.
        busiest_hour: share of the requests of the busiest hour within the objective.
        too_long: share of requests that are longer than the KV pool.
        pool_tokens: of one engine.
        engines: that shared the log.
    """

    quality: Quality
    ttft_ms: np.ndarray
    tpot_ms: np.ndarray
    busiest_hour: float
    too_long: float
    pool_tokens: int
    engines: int


class _Part(NamedTuple):
    """What an engine made of its requests."""

    ttft_ms: np.ndarray
    tpot_ms: np.ndarray
    peak: int
    pool: int


class EngineReplay:
    """Serves a log by engines of a table.

    Args:
        table: its engine profile has the times.
        requests: the log's.
        objective: what counts as good.
        acceptance_lengths: tokens that a verification of 0, 1, 2, 4 and 8 drafts yields.
    """

    def __init__(
        self, table: LatencyTable, requests: LoggedRequests, objective: Objective, acceptance_lengths: np.ndarray
    ):
        self.table: LatencyTable = table
        self.requests: LoggedRequests = requests
        self.objective: Objective = objective
        self.accepted: dict[int, float] = dict(
            zip((0, *DRAFT_LENGTHS), np.asarray(acceptance_lengths, np.float64).tolist(), strict=True)
        )
        starts, length = requests.starts, requests.length
        run = np.cumsum(np.diff(starts, prepend=starts[0] - length) != length)  # stretches without a gap are one run
        self._run: np.ndarray = run[requests.stretch]
        self._parts: dict[tuple[EngineSettings, int, int], _Part] = {}
        self._time_ms: np.ndarray = requests.time_ms + 1000.0 * starts[requests.stretch]
        last = np.searchsorted(run, run, side="right") - 1  # stretch of each stretch's run
        self._left_ms: np.ndarray = 1000.0 * (starts + length)[last][requests.stretch] - self._time_ms  # of the run

    def settings(self, made: Deployment) -> EngineSettings:
        """What a deployment's flags set; a ``kv_budget`` below 1 stands for what holds it in front of the engine."""
        knobs = made.knobs
        return EngineSettings(
            batch_size=int(knobs["batch_size"]),
            quant_tier=int(knobs["quant_tier"]),
            spec_length=int(knobs["spec_length"]),
            prefill_gpu=bool(knobs["prefill_disagg"]),
            memory_gb=made.memory_gb,
            token_budget=made.token_budget,
            kv_budget=float(knobs["kv_budget"]),
            accepted=self.accepted[int(knobs["spec_length"])],
        )

    def replay(self, made: Deployment, engines: int = 1, looked_at: int | None = None) -> Replayed:
        """Serve the log, each request by one of ``engines`` in turn.

        Args:
            made: each engine.
            engines: how many share the log.
            looked_at: how many of them are served, evenly picked; default: all, at most ``MOST_SERVED``.

        Raises:
            TableError: the weights do not fit.
        """
        settings, requests = self.settings(made), self.requests
        ttft, tpot = np.full(requests.count, np.nan), np.full(requests.count, np.nan)
        peak, pool = 0, 0
        for engine in np.unique(np.linspace(0, engines - 1, min(engines, looked_at or MOST_SERVED)).astype(int)):
            part = self._serve(settings, engines, int(engine))
            assert part is not None
            ttft[engine::engines], tpot[engine::engines] = part.ttft_ms, part.tpot_ms
            peak, pool = max(peak, part.peak), part.pool
        used_gb = made.weights_gb + made.runtime_gb + peak * profile_of(self.table).kv_bytes_per_token / 1e9
        return self._judged(made.knobs, ttft, tpot, engines, pool, used_gb)

    def replay_if(self, made: Deployment, least: float) -> Replayed | None:
        """The replay of one engine; None as soon as no more than the share ``least`` of the requests can be in time.

        Raises:
            TableError: the weights do not fit.
        """
        return None if self._serve(self.settings(made), 1, 0, least) is None else self.replay(made)

    def _serve(self, settings: EngineSettings, engines: int, engine: int, least: float = 0.0) -> _Part | None:
        """What one of ``engines`` makes of its requests; the last few are kept."""
        key = (settings, engines, engine)
        if key in self._parts:
            return self._parts[key]
        requests, profile = self.requests, profile_of(self.table)
        mine = np.arange(engine, requests.count, engines)
        ttft, tpot = np.empty(len(mine)), np.empty(len(mine))
        peak, pool, late = 0, int(profile.pool_tokens(settings.quant_tier, settings.memory_gb)), 0.0
        most_late = (1.0 - least) * float(requests.weight[mine].sum())
        for run in range(int(self._run[-1]) + 1):
            place = np.flatnonzero(self._run[mine] == run)
            which = mine[place]
            times, weight = self._time_ms[which], requests.weight[which]

            def late_so_far(now: float, first: np.ndarray, times: Any = times, weight: Any = weight) -> float:
                waited = np.where(np.isnan(first), now, first) - times
                return float(weight[waited > self.objective.ttft_ms].sum())

            def hopeless(now: float, first: np.ndarray, before: float = late, so_far: Any = late_so_far) -> bool:
                return before + so_far(now, first) > most_late

            until = (times[-1] if len(times) else 0.0) + PATIENCE_MS
            lengths = requests.prompt[which], requests.output[which]
            done = serve_requests(times, *lengths, settings, profile, until, hopeless if least else None)
            ttft[place] = np.nan_to_num(done.ttft_ms, nan=np.inf)
            tpot[place] = np.where(requests.output[which] > 1, np.nan_to_num(done.tpot_ms, nan=np.inf), 0.0)
            peak = max(peak, done.peak_tokens)
            late += float(weight[ttft[place] > self.objective.ttft_ms].sum())
            if least and late > most_late:
                return None
        self._parts[key] = _Part(ttft, tpot, peak, pool)
        if len(self._parts) > KEPT:
            del self._parts[next(iter(self._parts))]
        return self._parts[key]

    def _judged(
        self, knobs: Mapping[str, Any], ttft: np.ndarray, tpot: np.ndarray, engines: int, pool: int, used_gb: float
    ) -> Replayed:
        requests, objective = self.requests, self.objective
        known, weight = ~np.isnan(ttft), requests.weight
        good = (ttft <= objective.ttft_ms) & (tpot <= objective.tpot_ms)
        counted, good_sums, tokens = (
            block_sums(requests, (values * weight)[:, None], by_request=True)
            for values in (known, good, np.where(known, self._made_in_time(ttft, tpot), 0.0))
        )
        gpus = float(engines * (2 if knobs["prefill_disagg"] else 1))
        part = float((known * weight).sum() / weight.sum())
        of_second = np.repeat(requests.stretches.weights, requests.length)[:, None]
        price = gpus * part * self.table.gpu_second_cost
        cost = block_sums(requests, of_second * price, by_request=False)
        picked = stood_for(requests)
        picked = picked[known[picked]]
        attainment = float(good_sums.sum() / counted.sum())
        hour = requests.in_busiest_hour & known
        one = {
            "goodput": attainment * requests.log.rate,
            "attainment": attainment,
            "ttft_p50_ms": quantile(ttft[picked], 0.5),
            "ttft_p99_ms": quantile(ttft[picked], 0.99),
            "tpot_ms": _over_tokens(tpot[picked], requests.output[picked]),
            "tokens_per_sec": float(tokens.sum() / part / of_second.sum()),
            "cost_per_1k": float(1000.0 * cost.sum() / max(tokens.sum(), 1.0)),
            "memory_gb": used_gb,
            "gpus": gpus,
            "out_of_memory": 0.0,
        }
        quality = Quality(
            **{name: np.asarray([value]) for name, value in one.items()},
            good=good_sums,
            requests=counted,
            tokens=tokens,
            cost=cost,
        )
        too_long = float(((requests.prompt + requests.output > pool) * weight).sum() / weight.sum())
        busiest = float(good[hour].mean()) if hour.any() else attainment
        return Replayed(quality, ttft, tpot, busiest, too_long, pool, engines)

    def _made_in_time(self, ttft: np.ndarray, tpot: np.ndarray) -> np.ndarray:
        """Output tokens of each request that the engine makes before its run of stretches ends, float64[requests].

        What comes later is paid for by seconds that the log does not have; the step stops there too.
        """
        output, left_ms = self.requests.output, self._left_ms - ttft
        gaps = np.where(tpot > 0, np.floor(np.maximum(left_ms, 0.0) / np.where(tpot > 0, tpot, 1.0)), output)
        return np.where(left_ms >= 0, np.minimum(1.0 + gaps, output), 0.0)

    def alone(self, made: Deployment) -> tuple[np.ndarray, np.ndarray]:
        """TTFT and TPOT (ms) of requests that each find the engine idle, a sample of at most ``ALONE``: no number of
        engines does better. A request longer than the pool: infinite. TPOT counts only where it is limited."""
        requests = self.requests
        picked = stood_for(requests)
        picked = picked[np.linspace(0, len(picked) - 1, min(ALONE, len(picked))).astype(int)]
        times, output = np.arange(len(picked)) * APART_MS, requests.output[picked]
        profile = profile_of(self.table)
        if math.isinf(self.objective.tpot_ms):  # then those suffice in whose iteration the first one surfaces
            output = np.minimum(output, 1.0 + profile.first_token_extra_iterations)
        done = serve_requests(times, requests.prompt[picked], output, self.settings(made), profile)
        return np.where(done.rejected, np.inf, done.ttft_ms), np.nan_to_num(done.tpot_ms)


def _over_tokens(tpot: np.ndarray, output: np.ndarray) -> float:
    """Mean TPOT over the tokens of requests that were finished; infinite where none was."""
    finished = np.isfinite(tpot)
    return float((tpot * output)[finished].sum() / output[finished].sum()) if finished.any() else math.inf


def quantile(values: np.ndarray, share: float) -> float:
    """The smallest value that ``share`` of the values are not above; infinity counts as a value."""
    ordered = np.sort(values)
    return float(ordered[min(max(math.ceil(share * len(ordered)) - 1, 0), len(ordered) - 1)])
