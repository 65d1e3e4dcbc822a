"""The fleet's reference on cases by hand, and the compiled fleet against its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.reference.compare_fleet import figures
from tests.reference.fleet import Fleet, serve_fleet
from tests.reference.run_fleet_cases import CASES, OUT, PROFILE
from tests.reference.serving import serve
from tests.reference.settings import Settings
from tests.reference.traffic import Requests, requests_at

PROFILE_JSON = json.loads(PROFILE.read_text())


def some_requests(count: int = 60, gap_ms: float = 150.0) -> Requests:
    rng = np.random.default_rng(3)
    return requests_at(
        np.sort(rng.random(count)) * gap_ms * count, rng.integers(50, 900, count), rng.integers(2, 120, count)
    )


def test_one_gpu_is_the_engine() -> None:
    requests = some_requests()
    mine = serve_fleet(requests, Settings(), PROFILE_JSON, [1] * 4)
    other = serve(requests, Settings(), PROFILE_JSON)
    np.testing.assert_allclose(mine.first_token_ms, other.first_token_ms)
    np.testing.assert_allclose(mine.finish_ms, other.finish_ms)


def test_the_shortest_line_gets_the_request() -> None:
    """Requests at once: two each."""
    requests = requests_at([0.0] * 8, [100] * 8, [50] * 8)
    result = serve_fleet(requests, Settings(), PROFILE_JSON, [4])
    assert sorted(result.slot.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_starts_leases_and_drains_by_hand() -> None:
    requests = requests_at([0.0, 61_000.0], [100, 100], [5, 5])
    plan = [1] * 2 + [3] * 2 + [1] * 20  # two more from 10 s to 20 s, paid to 70 s
    paid = serve_fleet(requests, Settings(), PROFILE_JSON, plan, Fleet(start_s=30, lease_s=60)).paid
    expected = np.ones(120)
    expected[10:70] = 3
    np.testing.assert_array_equal(paid, expected)


def test_a_start_serves_after_its_time_and_a_drain_takes_nothing() -> None:
    requests = requests_at([1000.0 * s for s in range(100)], [100] * 100, [400] * 100)
    plan = [1] * 2 + [2] * 10 + [1] * 8  # serves at 40 s, given back at 60 s
    result = serve_fleet(requests, Settings(), PROFILE_JSON, plan, Fleet(start_s=30, lease_s=0))
    second = np.flatnonzero(result.slot == 1)
    assert second.min() >= 40 and second.max() < 60 and len(second) > 5
    assert result.paid[61] == 2 and result.paid[-1] == 1  # it has to finish what it runs


def test_every_request_and_token_is_served_once() -> None:
    requests = some_requests(200, 40.0)
    plan = [4, 2, 1, 3, 2, 4]
    failing = Fleet(start_s=3, lease_s=0, failures=((3.0, 0), (5.0, 1)))
    for fleet in (Fleet(start_s=3, lease_s=0), failing):
        result = serve_fleet(requests, Settings(), PROFILE_JSON, plan, fleet)
        assert np.isfinite(result.finish_ms).all() and (result.ttft_ms > 0).all()
        assert (result.finish_ms >= result.first_token_ms).all()
    assert serve_fleet(requests, Settings(), PROFILE_JSON, plan).tokens_made == requests.output.sum()


def test_prefill_gpus_take_the_prompts() -> None:
    requests = some_requests(120, 60.0)
    apart = serve_fleet(requests, Settings(), PROFILE_JSON, [3] * 2, prefill=1)
    assert np.isfinite(apart.finish_ms).all() and set(apart.slot.tolist()) == {1, 2}
    together = serve_fleet(requests, Settings(), PROFILE_JSON, [3] * 2)
    assert np.nanmean(apart.tpot_ms) < np.nanmean(together.tpot_ms)


OPEN = {"m-mid, 8 GPUs": "1.11 % of the requests late, 0.63 % in the reference: a factor of 1.75"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.xfail(strict=True, reason=OPEN[name])] if name in OPEN else [])
        for name in sorted(CASES)
    ],
)
def test_the_fleet_follows_its_reference(name: str) -> None:
    """Late requests within a factor of 1.5 or 0.4 points, mean TTFT within 20 %, GPU-seconds within 1 %."""
    reference = json.loads(OUT.read_text())[name]
    mine = figures(CASES[name])
    assert mine["gpu_seconds"] == pytest.approx(reference["gpu_seconds"], rel=0.01)
    assert mine["ttft_mean_ms"] == pytest.approx(reference["ttft_mean_ms"], rel=0.2)
    assert mine["tpot_mean_ms"] == pytest.approx(reference["tpot_mean_ms"], rel=0.05)
    late, other = mine["late_share"], reference["late_share"]
    assert abs(late - other) <= 0.004 or max(late, other) <= 1.5 * min(late, other)
