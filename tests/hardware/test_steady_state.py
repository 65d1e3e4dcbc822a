"""Steady state from an engine profile: limits that hold whatever the kernels."""

import dataclasses

import numpy as np
import pytest

from inferencegym_jax.hardware.engine_curves import rising
from inferencegym_jax.hardware.steady_state import (
    Point,
    attention_ms,
    closed_loop_utilisation,
    decode_ms,
    prompt_ms,
    queue_wait_ms,
    serve,
    tokens_per_verification,
    tpot_ms,
)
from inferencegym_jax.table.derived_profile import shipped_profile


def test_nothing_else_runs_with_an_endless_output():
    profile, point = shipped_profile(), Point(32, 512, 1e9)
    assert tpot_ms(profile, point) == pytest.approx(decode_ms(profile, point))


def test_a_prompt_adds_its_products_and_its_attention():
    profile = shipped_profile()
    flat = dataclasses.replace(profile, products_ms=np.zeros_like(profile.products_ms))
    only = prompt_ms(flat, Point(1, 1024), 32)
    assert only == pytest.approx(float(np.interp(1024, profile.prefill_tokens, profile.prefill_attention_ms)))
    alone = prompt_ms(profile, Point(1, 64), 0)
    assert prompt_ms(profile, Point(1, 64), 32) < alone  # a short prompt rides along


def test_curves_go_on_along_their_last_segment():
    profile = shipped_profile()
    last, before = profile.decode_context[-1], profile.decode_context[-2]
    ends = [attention_ms(profile, 8, x) for x in (before, last, 2 * last - before)]
    assert ends[2] - ends[1] == pytest.approx(ends[1] - ends[0])


def test_more_work_never_takes_less_time():
    profile = shipped_profile()
    by_batch = [tpot_ms(profile, Point(n, 512)) for n in (1, 8, 64, 256, 512)]
    by_prompt = [serve(profile, Point(32, p), 300.0).ttft_p50_ms for p in (64, 512, 4096)]
    assert by_batch == sorted(by_batch) and by_prompt == sorted(by_prompt)
    rates = [serve(profile, Point(n, 64), 300.0).tps for n in (1, 8, 64)]
    assert rates == sorted(rates)


def test_a_prompt_that_adds_nothing_to_an_iteration_waits_for_nobody():
    # experts whose iteration takes as long whatever the batch: DeepSeek-V3 cut over eight GPUs is flat at first
    profile = shipped_profile()
    flat = dataclasses.replace(
        profile,
        products_ms=np.full_like(profile.products_ms, 20.0),
        prefill_attention_ms=np.zeros_like(profile.prefill_attention_ms),
    )
    served = serve(flat, Point(8, 128), 300.0)
    assert served.ttft_p50_ms == served.ttft_p99_ms > 0.0
    assert (
        queue_wait_ms(0.5, 0.0, 10.0, 8) == queue_wait_ms(0.5, 0.5, 10.0, 8) == 0.0 < queue_wait_ms(0.5, 0.51, 10.0, 8)
    )


def test_a_prefill_engine_is_a_second_one_on_the_bill():
    profile = shipped_profile()
    split, together = (serve(profile, Point(64, 1024, disagg=d), 300.0) for d in (True, False))
    assert (split.engines, together.engines) == (2, 1)
    assert split.tpot_ms < together.tpot_ms
    assert split.ttft_p99_ms >= split.ttft_p50_ms and together.ttft_p99_ms >= together.ttft_p50_ms


def test_drafts_pay_at_small_batches_only():
    profile = shipped_profile()
    gain = {n: tpot_ms(profile, Point(n, 512)) / tpot_ms(profile, Point(n, 512, drafts=4)) for n in (1, 256)}
    assert gain[1] > 1 > gain[256]
    assert tokens_per_verification(4, 1.0) == 5 and tokens_per_verification(0, 0.7) == pytest.approx(1)


def test_a_server_that_is_the_bottleneck_is_always_busy():
    assert closed_loop_utilisation(1e6, 10.0, 1.0) == pytest.approx(1.0, abs=1e-3)
    assert closed_loop_utilisation(1.0, 1.0, 1e6) == pytest.approx(1e-6, rel=1e-3)


def test_rising_is_the_largest_that_does_not_fall():
    bumps = np.array([[3.0, 2.0, 5.0], [1.0, 4.0, 6.0]])
    found = rising(bumps)
    assert (found <= bumps).all() and (np.diff(found, axis=0) >= 0).all() and (np.diff(found, axis=1) >= 0).all()
    assert found.tolist() == [[1.0, 2.0, 5.0], [1.0, 4.0, 6.0]]
