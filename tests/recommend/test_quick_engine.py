"""The quick form of the table's request-level engine is that engine, and that engine serves as one would by hand."""

import numpy as np
import pytest

from tests.reference.engine import EngineLimits, KernelTimes, serve
from tests.reference.quick_engine import first_tokens

TIMES = KernelTimes(lambda n, context: 8.0 + 0.06 * n + 2e-5 * n * context, lambda prompt, n: 1.0 + 0.05 * prompt, 2.0)


@pytest.mark.parametrize(
    "limits", [EngineLimits(), EngineLimits(16, 512), EngineLimits(128, 2048, kv_tokens=12_000)], ids=str
)
def test_the_quick_engine_is_the_engine_request_by_request(limits: EngineLimits):
    rng = np.random.default_rng(5)
    arrivals = np.sort(rng.uniform(0, 20_000, 250)).tolist()
    prompts = np.clip(rng.lognormal(6.5, 1.2, 250), 1, 8000).astype(int).tolist()
    outputs = np.clip(rng.lognormal(3.0, 1.6, 250), 1, 400).astype(int).tolist()
    slow = serve(arrivals, prompts, outputs, TIMES, limits)
    quick = first_tokens(arrivals, prompts, outputs, TIMES, limits)
    np.testing.assert_allclose(quick, [request.first_token for request in slow.requests], rtol=1e-9)
    assert min(outputs) == 1 and slow.ttft().max() > 2 * slow.ttft().min()


def test_the_engine_serves_one_request_as_one_would_by_hand():
    times = KernelTimes(lambda n, context: 10.0, lambda prompt, n: 20.0, 1.0, lambda prompt: 5.0)
    (request,) = serve([100.0], [3000], [4], times, EngineLimits(8, 2048)).requests
    # two chunks: (11 + 20 x 2048 / 3000) and (11 + 20 x 952 / 3000), then three iterations of 11 ms
    assert request.first_token == pytest.approx(100 + 22 + 20 + 5)
    assert request.finished == pytest.approx(request.first_token + 33)


def test_the_engine_admits_first_come_first_served_within_slots_and_pool():
    times = KernelTimes(lambda n, context: 10.0, lambda prompt, n: 1.0)
    limits = EngineLimits(2, 2048, kv_tokens=1000)
    first, second, third = serve([0.0, 0.0, 0.0], [100, 900, 100], [10, 10, 10], times, limits).requests
    assert first.first_token < second.first_token < third.first_token
    assert second.first_token > first.finished  # the pool has no room for both
    assert third.first_token > second.finished  # and nobody overtakes
