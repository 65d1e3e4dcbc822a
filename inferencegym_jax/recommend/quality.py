"""What a replayed log came to for each controller: goodput, TTFT, cost, memory, and how sure that is.

``log_replay.Seconds, TTFT of every request -> Quality``; NumPy only. Intervals come from a bootstrap over blocks of the
log, because neighbouring requests share their load (block bootstrap: Kunsch, Annals of Statistics 17(3), 1989).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.models import finite_number, shown
from inferencegym_jax.numerics import bootstrap
from inferencegym_jax.recommend.log_requests import LoggedRequests
from inferencegym_jax.recommend.replay import Seconds

BLOCK_S = 60  # seconds of a bootstrap block
LEAST_BLOCKS = 4  # fewer give no interval
RESAMPLES = 400


@dataclass(frozen=True)
class Objective:
    """What counts as good service.

    Attributes:
        ttft_ms: limit on a request's time to first token.
        tpot_ms: limit on its time per output token, or infinity.
        attainment: share of requests that must be within both for the objective to be met.
    """

    ttft_ms: float
    tpot_ms: float = float("inf")
    attainment: float = 0.99


def check_objective(slo_ttft_ms: float, slo_tpot_ms: float | None, attainment: float) -> Objective:
    """The objective, checked.

    Raises:
        ValueError: a limit that is not above 0, or a share that is not between 0 and 1.
    """
    ttft = between("slo_ttft_ms", slo_ttft_ms, 0.0, 1e9)
    tpot = math.inf if slo_tpot_ms is None else between("slo_tpot_ms", slo_tpot_ms, 0.0, 1e9)
    return Objective(ttft, tpot, between("attainment", attainment, 0.0, 1.0))


def between(name: str, value: Any, low: float, high: float) -> float:
    """A number above ``low`` and at most ``high``.

    Raises:
        ValueError: it is not.
    """
    number = finite_number(value)
    if number is None or not low < number <= high:
        raise ValueError(f"{name} = {shown(value)}: must be a number above {low:g} and at most {high:g}")
    return number


@dataclass(frozen=True)
class Quality:
    """One entry a controller; float64[controllers] unless noted.

    Attributes:
        goodput: requests/s of the whole log within the objective.
        attainment: the same as a share of all requests. Of a log that is replayed in stretches these two, like all
            others, count each stretch for the part of the log that it stands for.
        ttft_p50_ms, ttft_p99_ms, tpot_ms: over requests; tpot over tokens.
        tokens_per_sec, cost_per_1k, memory_gb: mean, over all tokens, peak.
        gpus: mean number of GPUs.
        out_of_memory: share of seconds.
        good, requests, tokens, cost: float64[blocks, controllers]: sums of each block, for the bootstrap.
    """

    goodput: np.ndarray
    attainment: np.ndarray
    ttft_p50_ms: np.ndarray
    ttft_p99_ms: np.ndarray
    tpot_ms: np.ndarray
    tokens_per_sec: np.ndarray
    cost_per_1k: np.ndarray
    memory_gb: np.ndarray
    gpus: np.ndarray
    out_of_memory: np.ndarray
    good: np.ndarray
    requests: np.ndarray
    tokens: np.ndarray
    cost: np.ndarray

    def take(self, index: Any) -> Quality:
        """The entries of some controllers."""
        return Quality(**{f.name: getattr(self, f.name)[..., index] for f in dataclasses.fields(self)})


def join(parts: list[Quality]) -> Quality:
    """Several sets of controllers as one."""
    names = [f.name for f in dataclasses.fields(Quality)]
    return Quality(**{name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names})


def judge(seconds: Seconds, ttft: np.ndarray, requests: LoggedRequests, objective: Objective) -> Quality:
    """Judge every controller.

    Args:
        seconds: fields of shape (stretch seconds in order of the stretches, controllers).
        ttft: float32[requests, controllers], ms.
        requests: the log's.
        objective: what counts as good.
    """
    place = requests.stretch.astype(np.int64) * requests.length + requests.second
    arrivals = np.maximum(seconds.arrivals, 1.0)
    served = np.clip(1.0 - seconds.rejected / arrivals, 0.0, 1.0)
    in_time = (ttft <= objective.ttft_ms) & (np.asarray(seconds.tpot_ms)[place] <= objective.tpot_ms)
    weight = requests.weight[:, None]
    of_second = np.repeat(requests.stretches.weights, requests.length)[:, None]
    sums, count, tokens, cost = (
        block_sums(requests, values, by_request)
        for values, by_request in (
            (in_time * served[place] * weight, True),
            (weight, True),
            (np.asarray(seconds.tokens, np.float64) * of_second, False),
            (np.asarray(seconds.cost, np.float64) * of_second, False),
        )
    )
    attainment = sums.sum(axis=0) / count.sum()
    middle, tail = np.percentile(ttft[stood_for(requests)], (50, 99), axis=0)
    made = np.asarray(seconds.tokens, np.float64) * of_second
    return Quality(
        goodput=attainment * requests.log.rate,
        attainment=attainment,
        ttft_p50_ms=middle,
        ttft_p99_ms=tail,
        tpot_ms=(seconds.tpot_ms * made).sum(axis=0) / np.maximum(made.sum(axis=0), 1.0),
        tokens_per_sec=made.sum(axis=0) / of_second.sum(),
        cost_per_1k=1000.0 * cost.sum(axis=0) / np.maximum(tokens.sum(axis=0), 1.0),
        memory_gb=np.asarray(seconds.memory_gb).max(axis=0),
        gpus=1.0 + (np.asarray(seconds.action.prefill_disagg, np.float64) * of_second).sum(axis=0) / of_second.sum(),
        out_of_memory=np.asarray(seconds.oom, np.float64).mean(axis=0),
        good=sums,
        requests=np.broadcast_to(count, sums.shape),
        tokens=tokens,
        cost=cost,
    )


def block_sums(requests: LoggedRequests, values: np.ndarray, by_request: bool) -> np.ndarray:
    """Sums over the blocks of the bootstrap, float64[blocks, columns].

    Args:
        requests: the log's.
        values: float[requests or seconds, columns].
        by_request: which of the two.
    """
    blocks = max(requests.seconds // BLOCK_S, 1)
    second = np.arange(requests.seconds)
    if by_request:
        second = requests.stretch.astype(np.int64) * requests.length + requests.second
    return _sum_blocks(values, np.searchsorted(np.minimum(second // BLOCK_S, blocks - 1), np.arange(blocks)))


def stood_for(requests: LoggedRequests) -> np.ndarray:
    """Indices of requests, as many as there are, each as often as its weight says: what percentiles are taken over."""
    if (requests.stretches.weights == requests.stretches.weights[0]).all():
        return np.arange(requests.count)
    shares = np.cumsum(requests.weight)
    return np.searchsorted(shares, (np.arange(requests.count) + 0.5) * (shares[-1] / requests.count))


def _sum_blocks(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    # an empty block would repeat its neighbour's first row in reduceat
    sums = np.zeros((len(edges), values.shape[1]))
    ends = [*edges[1:], len(values)]
    for i, (start, end) in enumerate(zip(edges, ends, strict=True)):
        sums[i] = values[start:end].sum(axis=0, dtype=np.float64)
    return sums


def gain_intervals(before: Quality, after: Quality, rate: float, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """What changing from one controller to another gains on the same log, with 95 % intervals.

    Args:
        before: of one controller (``take([i])``).
        after: of the other.
        rate: requests/s of the log.
        seed: of the resampling.

    Returns:
        "goodput" (requests/s), "attainment" (share), "cost_per_1k": {"change", "low", "high"}; the last two are None
        where the log has fewer than four blocks.
    """
    blocks = before.good.shape[0]
    counts = bootstrap.draw_counts(blocks, RESAMPLES, seed) if blocks >= LEAST_BLOCKS else None

    def changes(weights: np.ndarray) -> dict[str, np.ndarray]:
        (good_a, good_b), (requests_a, requests_b), (tokens_a, tokens_b), (cost_a, cost_b) = (
            [weights @ getattr(quality, name)[:, 0] for quality in (before, after)]
            for name in ("good", "requests", "tokens", "cost")
        )
        price_a, price_b = (
            1000.0 * cost / np.maximum(tokens, 1.0) for cost, tokens in ((cost_a, tokens_a), (cost_b, tokens_b))
        )
        return {
            "goodput": rate * (good_b / requests_b - good_a / requests_a),
            "attainment": good_b / requests_b - good_a / requests_a,
            "cost_per_1k": price_b - price_a,
        }

    point, spread = changes(np.ones(blocks)), None if counts is None else changes(counts)
    gains: dict[str, dict[str, float | None]] = {}
    for name, value in point.items():
        low, high = (None, None) if spread is None else bootstrap.percentiles(spread[name])
        gains[name] = {"change": float(value), "low": low, "high": high}
    return gains


def tail_interval(ttft: np.ndarray, requests: LoggedRequests, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the 99th percentile of one or the difference of two TTFT columns, by the same blocks.

    Args:
        ttft: float32[requests] or float32[requests, 2] (the difference is second minus first).
        requests: the log's.
        seed: of the resampling.
    """
    columns = ttft[:, None] if ttft.ndim == 1 else ttft
    blocks = max(requests.seconds // BLOCK_S, 1)
    if blocks < LEAST_BLOCKS:
        return None
    place = requests.stretch.astype(np.int64) * requests.length + requests.second
    block = np.minimum(place // BLOCK_S, blocks - 1)
    order, weight = np.argsort(columns, axis=0), requests.weight
    resampled = np.empty((RESAMPLES, columns.shape[1]))
    for i, counts in enumerate(bootstrap.draw_counts(blocks, RESAMPLES, seed)):
        for j in range(columns.shape[1]):
            total = np.cumsum(counts[block[order[:, j]]] * weight[order[:, j]])
            resampled[i, j] = columns[order[min(int(np.searchsorted(total, 0.99 * total[-1])), len(total) - 1), j], j]
    return bootstrap.percentiles(resampled[:, 0] if ttft.ndim == 1 else resampled[:, 1] - resampled[:, 0])
