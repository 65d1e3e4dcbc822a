"""The replay of `trial` and the engine of `recommend`, which share the profile and no line of how iterations are timed,
on tables that were measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.live.trial.profile_engine import engine_times, saturation
from inferencegym_jax.live.trial.runs import TrialSettings, predict
from inferencegym_jax.live.trial.traffic import Traffic, poisson_traffic
from inferencegym_jax.recommend.engine_settings import EngineSettings
from inferencegym_jax.recommend.request_engine import serve_requests
from inferencegym_jax.table import profile_of
from inferencegym_jax.table.profile_format import REPLAY_METADATA
from tests.live.test_trial import SLOW, ideal

OUTPUT, RUNNING = 32, 64


@pytest.mark.parametrize(
    ("prompt", "share", "pool"), [(96, 0.5, 20_000), (192, 0.8, 20_000), (64, 1.3, 20_000), (192, 0.8, 4_000)]
)
def test_they_serve_requests_alike_beyond_what_was_measured_too(prompt: int, share: float, pool: int) -> None:
    """Measured with at most 16 requests and prompts of 128 tokens; up to 64 run, and a small pool preempts."""
    table = ideal(SLOW, OUTPUT, pool, batch_sizes=(1, 4, 16), prompts=(64, 128))
    # one adds h before the engine and one after it: with none they meet the same requests at the same moments
    table = dataclasses.replace(table, metadata=table.metadata | {"path_ms": "0"})
    profile, times = profile_of(table), engine_times(table)
    rate = share * saturation(ideal(SLOW, OUTPUT), prompt, OUTPUT)
    traffic = poisson_traffic(rate, 120.0, prompt, OUTPUT, seed=1)
    _, params = ig.make(1, table=table)
    policy = ig.policies.static(ig.ServeAction(batch_size=512))
    records = predict(table, traffic, policy, params, TrialSettings(max_num_seqs=RUNNING))
    memory_gb = times.base_gb + pool * profile.kv_bytes_per_token / 1e9
    settings = EngineSettings(RUNNING, 0, 0, False, memory_gb, profile.tokens_per_iteration)
    served = serve_requests(1000.0 * traffic.time_s, traffic.prompt, traffic.output, settings, profile)
    assert served.pool_tokens == pytest.approx(pool, abs=16) and not served.rejected.any()
    assert (served.preemptions > 0) == (pool == 4_000)
    ttft, tpot = (np.array([getattr(record, name) for record in records], float) for name in ("ttft_ms", "tpot_ms"))
    assert tpot.mean() == pytest.approx(served.tpot_ms.mean(), rel=0.02)
    assert ttft.mean() == pytest.approx(served.ttft_ms.mean(), rel=0.02)


@pytest.mark.parametrize("extra", [0, 1, 2, 3])
def test_a_token_is_seen_as_many_iterations_late_as_the_table_says(extra: int) -> None:
    """A lone request, and one that comes while it decodes, 5 ms before an iteration ends."""
    table, h = ideal(SLOW, OUTPUT), 3.0
    late = {"path_ms": str(h), "first_token_extra_iterations": str(extra)}
    table = dataclasses.replace(table, metadata=table.metadata | late)
    profile, one, own = profile_of(table), SLOW.a + SLOW.b, SLOW.a + SLOW.b + 64 * SLOW.c
    memory_gb = engine_times(table).base_gb + 1e6 * profile.kv_bytes_per_token / 1e9
    settings = EngineSettings(RUNNING, 0, 0, False, memory_gb, profile.tokens_per_iteration)
    lone = SLOW.a + 64 * SLOW.c  # with nobody beside it
    arrival_ms = np.array([0.0, lone + 3 * one - 5.0])
    served = serve_requests(arrival_ms, np.full(2, 64), np.full(2, OUTPUT), settings, profile)
    both = one + SLOW.b  # ms of an iteration in which the two decode
    assert served.ttft_ms[0] == pytest.approx(lone + extra * one + h, abs=2.0)
    assert served.ttft_ms[1] == pytest.approx(5.0 + own + extra * both + h, abs=2.0)
    assert served.tpot_ms[1] == pytest.approx((both * (OUTPUT - 5) + 4 * one) / (OUTPUT - 1), rel=0.05)


def arriving(arrival_s: list[float], batch_size: int, h_ms: float = 12.0) -> list[float | None]:
    """TTFT, ms, of prompts of 64 tokens on an engine with h of its own."""
    table = ideal(SLOW, OUTPUT)
    table = dataclasses.replace(table, metadata=table.metadata | {"path_ms": str(h_ms)})
    count = len(arrival_s)
    columns = np.full(count, 64), np.full(count, OUTPUT), np.zeros(count, np.int64)
    traffic = Traffic(np.array(arrival_s), *columns, 10.0, np.ones(10, np.int64))
    _, params = ig.make(1, table=table)
    policy = ig.policies.static(ig.ServeAction(batch_size=batch_size))
    return [record.ttft_ms for record in predict(table, traffic, policy, params, TrialSettings())]


def test_a_request_that_comes_shortly_before_an_iteration_ends_misses_the_next_one() -> None:
    """It reaches the engine h after it was sent."""
    one, own = SLOW.a + SLOW.b, SLOW.a + SLOW.b + 64 * SLOW.c
    third = 12.0 + own + 3 * one  # ms at which the lone request's third iteration after its first token ends
    early, late = (arriving([0.0, (third - before) / 1000.0], 512)[1] for before in (13.0, 11.0))
    assert early == pytest.approx(13.0 + own, rel=5e-3)
    assert late == pytest.approx(11.0 + one + own, rel=5e-3)


def test_a_place_that_a_finished_request_left_stands_empty_until_the_next_one_has_reached_the_engine() -> None:
    one, own = SLOW.a + SLOW.b, SLOW.a + SLOW.b + 64 * SLOW.c
    took = 12.0 + own + (OUTPUT - 1) * one
    assert arriving([0.0, 0.001], 1)[1] == pytest.approx(took - 1.0 + 12.0 + own, rel=5e-3)


def test_tables_that_differ_in_what_the_replay_reads_alone_are_two() -> None:
    table = ideal(SLOW, OUTPUT)
    for key in REPLAY_METADATA:
        other = dataclasses.replace(table, metadata=table.metadata | {key: "3"})
        assert other != table and engine_times(other) is not engine_times(table)
    assert dataclasses.replace(table, metadata=table.metadata | {"measured_at": "now"}) == table
