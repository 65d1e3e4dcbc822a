"""What measuring learns of an engine beside its table, against an engine whose times are known."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console

from inferencegym_jax.cli.measure_report import measure_and_report
from inferencegym_jax.live.measure.cell_run import Slice
from inferencegym_jax.live.measure.cells import Cells
from inferencegym_jax.live.measure.engine_figures import acceptance_lengths, first_token, pool_seen
from inferencegym_jax.live.measure.plan import MeasureSettings
from inferencegym_jax.live.measure.table import prefill
from inferencegym_jax.live.server.probe import EngineMetrics, Limits, parse_metrics, stated_limits
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.profile_engine import engine_times
from inferencegym_jax.table.derived_profile import profile_of
from inferencegym_jax.table.latency_table import METRICS, LatencyTable, load_table
from tests.live.fake_engine import Times

TIMES = Times(a=17.0, b=3.0, c=0.02, path=30.0, extra=1)
DRAFTING = Times(a=12.0, b=1.0, c=0.02, drafts=4, accept=0.7)
OUTPUT = 16


def measured(
    launch: Callable[..., Any], times: Times, out: Path, *flags: str
) -> tuple[LatencyTable, dict[str, Any], str]:
    own = [str(x) for name in ("a", "b", "c", "path", "extra", "drafts") for x in (f"--{name}", getattr(times, name))]
    engine = launch(*own, *flags)
    settings = MeasureSettings(budget_s=12.0, output_tokens=OUTPUT, most_concurrency=8, longest_prompt=256, slice_s=1.0)
    screen = io.StringIO()
    found = measure_and_report(Endpoint(engine.url, "fake"), settings, out, False, Console(file=screen, width=200))
    return load_table(out), found, screen.getvalue()


@pytest.mark.slow  # real seconds
def test_h_the_first_tokens_iteration_and_the_pool_are_the_engines(launch: Callable[..., Any], tmp_path: Path) -> None:
    table, found, said = measured(launch, TIMES, tmp_path / "t.parquet", "--pool", "endpoint")
    assert profile_of(table, {"kv_bytes_per_token": 131072.0}).tokens_per_iteration == 3000  # as the endpoint says
    assert found["first_token_extra_iterations"] == TIMES.extra
    assert found["first_token_estimate"] == pytest.approx(TIMES.extra, abs=0.4)
    assert found["prefill_ms"][-1] == pytest.approx(TIMES.c * 256, rel=0.3)
    # with HTTP and a busy machine above it; without the extra iteration of 20 ms it would be 50 at least
    assert TIMES.path - 6.0 < found["request_overhead_ms"] < TIMES.path + 15.0
    assert found["iteration_ms"] == pytest.approx(TIMES.a, rel=0.25)
    profile = profile_of(table, {"kv_bytes_per_token": 131072.0})
    assert (profile.first_token_extra_iterations, profile.path_ms) == (1, found["request_overhead_ms"])
    assert (found["kv_cache_tokens"], found["kv_cache_tokens_source"]) == (65536.0, "server")
    assert "surfaces 1 iterations after its own" in said and "as the server says" in said


@pytest.mark.slow  # real seconds
def test_with_drafts_on_tokens_are_counted_and_acceptance_lengths_learned(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    table, found, said = measured(launch, DRAFTING, tmp_path / "t.parquet", "--pool", "none")
    share = DRAFTING.accept
    expected = [1.0 + sum(share ** (i + 1) for i in range(k)) for k in (0, 1, 2, 4, 8)]
    assert found["acceptance_lengths"] == pytest.approx(expected, rel=0.06)
    assert table.metadata["spec_length"] == "4" and "a verification yields 1.00, " in said
    # an iteration yields several tokens: the last one of a request fewer than it verified
    tpot = table.values[0, 0, 0, :, 0, 0, METRICS.index("tpot_ms")]
    iteration = DRAFTING.a + DRAFTING.b * np.asarray(table.axes["batch_size"])
    assert np.all(tpot < 0.65 * iteration) and np.all(tpot > iteration / expected[3])
    # no page says the pool's size: the gauge does
    assert found["kv_cache_tokens"] == pytest.approx(65536.0, rel=0.15) and found["kv_cache_tokens_source"] == "gauge"


def cells_of(times: Times, h: float, extra: int, prompt: int = 64) -> Cells:
    """What a perfect measurement of an engine sees."""
    cells = Cells({})
    for n in (1, 4, 8):
        gap = times.iteration_ms(n, prompt, OUTPUT) if n > 1 else times.a + times.b
        waited = (1.5 if n > 1 else 1.0) + extra
        first = h + waited * gap + times.c * prompt
        cells.add((n, 0), Slice(1.0, gap, float(n), 0.0, [gap], [first] * 5, [1.0]))
    return cells


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("h", [0.0, 40.0])
def test_the_extra_iteration_is_told_apart_from_h(extra: int, h: float) -> None:
    found, estimate = first_token(cells_of(TIMES, h, extra), [1, 4, 8], 0)
    assert found == extra and estimate == pytest.approx(extra, abs=0.15)


def test_where_iterations_do_not_grow_nothing_is_told() -> None:
    flat = Times(a=12.0, b=0.0, c=0.0)
    assert first_token(cells_of(flat, 5.0, 1), [1, 4, 8], 0) == (0, None)


def test_a_wait_that_no_schedule_explains_tells_nothing() -> None:
    cells = cells_of(TIMES, 5.0, 0)
    cells.slices[(8, 0)][0] = dataclasses.replace(cells.slices[(8, 0)][0], ttft_ms=[2000.0] * 5)
    assert first_token(cells, [1, 4, 8], 0) == (0, None)


def test_the_pool_is_what_was_held_over_the_share_in_use() -> None:
    cells = Cells({})
    cells.add((4, 0), Slice(1.0, 5.0, 4.0, 0.0, [5.0], [9.0], [700.0], memory_share=None))
    assert pool_seen(cells, 16) is None
    cells.add((8, 1), Slice(1.0, 5.0, 8.0, 0.0, [5.0], [9.0], [700.0], memory_share=8 * (128 + 16 * 13 / 24) / 5000))
    assert pool_seen(cells, 16) == pytest.approx(5000.0)


def test_acceptance_by_place_and_by_one_probability() -> None:
    before = EngineMetrics(drafts=10.0, draft_tokens=20.0, accepted_tokens=5.0, accepted_at=(4.0, 1.0))
    after = EngineMetrics(drafts=110.0, draft_tokens=220.0, accepted_tokens=125.0, accepted_at=(84.0, 41.0))
    assert acceptance_lengths(before, after) == (2, [1.0, 1.8, 2.2, 2.5, 2.5938])  # halved at each further place
    even = EngineMetrics(drafts=100.0, draft_tokens=200.0, accepted_tokens=100.0 * (0.6 + 0.36))
    most, lengths = acceptance_lengths(EngineMetrics(), even) or (0, [])
    assert most == 2 and lengths[:3] == pytest.approx([1.0, 1.6, 1.96], abs=1e-3)
    assert lengths[-1] == pytest.approx(1.0 + sum(0.6**i for i in range(1, 9)), abs=1e-3)
    for nothing in ((None, after), (after, None), (after, after), (EngineMetrics(), EngineMetrics())):
        assert acceptance_lengths(*nothing) is None


def test_pages_and_endpoints_are_read() -> None:
    page = "".join(
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="{engine}",position="{i}"}} {count}\n'
        for engine in (0, 1)
        for i, count in enumerate((7, 3))
    )
    found = parse_metrics('vllm:spec_decode_num_drafts_total{engine="0"} 12\n' + page)
    assert (found.drafts, found.accepted_at) == (12.0, (14.0, 6.0))
    assert parse_metrics(page.replace('position="0"', 'position="4"')).accepted_at == ()


@pytest.mark.parametrize(
    ("answers", "tokens"),
    [
        ({"/get_server_info": {"max_total_num_tokens": 50000, "chunked_prefill_size": -1}}, 50000.0),
        ({"/server_info": {"max_total_num_tokens": 50000, "chunked_prefill_size": 4096}}, 50000.0),
        ({"/info": {"max_batch_total_tokens": 12000}}, 12000.0),
        ({"/props": {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4}}, 16384.0),
        ({"/get_server_info": {"max_total_num_tokens": None}, "/info": []}, None),
        ({"/get_server_info": {"max_total_num_tokens": -5}, "/props": {"total_slots": "x"}}, None),
        ({"/get_server_info": {"max_total_num_tokens": math.inf}}, None),
        ({}, None),
    ],
)
def test_an_engines_own_endpoint_states_the_pool(answers: dict[str, Any], tokens: float | None) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path not in answers:
            return httpx.Response(404)
        return httpx.Response(200, text=json.dumps(answers[request.url.path]))

    async def ask() -> Limits:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://h") as client:
            return await stated_limits(client)

    assert asyncio.run(ask()) == Limits(tokens, 4096 if "/server_info" in answers else None)


def test_a_prompt_longer_than_an_iterations_budget_is_not_charged_its_iterations_constant() -> None:
    cells = Cells({})
    gap, budget = TIMES.a + TIMES.b, 100
    for bucket, length in ((0, 64), (2, 256)):
        first = TIMES.path + -(-length // budget) * gap + TIMES.c * length
        cells.add((1, bucket), Slice(1.0, gap, 1.0, 0.0, [gap], [first] * 5, [1.0]))
    added, outside = prefill(cells, [0, 2], budget)
    assert added == pytest.approx([TIMES.c * 64, TIMES.c * 256], abs=1e-6) and outside == pytest.approx(TIMES.path)
    whole, _ = prefill(cells, [0, 2])
    assert whole[1] > added[1] + 1.9 * gap  # as if the three iterations were the prompt's alone


def test_h_is_told_by_a_prompt_of_one_token_where_short_prompts_hide_in_an_iteration() -> None:
    """An iteration of up to 16 tokens takes 14 ms, and 0.9 ms a token beyond: a line through prompts of 64 and 256 ends
    14 ms below nothing at no prompt, which would hide as many of h."""
    cells, h, decode = Cells({}), 12.0, 14.0

    def iteration(tokens: float) -> float:
        return max(decode, 0.9 * tokens)

    for bucket, length in ((0, 64), (2, 256)):
        first = h + iteration(length)
        cells.add((1, bucket), Slice(1.0, decode, 1.0, 0.0, [decode], [first] * 5, [1.0]))
    assert prefill(cells, [0, 2])[1] == 0.0
    for slower in (1.0, 1.2, 1.0):
        first = h + slower * iteration(1)
        cells.single.append(Slice(1.0, slower * decode, 1.0, 0.0, [decode], [first] * 5, [1.0]))
    added, outside = prefill(cells, [0, 2])
    assert outside == pytest.approx(h)
    assert added == pytest.approx([iteration(64) - decode, iteration(256) - decode])
    assert prefill(cells, [0]) == (pytest.approx(added[:1]), pytest.approx(h))  # one prompt length is enough


CHUNKING = Times(a=17.0, b=1.0, c=0.05)


@pytest.mark.slow  # real seconds
def test_a_second_engine_with_another_token_budget(launch: Callable[..., Any], tmp_path: Path) -> None:
    own = [str(x) for name in ("a", "b", "c") for x in (f"--{name}", getattr(CHUNKING, name))]
    settings = MeasureSettings(budget_s=10.0, output_tokens=OUTPUT, most_concurrency=4, longest_prompt=256, slice_s=1.0)
    screen, found = Console(file=io.StringIO()), {}
    for budget in (96, 4096):
        engine, out = launch(*own, "--token-budget", budget), tmp_path / f"{budget}.parquet"
        ours = dataclasses.replace(settings, token_budget=budget)
        found[budget] = measure_and_report(Endpoint(engine.url, "fake"), ours, out, False, screen)
        table = load_table(out)
        assert profile_of(table).tokens_per_iteration == budget
        times = engine_times(table)
        assert times.decode_ms(1, 80) == pytest.approx(CHUNKING.a + CHUNKING.b, rel=0.12)
    short, long = np.transpose([found[budget]["prefill_ms"] for budget in found])
    assert long[0] == pytest.approx(long[1], abs=6.0)  # the three iterations of 18 ms are not the prompt's
    assert np.all(long - short == pytest.approx(CHUNKING.c * 192, abs=6.0))


@pytest.mark.slow  # real seconds
def test_no_more_are_in_flight_than_the_pool_holds(launch: Callable[..., Any], tmp_path: Path) -> None:
    own = [str(x) for name in ("a", "b", "c") for x in (f"--{name}", getattr(CHUNKING, name))]
    engine = launch(*own, "--pool-tokens", 1200)
    settings = MeasureSettings(budget_s=12.0, output_tokens=OUTPUT, most_concurrency=8, longest_prompt=256, slice_s=1.0)
    measure_and_report(
        Endpoint(engine.url, "fake"), settings, tmp_path / "t.parquet", False, Console(file=io.StringIO())
    )
    table = load_table(tmp_path / "t.parquet")
    assert table.metadata["kv_block_tokens"] == "16" and max(table.axes["batch_size"]) == 8
    tpot = table.values[0, 0, 0, -1, 0, -1, METRICS.index("tpot_ms")]
    assert tpot == pytest.approx(CHUNKING.iteration_ms(8, 256, OUTPUT), rel=0.15)  # four of them fit
    ttft = table.values[0, 0, 0, -1, 0, -1, METRICS.index("ttft_p50_ms")]
    assert ttft < 4 * CHUNKING.iteration_ms(8, 256, OUTPUT)  # and nobody waited for another's end
