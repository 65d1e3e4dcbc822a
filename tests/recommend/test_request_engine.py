"""The fast request-by-request engine is the reference engine: the same tokens at the same times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.recommend.engine_flags import deployment
from inferencegym_jax.recommend.engine_replay import EngineReplay
from inferencegym_jax.recommend.engine_settings import EngineSettings, draft_probability
from inferencegym_jax.recommend.log_requests import load_requests
from inferencegym_jax.recommend.quality import Objective
from inferencegym_jax.recommend.request_engine import serve_requests
from inferencegym_jax.table import profile_of
from tests.reference.iteration import load_profile
from tests.reference.serving import serve
from tests.reference.settings import Settings
from tests.reference.traffic import requests_at

PROFILE = profile_of(ig.load_table())
ACCEPTED = {0: 1.0, 2: 1.75, 4: 2.0, 8: 2.1}  # of chat, data/traces_llama3_8b.engine.json


def traffic(rate: float, seconds: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    count = int(rate * seconds)
    prompt = np.clip(rng.lognormal(np.log(800), 0.8, count), 16, 8000).astype(int)
    output = np.clip(rng.lognormal(np.log(150), 0.6, count), 1, 1000).astype(int)
    return np.sort(rng.uniform(0, 1000 * seconds, count)), prompt, output


def both(rate: float = 6.0, seconds: float = 40.0, spec: int = 0, prefill: bool = False, **changes: Any) -> Any:
    values = {"batch_size": 128, "quant_tier": 0, "memory_gb": 40.0, "kv_budget": 1.0} | changes
    waiting = values.pop("waiting", None)
    settings = EngineSettings(
        spec_length=spec, prefill_gpu=prefill, token_budget=2048, accepted=ACCEPTED[spec], max_waiting=waiting, **values
    )
    second = "prefill" if prefill else "none"
    link = load_profile()["host_link_gb_s"]
    slow = Settings(spec_length=spec, second_gpu=second, transfer_gb_s=link, queue_capacity=waiting, **values)
    log = traffic(rate, seconds)
    return serve_requests(*log, settings, PROFILE), serve(requests_at(*log), slow, load_profile())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 16},
        {"quant_tier": 1},
        {"memory_gb": 19.5},  # a pool that preempts
        {"memory_gb": 20.0, "kv_budget": 0.4},
        {"prefill": True},
        {"prefill": True, "memory_gb": 19.3},
        {"batch_size": 8, "waiting": 20},  # some are turned away
    ],
)
def test_every_request_has_its_tokens_when_the_reference_says(changes: dict[str, Any]):
    fast, slow = both(**changes)
    np.testing.assert_allclose(fast.ttft_ms, slow.ttft_ms, rtol=1e-9)
    np.testing.assert_allclose(fast.tpot_ms, slow.tpot_ms, rtol=1e-9)
    assert np.array_equal(fast.rejected, slow.rejected)
    assert fast.preemptions == slow.preemptions.sum() and fast.pool_tokens == slow.pool
    assert (fast.preemptions > 0) == (changes.get("memory_gb", 40.0) < 19.6)


@pytest.mark.parametrize("changes", [{"spec": 4}, {"spec": 8, "batch_size": 512, "rate": 9.0}, {"spec": 2}])
def test_drafts_are_as_good_as_in_the_reference(changes: dict[str, Any]):
    # the two draw the accepted drafts in another order, so only what they come to is alike
    fast, slow = both(seconds=90.0, memory_gb=72.0, **changes)
    assert np.nanmean(fast.tpot_ms) == pytest.approx(np.nanmean(slow.tpot_ms), rel=0.04)
    assert np.median(fast.ttft_ms) == pytest.approx(np.median(slow.ttft_ms), rel=0.06)


def test_a_verification_yields_what_was_measured():
    for drafts, accepted in ((2, 1.75), (4, 2.0), (8, 9.0)):
        chance = draft_probability(accepted, drafts)
        assert sum(chance**i for i in range(drafts + 1)) == pytest.approx(accepted)


def test_who_is_not_served_in_time_never_has_a_token():
    log = traffic(6.0, 40.0)
    settings = EngineSettings(8, 0, 0, False, 40.0, 2048)
    whole, cut = serve_requests(*log, settings, PROFILE), serve_requests(*log, settings, PROFILE, until_ms=30_000.0)
    in_time = np.isfinite(cut.ttft_ms)
    assert 0 < in_time.sum() < len(in_time)
    assert np.array_equal(cut.ttft_ms[in_time], whole.ttft_ms[in_time])
    assert (log[0] + whole.ttft_ms)[~in_time].min() > 30_000.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory_gb": 19.5},  # preempts, and turns away who is longer than the pool
        {"prefill_gpu": True, "memory_gb": 19.3},
        {"batch_size": 8},
    ],
)
def test_being_looked_at_on_the_way_changes_nothing(changes: dict[str, Any]):
    values = {"batch_size": 128, "quant_tier": 0, "spec_length": 0, "prefill_gpu": False, "memory_gb": 40.0} | changes
    settings, log, asked = EngineSettings(token_budget=2048, **values), traffic(6.0, 60.0), list[float]()

    def look(now: float, first: np.ndarray) -> bool:
        asked.append(now)
        assert np.nanmax(first, initial=0.0) <= now + PROFILE.path_ms
        return False

    alone, looked_at = serve_requests(*log, settings, PROFILE), serve_requests(*log, settings, PROFILE, hopeless=look)
    assert len(asked) > 10 and asked == sorted(asked)
    assert np.array_equal(alone.ttft_ms, looked_at.ttft_ms, equal_nan=True)
    assert alone.preemptions == looked_at.preemptions
    assert np.array_equal(alone.tpot_ms, looked_at.tpot_ms, equal_nan=True) and alone.end_ms == looked_at.end_ms


def test_a_replay_is_given_up_where_too_few_can_be_in_time(tmp_path: Path):
    times, prompts, outputs = traffic(8.0, 120.0)
    path = tmp_path / "log.csv"
    rows = [f"{t / 1000:.4f},{p},{o}" for t, p, o in zip(times, prompts, outputs, strict=True)]
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    table, requests = ig.load_table(), load_requests(path)
    made = deployment(dict(table.knob_defaults) | {"batch_size": 8}, table, 40.0, requests.longest)

    def engines() -> EngineReplay:
        return EngineReplay(table, requests, Objective(20_000.0), np.ones(5))

    kept = float(engines().replay(made).quality.attainment[0])
    assert 0.02 < kept < 0.9
    assert engines().replay_if(made, kept + 0.01) is None
    judged = engines().replay_if(made, kept - 0.01)
    assert judged is not None and judged.quality.attainment[0] == kept


def test_an_overloaded_engine_makes_no_more_tokens_a_second_than_one_that_is_always_busy(tmp_path: Path) -> None:
    """What it makes after the log's end is not divided by the log's seconds: a price a third of the true one."""
    times, prompt, output = traffic(20.0, 60.0)
    path = tmp_path / "log.csv"
    rows = zip(times / 1000, prompt, output, strict=True)
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "\n".join(f"{t:.3f},{p},{o}" for t, p, o in rows))
    table, requests = ig.load_table(), load_requests(path)
    made = deployment(dict(table.knob_defaults) | {"batch_size": 8}, table, 40.0, requests.longest)
    replay = EngineReplay(table, requests, Objective(1000.0), np.ones(5))
    judged = replay.replay(made).quality
    done = serve_requests(times, prompt, output, replay.settings(made), PROFILE)
    assert done.end_ms > 2 * times[-1]  # it is overloaded
    assert judged.tokens_per_sec[0] == pytest.approx(1000 * output.sum() / done.end_ms, rel=0.05)
    paid = judged.cost_per_1k[0] * judged.tokens_per_sec[0] / 1000
    assert paid == pytest.approx(table.gpu_second_cost, rel=0.01)
