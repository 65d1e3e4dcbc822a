"""The proxy and its policy: what it is told, and what happens when it fails or hangs, or the wall clock jumps."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import httpx
import pytest

from tests.live.conftest import Fixed, body, controlling, proxy, status


@pytest.mark.parametrize("answer", [RuntimeError("no idea"), math.nan, math.inf, 0, 10**6])
def test_a_policy_that_fails_means_plain_pass_through_until_it_answers_again(engine: Any, answer: Any) -> None:
    policy = Fixed(answer)
    with proxy(engine.url, policy) as url:
        found = status(url, lambda x: x["fallback_steps"] > 0)
        assert (found["mode"], found["batch_size"]) == ("pass-through", None) and found["fallback"]
        assert httpx.post(f"{url}/v1/completions", json=body(), trust_env=False).text.endswith("[DONE]\n\n")
        page = httpx.get(f"{url}/metrics", trust_env=False).text
        assert "inferencegym_control_fallback 1.0" in page and "batch_size +Inf" in page
        policy.batch_size = 7
        found = status(url, controlling)
        assert (found["mode"], found["batch_size"], found["fallback"]) == ("control", 7, None)


def test_a_policy_that_hangs_delays_no_request(engine: Any) -> None:
    policy = Fixed()
    policy.sleep_s = 3.0
    with proxy(engine.url, policy) as url:
        found = status(url, lambda x: x["fallback_steps"] > 2)
        assert found["mode"] == "pass-through"
        assert httpx.post(f"{url}/v1/completions", json=body(), trust_env=False, timeout=2.0).status_code == 200


def test_the_policy_sees_the_traffic_as_an_observation(engine: Any) -> None:
    policy = Fixed()
    with proxy(engine.url, policy) as url:
        for _ in range(5):
            httpx.post(f"{url}/v1/completions", json=body(10, prompt=50), trust_env=False)
        found = status(url, lambda x: x["steps"] > 3)
    assert found["observation"]["mean_prompt_len"] == 50.0
    assert max(float(seen.arrival_rate) for seen in policy.seen) > 0
    assert max(float(seen.tpot_p50) for seen in policy.seen) > 3.0  # 4 ms an iteration
    assert [int(seen.timestep) for seen in policy.seen[:3]] == [1, 2, 3]


def test_a_wall_clock_that_jumps_changes_nothing(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: true() + 3600.0 * (-1) ** next(calls))
    policy = Fixed(7)
    with proxy(engine.url, policy) as url:
        status(url, controlling)
        answer = httpx.post(f"{url}/v1/completions", json=body(), trust_env=False)
        found = status(url, lambda x: x["requests"]["finished"] == 1)
    assert answer.text.endswith("[DONE]\n\n") and found["mode"] == "control"
    assert 0.0 < found["uptime_s"] < 600 and 0 < found["steps"] < 10_000
    assert max(float(seen.ttft_p50) for seen in policy.seen) < 60_000
