"""Which stretches of a long request log stand for all of it: always the busiest, and for the rest a few of each load.

``RequestLog -> windows -> Stretches``: stratified sampling by load (tokens), so that every request of the log is stood
for by requests under a like load, and the weights say how many each stands for. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferencegym_jax.models import EPISODE_LENGTH
from inferencegym_jax.traffic.request_log import RequestLog

HOUR_S = 3600
MINUTE_S = 60
WHOLE_LOG_S = 7200  # a log of up to so many seconds is replayed whole
MOST_REQUESTS = 150_000  # in all stretches; a busier log is replayed for less time
PLANS = ((1200, 3, 8), (600, 3, 8), (200, 3, 8), (200, 2, 4), (200, 1, 2))
"""(seconds of a stretch, stretches of the busiest hour, of the rest): the first with few enough requests is taken."""


@dataclass(frozen=True, eq=False)
class Stretches:
    """Stretches of a log and what each stands for.

    Attributes:
        starts: int64[stretches], seconds of the log, ascending multiples of 200, where an episode can begin.
        length: seconds of each.
        weights: float64[stretches], requests of the log for which one of a stretch's requests stands.
        hour: first second and end of the busiest hour (by tokens); the whole of a shorter log.
    """

    starts: np.ndarray
    length: int
    weights: np.ndarray
    hour: tuple[int, int]


def representative_stretches(log: RequestLog) -> Stretches:
    """The whole log where it is short, else its busiest hour, its busiest minute and a few stretches of each load."""
    hour = busiest_hour(log)
    if log.seconds <= EPISODE_LENGTH or log.seconds <= WHOLE_LOG_S and log.requests <= MOST_REQUESTS:
        return Stretches(np.zeros(1, np.int64), log.seconds, np.ones(1), hour)
    picked: dict[int, float] = {}
    length = 0
    for length, in_hour, elsewhere in PLANS:
        picked = _pick(log, hour, length, in_hour, elsewhere)
        if sum(_requests(log, start, length) for start in picked) <= MOST_REQUESTS:
            break
    starts = np.asarray(sorted(picked), np.int64)
    weights = np.asarray([picked[start] for start in starts.tolist()])
    stood_for = sum(w * _requests(log, s, length) for s, w in zip(starts.tolist(), weights.tolist(), strict=True))
    return Stretches(starts, length, weights * (log.requests / stood_for), hour)


def busiest_hour(log: RequestLog) -> tuple[int, int]:
    """First second (a multiple of 200) and end of the hour with the most tokens; the whole of a shorter log."""
    if log.seconds <= HOUR_S:
        return 0, log.seconds
    sums = np.concatenate([[0.0], np.cumsum(_tokens(log))])
    starts = np.arange(0, log.seconds, EPISODE_LENGTH)
    loads = sums[np.minimum(starts + HOUR_S, log.seconds)] - sums[starts]
    # the last hour ends with the log, though no episode may begin there
    start = min(int(starts[int(np.argmax(loads))]), (log.seconds - HOUR_S) // EPISODE_LENGTH * EPISODE_LENGTH)
    return start, start + HOUR_S


def representative_seeds(log: RequestLog, seconds: int, count: int) -> np.ndarray:
    """Seeds of ``count`` episodes of a log that stand for all in equal parts, the busiest among them.

    Episodes in which nobody comes are left out. A log of no more than ``count`` times 200 s is covered from its start,
    and past its end from its start again.

    Args:
        log: seed s begins at its second 200 s.
        seconds: of an episode.
        count: how many.
    """
    if log.seconds <= count * EPISODE_LENGTH:
        return np.arange(count)
    around = np.concatenate([_tokens(log), _tokens(log)[:seconds]]) if seconds < log.seconds else _tokens(log)
    sums = np.concatenate([[0.0], np.cumsum(around)])
    starts = np.arange(0, log.seconds, EPISODE_LENGTH)
    loads = sums[np.minimum(starts + seconds, len(sums) - 1)] - sums[starts]
    order = np.argsort(loads, kind="stable")
    order = order[loads[order] > 0]
    parts = np.array_split(order, min(count, len(order)))
    seeds = [part[len(part) // 2] for part in parts[:-1]] + [order[-1]]
    return np.resize(np.asarray(seeds), count)


def _tokens(log: RequestLog) -> np.ndarray:
    return log.counts * (log.prompts.astype(np.float64) + log.outputs)


def _requests(log: RequestLog, start: int, length: int) -> int:
    return int(log.counts[start : start + length].sum())


def _pick(log: RequestLog, hour: tuple[int, int], length: int, in_hour: int, elsewhere: int) -> dict[int, float]:
    """Start -> requests of the log that one request of the stretch stands for."""
    tokens = _tokens(log)
    inside = np.arange(hour[0], max(hour[1] - length, hour[0]) + 1, length)
    outside = np.concatenate(
        [np.arange(0, hour[0] - length + 1, length), np.arange(hour[1], log.seconds - length + 1, length)]
    )
    picked = _strata(log, tokens, inside, length, in_hour)
    if len(outside):
        minutes = tokens[: len(tokens) // MINUTE_S * MINUTE_S].reshape(-1, MINUTE_S).sum(axis=1)
        ends = (outside + length) // MINUTE_S
        steepest = [float(minutes[a:b].max()) for a, b in zip(outside // MINUTE_S, ends, strict=True)]
        burst = int(outside[int(np.argmax(steepest))])
        picked |= _strata(log, tokens, np.asarray([burst]), length, 1)
        picked |= _strata(log, tokens, outside[outside != burst], length, elsewhere)
    return picked


def _strata(log: RequestLog, tokens: np.ndarray, windows: np.ndarray, length: int, count: int) -> dict[int, float]:
    """The busiest window, and of the others, in order of load, one of each of ``count`` - 1 parts of equal load."""
    requests = {int(w): _requests(log, int(w), length) for w in windows}
    loads = {w: float(tokens[w : w + length].sum()) for w in requests if requests[w]}
    order = sorted(loads, key=lambda w: -loads[w])
    if len(order) <= count:
        return dict.fromkeys(order, 1.0)
    picked = {order[0]: 1.0}
    rest = order[1:] if count > 1 else []
    if count == 1:  # the one that is replayed stands for all
        return {order[0]: sum(requests.values()) / requests[order[0]]}
    shares = np.cumsum([loads[w] for w in rest])
    part = np.minimum((shares / shares[-1] * (count - 1) - 1e-9).astype(int), count - 2)
    for i in range(count - 1):
        members = [w for w, p in zip(rest, part.tolist(), strict=True) if p == i]
        if not members:
            continue
        total = sum(requests[w] for w in members)
        typical = sum(loads[w] * requests[w] for w in members) / total  # the load that a request of these meets
        middle = min(members, key=lambda w: abs(loads[w] - typical))
        picked[middle] = total / requests[middle]
    return picked
