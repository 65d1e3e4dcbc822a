"""What the reference does when settings change while it runs: weights, and a second GPU asked for and given back."""

import numpy as np
import pytest

from tests.reference.hand_profile import equal_iterations, hand_profile
from tests.reference.serving import serve
from tests.reference.settings import Change, Settings
from tests.reference.traffic import requests_at

TEN_MS = equal_iterations(10.0)


def poisson(rate: float, length_s: float, prompt: int = 50, output: int = 20, seed: int = 0):
    """Requests of one length."""
    random = np.random.default_rng(seed)
    times = np.sort(random.uniform(0, 1000 * length_s, random.poisson(rate * length_s)))
    return requests_at(times, np.full(len(times), prompt), np.full(len(times), output))


def test_other_weights_preempt_all_and_stop_service_for_restart_s():
    requests = requests_at([0, 0, 500], [100, 100, 100], [50, 50, 5])
    result = serve(requests, Settings(restart_s=2), hand_profile(), [Change(0.1, quant_tier=1)])
    rows = result.iterations[0]
    last = rows["end_ms"][rows["start_ms"] < 100].max()  # the iteration under way is carried out
    after = rows[rows["start_ms"] > 100]
    assert after["start_ms"][0] == pytest.approx(last + 2000)
    assert result.preemptions.tolist() == [1, 1, 0]
    assert rows["tokens"].sum() == 105
    made = rows[rows["start_ms"] < 100]["tokens"].sum() // 2
    first = after["end_ms"][0] - after["start_ms"][0]  # all three prompts, two with what they had made, INT8's products
    tokens = 3 * 100 + 2 * made
    assert first == pytest.approx(2 + 4 + 0.01 * tokens + 0.5 + 2 * 0.002 * (100 + made) + 0.002 * 100)
    assert (result.finish_ms > 2100).all()
    bigger = 100_000 + 4000  # 4 GB less of weights
    assert result.pool == bigger


def test_a_switch_without_a_restart_time_only_preempts():
    requests = requests_at([0], [100], [50])
    free = serve(requests, Settings(restart_s=0), TEN_MS, [Change(0.1, quant_tier=1)])
    assert free.preemptions.tolist() == [1]
    assert free.finish_ms[0] == 10 * (50 + 1)  # the token that the new prefill samples is the next one


def test_slots_and_watermark_and_drafts_change_at_once_and_evict_nobody():
    requests = requests_at(np.arange(40.0), np.full(40, 50), np.full(40, 100))
    result = serve(requests, Settings(batch_size=40), TEN_MS, [Change(0.3, batch_size=10)])
    assert result.preemptions.sum() == 0
    rows = result.iterations[0]
    assert rows["running"][rows["start_ms"] < 300].max() == 40
    drafted = serve(requests, Settings(), TEN_MS, [Change(0.3, spec_length=2)]).iterations[0]
    before = drafted[drafted["start_ms"] < 300]
    assert (before["tokens"][10:] == before["decoding"][10:]).all()
    assert drafted["tokens"].sum() == 4000 and drafted["tokens"].max() > 60


def test_a_replica_serves_after_start_s_takes_from_the_fuller_engine_and_is_billed_from_the_asking():
    requests = poisson(40, 60)
    changes = [Change(10, second_gpu="replica"), Change(40, second_gpu="none")]
    result = serve(requests, Settings(batch_size=8, start_s=5, lease_s=20), TEN_MS, changes)
    second = requests.arrival_ms[result.gpu == 1]
    assert 15_000 <= second.min() < 15_100 and 39_000 < second.max() < 40_000
    share = (result.gpu[(requests.arrival_ms > 25_000) & (requests.arrival_ms < 40_000)] == 1).mean()
    assert share == pytest.approx(0.5, abs=0.05)
    assert np.isfinite(result.finish_ms).all()
    drained = result.iterations[1]["end_ms"].max()
    assert drained > second.max()
    # 8 slots of 20 tokens and 10 ms finish 40 requests/s: the wait shrinks while there are two
    assert result.gpu_seconds == pytest.approx((result.end_ms + drained - 10_000) / 1000, abs=0.02)


def test_a_lease_is_billed_for_lease_s_at_least_even_if_it_never_served():
    changes = [Change(1, second_gpu="replica"), Change(2, second_gpu="none")]
    result = serve(poisson(5, 100), Settings(start_s=30, lease_s=60), TEN_MS, changes)
    assert (result.gpu == 0).all()
    assert result.gpu_seconds == pytest.approx(result.end_ms / 1000 + 60)


def test_a_gpu_that_is_asked_for_again_while_it_drains_goes_on():
    changes = [Change(10, second_gpu="none"), Change(10.05, second_gpu="replica")]
    requests = poisson(60, 30)
    result = serve(requests, Settings(batch_size=8, second_gpu="replica"), TEN_MS, changes)
    assert (result.gpu[requests.arrival_ms > 10_100] == 1).any()
    assert result.gpu_seconds == pytest.approx(2 * result.end_ms / 1000)


def test_a_prefill_gpu_takes_the_prompts_out_of_the_decode_loop_by_hand():
    profile = hand_profile()
    result = serve(requests_at([0, 40], [1000, 2000], [10, 3]), Settings(second_gpu="prefill"), profile)
    first = 10 + 10 + 0.5 + 2.0  # a prompt of 1,000 alone on its GPU: nothing decodes beside it
    token = 10 + 0.01 + 0.5 + 0.1001
    rows = result.iterations[0]
    assert rows["start_ms"][0] == pytest.approx(first)
    assert result.first_token_ms[0] == pytest.approx(first + token + 3)
    # The second has its slot when the next iteration here starts, and its prompt takes as long as if it were alone.
    enters = rows["start_ms"][rows["start_ms"] > 40][0]
    computed = enters + 10 + 20 + 0.5 + 8.0
    joins = rows["start_ms"][rows["start_ms"] >= computed][0]
    assert rows["decoding"][rows["start_ms"] == joins][0] == 2
    end = rows["end_ms"][rows["start_ms"] == joins][0]
    assert result.first_token_ms[1] == pytest.approx(end + 3)
    assert rows["decoding"].sum() == 9 + 2
    assert result.gpu_seconds == pytest.approx(2 * result.end_ms / 1000)


def test_a_prefill_gpu_keeps_iterations_short_where_one_gpu_mixes():
    profile = hand_profile()
    requests = poisson(15, 60, prompt=1500, output=100)
    mixed = serve(requests, Settings(), profile)
    apart = serve(requests, Settings(second_gpu="prefill"), profile)
    assert np.mean(apart.tpot_ms) < 0.75 * np.mean(mixed.tpot_ms)
    slow_link = serve(requests, Settings(second_gpu="prefill", transfer_gb_s=100), profile)
    moved = 1500 * 1e6 / 100e9 * 1000  # ms for a prompt's keys and values
    assert np.median(slow_link.ttft_ms) > np.median(apart.ttft_ms) + 0.9 * moved


def test_a_prefill_gpu_comes_and_goes_and_nothing_is_lost():
    changes = [Change(10, second_gpu="prefill"), Change(20.003, quant_tier=1), Change(50, second_gpu="none")]
    requests = poisson(8, 80, prompt=1500, output=100)
    result = serve(requests, Settings(start_s=5, lease_s=10, restart_s=3), hand_profile(pool=30_000), changes)
    assert np.isfinite(result.finish_ms).all()
    assert result.iterations[0]["held"].max() <= result.pool
    # the prompt's own token is sampled by whichever GPU computes it
    own = result.iterations[0]["tokens"].sum()
    assert requests.output.sum() - len(requests) - result.preemptions.sum() <= own < requests.output.sum()
    assert result.gpu_seconds == pytest.approx(result.end_ms / 1000 + 40, abs=1.0)


def test_a_change_that_cannot_be_is_named():
    with pytest.raises(ValueError, match="memory_gb"):
        Change(1, memory_gb=40)
    with pytest.raises(ValueError, match="cannot go from replica to prefill"):
        serve(poisson(1, 5), Settings(second_gpu="replica"), TEN_MS, [Change(1, second_gpu="prefill")])
