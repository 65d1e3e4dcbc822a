"""Of a long log the busiest stretches are always replayed, and what is replayed stands for all of it."""

from __future__ import annotations

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.traffic.request_log import RequestLog
from inferencegym_jax.traffic.stretches import (
    MOST_REQUESTS,
    Stretches,
    busiest_hour,
    representative_seeds,
    representative_stretches,
)


def log_of(counts: np.ndarray, prompt: float = 500.0) -> RequestLog:
    lengths = np.full(len(counts), prompt, np.float32)
    return RequestLog(counts.astype(np.int32), lengths, lengths / 4, int(counts.sum()))


def covered(log: RequestLog, found: Stretches) -> np.ndarray:
    """bool[seconds]: is it replayed."""
    mask = np.zeros(log.seconds, bool)
    for start in found.starts:
        mask[start : start + found.length] = True
    return mask


def day(seed: int = 0, peak: float = 12.0, low: float = 0.3, begins: int = 43_300) -> RequestLog:
    """A day of which an hour has most of the requests; it does not begin on a multiple of 200 s."""
    rng = np.random.default_rng(seed)
    rate = np.full(86_400, low)
    rate[begins : begins + 3600] = peak
    return log_of(rng.poisson(rate))


def test_a_short_log_is_replayed_whole():
    log = log_of(np.ones(7200))
    found = representative_stretches(log)
    assert found.starts.tolist() == [0] and found.length == 7200 and found.weights.tolist() == [1.0]


def test_the_busiest_hour_is_replayed_and_the_rest_is_stood_for():
    log = day()
    found = representative_stretches(log)
    first, end = found.hour
    assert abs(first - 43_300) <= 100 and end - first == 3600 and covered(log, found)[first:end].all()
    assert (found.starts % 200 == 0).all() and (np.diff(found.starts) >= found.length).all()
    in_stretch = np.array([log.counts[s : s + found.length].sum() for s in found.starts])
    assert (found.weights * in_stretch).sum() == pytest.approx(log.requests)
    busy = (found.starts >= first) & (found.starts < end)
    # a request of the hour stands for itself: its share of all is what it is in the log
    share = (found.weights * in_stretch)[busy].sum() / log.requests
    assert share == pytest.approx(log.counts[first:end].sum() / log.requests, abs=0.01)


def test_a_burst_of_a_minute_is_replayed():
    counts = np.random.default_rng(1).poisson(1.0, 60_000)
    counts[47_020:47_070] += 40
    counts[20_000:23_600] += 2  # the busiest hour is another
    log = log_of(counts)
    found = representative_stretches(log)
    assert covered(log, found)[47_020:47_070].all() and covered(log, found)[20_000:23_600].all()


def test_a_lone_first_row_is_not_what_is_replayed():
    counts = np.zeros(200_000)
    counts[0] = 1
    counts[-2500:] = 5
    log = log_of(counts)
    found = representative_stretches(log)
    replayed = int(log.counts[covered(log, found)].sum())
    assert replayed > 0.9 * log.requests
    first, end = busiest_hour(log)
    assert log.counts[first:end].sum() > 0.9 * log.requests


def test_the_busiest_log_is_cut_to_what_can_be_replayed():
    log = log_of(np.full(86_400, 30) + (np.arange(86_400) // 3600 == 7) * 30)
    found = representative_stretches(log)
    replayed = int(log.counts[covered(log, found)].sum())
    assert replayed <= MOST_REQUESTS
    assert covered(log, found)[7 * 3600 : 8 * 3600].any()


@pytest.mark.parametrize("seconds", [150, 330, 1000, 5000])
def test_a_short_log_of_many_requests_has_stretches_within_it(seconds: int):
    log = log_of(np.full(seconds, 1200))
    found = representative_stretches(log)
    assert len(found.starts) and (found.starts + found.length <= seconds).all()
    in_stretch = np.array([log.counts[s : s + found.length].sum() for s in found.starts])
    assert (found.weights * in_stretch).sum() == pytest.approx(log.requests)


@pytest.mark.parametrize("seconds", [200, 1800])
def test_episodes_of_a_log_are_of_every_load(seconds: int):
    log = day()
    seeds = representative_seeds(log, seconds, 16)
    loads = [log.counts[200 * s : 200 * s + seconds].sum() for s in range(-(-log.seconds // 200))]
    assert len(seeds) == 16 and np.argmax(loads) in seeds
    assert {int(s) for s in seeds} != set(range(16))
    mine = np.array([loads[s] for s in seeds])
    assert mine.mean() == pytest.approx(np.mean(loads), rel=0.35)  # equal parts of the log
    assert np.array_equal(representative_seeds(log_of(np.ones(3000)), seconds, 16), np.arange(16))


def test_the_normalisers_of_a_log_know_its_busiest_hour(monkeypatch: pytest.MonkeyPatch):
    from inferencegym_jax.registry import problems

    asked: list[np.ndarray] = []

    def noted(env: object, params: object, seeds: np.ndarray) -> None:
        asked.append(np.asarray(seeds))
        raise InterruptedError

    monkeypatch.setattr(problems, "normalise", noted)
    log = day(seed=5)
    with pytest.raises(InterruptedError):
        ig.make(4, trace=log)
    (seeds,) = asked
    assert any(43_300 <= 200 * int(s) < 46_900 for s in seeds)
