"""``measure`` against an engine whose times are known: the table is the closed form, and an interrupted run goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from inferencegym_jax.cli.measure_report import measure_and_report
from inferencegym_jax.live.measure.cell_run import MOST_EXTRA, Slice, added_by_prefills, shared, undisturbed
from inferencegym_jax.live.measure.cells import Cells, StateError, half_width
from inferencegym_jax.live.measure.engine_figures import first_token_seen
from inferencegym_jax.live.measure.plan import Measurement, MeasureSettings, Progress
from inferencegym_jax.live.measure.table import beside, build_columns, fit, prefill, read_off
from inferencegym_jax.live.server.probe import Engine, EngineError, probe
from inferencegym_jax.live.server.streaming import Endpoint, open_client
from inferencegym_jax.live.trial.profile_engine import EngineTimes, saturation
from inferencegym_jax.table.derived_profile import profile_of
from inferencegym_jax.table.latency_table import METRICS, LatencyTable, load_table
from tests.live.fake_engine import Times

TIMES = Times(a=12.0, b=1.0, c=0.06)
OUTPUT = 16
SETTINGS = MeasureSettings(
    budget_s=17.0, output_tokens=OUTPUT, most_concurrency=8, longest_prompt=256, slice_s=0.7, base_memory_gb=1.0
)


@pytest.fixture(scope="module")
def slow_engine(launch: Callable[..., Any]) -> Any:
    return launch("--a", TIMES.a, "--b", TIMES.b, "--c", TIMES.c)


@pytest.fixture(scope="module")
def measured(slow_engine: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LatencyTable, str]:
    """A table, interrupted once on the way."""
    out = tmp_path_factory.mktemp("measure") / "fake.parquet"
    endpoint = Endpoint(slow_engine.url, "fake")
    screen = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        interrupted(endpoint, out)
    measure_and_report(endpoint, SETTINGS, out, False, Console(file=screen, width=200))
    return out, load_table(out), screen.getvalue()


def interrupted(endpoint: Endpoint, out: Path) -> None:
    """What Ctrl-C after three cells leaves behind."""
    done: list[Progress] = []

    def report(progress: Progress) -> None:
        done.append(progress)
        if len(done) == 7:
            raise KeyboardInterrupt

    async def run() -> None:
        async with open_client(endpoint) as client:
            engine = await probe(client, endpoint)
            config = {"model": "fake", "version": "fake-1", "output_tokens": OUTPUT, "max_model_len": 4096}
            state = out.with_name(out.name + ".state.json")
            await Measurement(client, engine, SETTINGS, Cells(config), state, report).run()

    asyncio.run(run())


def test_every_cell_is_the_closed_form(measured: Any) -> None:
    _, table, _ = measured
    tpot = table.values[0, 0, 0, :, 0, :, METRICS.index("tpot_ms")]
    batch, prompt = np.meshgrid(table.axes["batch_size"], table.axes["prompt_len_bucket"], indexing="ij")
    expected = TIMES.iteration_ms(batch, prompt, OUTPUT)  # type: ignore[arg-type]
    assert np.median(np.abs(tpot / expected - 1.0)) < 0.10, (tpot, expected)
    assert table.values[0, 0, 0, :, 0, :, METRICS.index("tps")] == pytest.approx(1000.0 * batch / tpot, rel=1e-5)


def test_the_fit_finds_what_an_iteration_and_a_prompt_cost(measured: Any) -> None:
    out, table, _ = measured
    fitted = json.loads(table.metadata["fitted"])
    assert fitted["iteration_ms"] == pytest.approx(TIMES.a, rel=0.25)
    prompts = np.asarray(table.axes["prompt_len_bucket"])
    slope = np.polyfit(prompts, fitted["prefill_ms"], 1)[0]
    assert slope == pytest.approx(TIMES.c, rel=0.4)
    assert fitted["request_overhead_ms"] < TIMES.a
    cells = json.loads((out.parent / (out.name + ".state.json")).read_text())
    assert len(cells["single"]) == 2 and all(len(piece["ttft_ms"]) > 4 for piece in cells["single"])


def test_the_grid_spans_what_was_asked_and_locks_the_other_knobs(measured: Any) -> None:
    _, table, _ = measured
    assert min(table.axes["batch_size"]) == 1 and max(table.axes["batch_size"]) == 8
    assert min(table.axes["prompt_len_bucket"]) == 64 and max(table.axes["prompt_len_bucket"]) == 256
    assert set(table.locked_knobs) == {"kv_budget", "spec_length", "prefill_disagg", "quant_tier"}
    memory = table.values[..., METRICS.index("gpu_mem_gb")]
    assert memory.min() >= 1.0 and memory.max() > 1.0  # the base, and the server's own KV figure


def test_metadata_says_of_what_when_and_how_well(measured: Any) -> None:
    _, table, _ = measured
    for key in ("engine", "version", "model", "base_url", "measured_at", "seconds", "reference_output_length"):
        assert table.metadata[key]
    assert table.output_length == OUTPUT
    spread = json.loads(table.metadata["spread"])
    cells = {
        f"{int(n)}:{i}"
        for n in table.axes["batch_size"]
        for i in (0, 1, 2)
        if 64 * 2**i in table.axes["prompt_len_bucket"]
    }
    assert set(spread) == cells and all(0 <= x["tpot"] < 1 for x in spread.values())


def test_open_loop_reads_the_engines_iterations_and_pool(measured: Any) -> None:
    _, table, _ = measured
    profile = profile_of(table)
    assert profile.pool_tokens(0) == pytest.approx(65536)
    assert profile.kv_bytes_per_token == pytest.approx(4e9 / 65536)
    assert profile.path_ms == json.loads(table.metadata["fitted"])["request_overhead_ms"]
    batch = np.asarray(table.axes["batch_size"])
    iteration = np.interp(batch, profile.products_tokens, profile.products_ms[0])
    iteration += profile.decode_attention_ms[:, 0]
    assert np.median(np.abs(iteration / (TIMES.a + TIMES.b * batch) - 1.0)) < 0.15, iteration


def test_an_interrupted_run_goes_on_where_it_stopped(measured: Any) -> None:
    out, _, shown = measured
    assert "going on from" in shown and "3 cells" in shown
    state = json.loads(Path(f"{out}.state.json").read_text())
    first = [entry for entry in state["cells"] if (entry["concurrency"], entry["bucket"]) == (1, 0)]
    assert len(first) == 1 and first[0]["slices"]


def test_a_table_that_is_measured_makes_an_environment(measured: Any) -> None:
    import inferencegym_jax as ig

    _, table, _ = measured
    env, params = ig.make(1, table=table)
    _, state = env.reset_seed(0, params)
    *_, info = env.step(None, state, ig.ServeAction(batch_size=4), params)
    assert np.isfinite(float(info["metrics"].ttft_p50_ms))


def test_times_and_saturation_read_from_the_table_are_the_engines(measured: Any) -> None:
    _, table, _ = measured
    times = EngineTimes(table)
    assert times.decode_ms(4, 128 + OUTPUT / 2) == pytest.approx(TIMES.a + 4 * TIMES.b, rel=0.2)
    top = 8 * 1000.0 / (OUTPUT * TIMES.iteration_ms(8, 128, OUTPUT))
    assert saturation(table, 128, OUTPUT) == pytest.approx(top, rel=0.2)


def test_a_state_file_of_another_run_is_refused_by_name_of_the_difference(measured: Any, slow_engine: Any) -> None:
    out, _, _ = measured
    other = dataclasses.replace(SETTINGS, output_tokens=32)
    with pytest.raises(StateError, match="output_tokens = 16, not 32.*--restart"):
        measure_and_report(Endpoint(slow_engine.url, "fake"), other, out, False, Console(file=io.StringIO()))


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"config": {}, "elapsed_s": 0, "cells": [{}]}'])
def test_a_broken_state_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.state.json"
    path.write_text(text)
    with pytest.raises(StateError, match="cannot be read"):
        Cells.load(path, {})


def test_cells_survive_their_file(tmp_path: Path) -> None:
    cells = Cells({"model": "m"}, elapsed_s=3.5)
    cells.add((4, 1), Slice(1.0, 5.1, 3.5, 0.1, [5.0, 5.2], [9.0, 11.0], [700.0, 710.0], 0.25, 0.0))
    cells.acceptance = (2, [1.0, 1.7, 2.1, 2.2, 2.2])
    cells.single.append(Slice(1.0, 5.0, 1.0, 0.0, [5.0], [17.0], [200.0]))
    cells.save(tmp_path / "s.json")
    assert Cells.load(tmp_path / "s.json", {"model": "m"}) == cells
    assert cells.tpot_ms((4, 1)) == pytest.approx(5.1) and cells.ttft_ms((4, 1), 50) == 10.0
    before = json.loads((tmp_path / "s.json").read_text())
    del before["single"]  # of before lone requests of one token were sent
    (tmp_path / "s.json").write_text(json.dumps(before))
    assert Cells.load(tmp_path / "s.json", {"model": "m"}).single_overhead_ms() is None


def test_what_shares_a_gap_is_counted_from_when_tokens_came() -> None:
    """An engine of 10 ms iterations with three requests; the third's prefill takes the fourth iteration to 40 ms."""
    rng = np.random.default_rng(0)
    ends = np.cumsum([0.010] * 3 + [0.040] + [0.010] * 4)
    gaps, firsts = [], []
    for first in (0, 0, 3):
        times = ends[first:] + rng.uniform(0.0, 0.001, len(ends) - first)  # tokens of one iteration, jittered
        firsts.append(times[0])
        gaps += list(itertools.pairwise(times))
    inside, prefills = shared(np.array(gaps), np.array(firsts))
    assert len(gaps) == 7 + 7 + 4
    assert inside == pytest.approx((6 * 2 + 12 * 3) / 18)  # gaps while two run, and while three do
    assert prefills == pytest.approx(2 / 18)  # the third's, in one gap of each of the others; not one's own


def test_a_decode_iteration_is_that_of_the_gaps_in_which_nobody_prefilled() -> None:
    """20 requests in flight in 30 ms iterations; every fifth holds a prefill that adds 90 ms; one was held up."""
    rng = np.random.default_rng(1)
    lengths = np.full(100, 0.030)
    lengths[::5] += 0.090
    lengths[52] += 0.300
    ends = np.cumsum(lengths)
    gaps = [pair for _ in range(20) for pair in itertools.pairwise(ends + rng.uniform(0.0, 0.002, 100))]
    firsts = ends[::5] + rng.uniform(0.0, 0.002, 20)
    decode_s = undisturbed(np.array(gaps), firsts)
    assert decode_s == pytest.approx(0.030, rel=0.01)
    assert undisturbed(np.array(gaps), ends) is None  # somebody prefilled in every one
    assert undisturbed(np.array(gaps[:20]), firsts) is None  # too few
    # first tokens surface an iteration later: the gaps with prefills, which add 20 ms, are those before
    lengths = np.full(100, 0.030)
    lengths[::5] += 0.020
    ends = np.cumsum(lengths)
    moments = [ends + rng.uniform(0.0, 0.002, 100) for _ in range(20)]
    own = np.array([pair for of_one in moments for pair in itertools.pairwise(of_one[:-1])])
    next_ones = np.array([pair for of_one in moments for pair in itertools.pairwise(of_one[1:])])
    late = ends[1::5] + rng.uniform(0.0, 0.002, 20)
    assert undisturbed(own, late) == pytest.approx(0.030, rel=0.01)
    assert undisturbed(np.zeros((0, 2)), firsts) is None
    for shown, added_s in ((own, -0.005), (next_ones, 0.020)):  # of five gaps one is longer, and not the next
        assert added_by_prefills(own, shown, late) == pytest.approx(added_s, abs=5e-4)
    assert added_by_prefills(own[:10], own[:10], late) is None


def test_what_a_prompt_adds_beside_others_is_told_from_what_it_adds_alone() -> None:
    def piece(gap: float, inside: float, prefills: float, decode: float | None, ttft: float) -> Slice:
        return Slice(1.0, gap, inside, prefills, [gap], [ttft], [100.0], decode_ms=decode)

    cells = Cells({})
    for bucket, (alone, added) in enumerate([(50.0, 60.0), (100.0, 120.0)]):
        cells.add((1, bucket), piece(20.0, 1.0, 0.0, 20.0, 20.0 + alone))
        for n, decode, prefills in ((8, 34.0, 0.25), (16, 50.0, 0.5)):
            gap = decode + prefills * added
            cells.add((n, bucket), piece(gap, float(n), prefills, decode, 1.5 * gap + added))
    alone_ms, _ = prefill(cells, [0, 1])
    assert alone_ms == pytest.approx([50.0, 100.0])
    added_ms, seen = beside(cells, [0, 1], alone_ms)
    assert added_ms == pytest.approx([60.0, 120.0]) and seen == [True, True]
    engine = Engine(Endpoint("http://h:1", "m"), None, None, None, False)
    columns = build_columns(cells, [1, 8, 16], [0, 1], engine, 32, 1.0)
    fitted = fit(cells, columns, [0, 1], 32)
    assert fitted["prefill_ms"] == pytest.approx([60.0, 120.0])
    assert fitted["prefill_alone_share"] == pytest.approx(150.0 / 180.0, abs=1e-4)
    assert [fitted["iteration_ms"], fitted["running_ms"]] == pytest.approx([18.0, 2.0])
    as_alone, seen = beside(cells, [0, 1], alone_ms, 32)  # prompts took several iterations
    assert as_alone == pytest.approx(alone_ms) and seen == [False, False]


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_when_first_tokens_surface_is_told_from_the_gaps_that_are_longer(extra: int) -> None:
    """Prompts add 60 ms, which gaps show so many before the first token."""
    cells = Cells({})
    for n, decode, prefills in ((8, 34.0, 0.25), (16, 50.0, 0.5)):
        gap = decode + prefills * 60.0
        added = [5.0 * (-1) ** delay for delay in range(MOST_EXTRA + 1)]
        added[extra] = 60.0
        cells.add((n, 0), Slice(1.0, gap, n, prefills, [gap], [900.0], [9.0], decode_ms=decode, added_ms=added))
    cells.add((1, 0), Slice(1.0, 20.0, 1.0, 0.0, [20.0], [80.0], [50.0], decode_ms=20.0))
    assert first_token_seen(cells, [0]) == extra
    assert first_token_seen(cells, []) is None  # every prompt takes several iterations
    columns = build_columns(cells, [1, 8, 16], [0], Engine(Endpoint("http://h:1", "m"), None, None, None, False), 32, 1)
    fitted = fit(cells, columns, [0], 32)
    assert fitted["first_token_extra_iterations"] == extra
    assert [fitted["iteration_ms"], fitted["running_ms"]] == pytest.approx([18.0, 2.0])
    assert fitted["first_token_source"] == "gaps"
    for pieces in cells.slices.values():
        pieces[:] = [dataclasses.replace(piece, added_ms=[]) for piece in pieces]  # as of an older file
    assert first_token_seen(cells, [0]) is None


def test_half_width_is_students() -> None:
    from scipy import stats

    values = [5.0, 5.5, 4.8, 5.1]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2 / np.mean(values), rel=5e-3)
    assert half_width([1.0]) == float("inf")


def test_curves_are_read_off_at_whole_numbers() -> None:
    at = np.array([0.9, 3.6, 7.2])
    assert read_off([1, 4, 8], at, 10.0 + 2.0 * at) == pytest.approx([12.0, 18.0, 26.0])
    assert read_off([1, 4], np.array([3.0, 2.0]), np.array([5.0, 6.0])) == pytest.approx([5.0, 6.0])
    at, cut = np.array([1.0, 4.0, 3.9, 4.2]), np.array([12.0, 18.0, 90.0, 5.0])  # the pool holds four of 8, of 16
    assert read_off([1, 4, 8, 16], at, cut, np.array([0, 1])) == pytest.approx([12.0, 18.0, 26.0, 42.0])


def test_as_many_are_in_flight_as_the_pool_holds_to_their_ends() -> None:
    endpoint = Endpoint("http://h:1", "m")
    engine = Engine(endpoint, None, None, None, True, kv_cache_tokens=8192.0, kv_block_tokens=32.0)
    settings = MeasureSettings(output_tokens=32)
    client: Any = None
    one = Measurement(client, engine, settings, Cells({}))
    assert [one.in_flight(n, 256) for n in (1, 25, 26, 64)] == [1, 25, 25, 25]  # ten blocks each
    assert one.in_flight(64, 64) == 64 and one.in_flight(1, 4096) == 1
    unknown = Measurement(client, dataclasses.replace(engine, kv_cache_tokens=None), settings, Cells({}))
    assert unknown.in_flight(64, 256) == 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget_s": 0}, "budget = 0"),
        ({"most_concurrency": 600}, "from 1 to 512"),
        ({"longest_prompt": 10}, "at least 64"),
        ({"precision": float("nan")}, "precision = nan"),
        ({"output_tokens": 1}, "at least 4"),
        ({"token_budget": -1}, "max-num-batched-tokens = -1"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MeasureSettings(**changes)


def test_the_scan_stops_where_the_server_itself_queues(launch: Callable[..., Any], tmp_path: Path) -> None:
    two_slots = launch("--max-num-seqs", 2, "--a", 20)
    settings = MeasureSettings(budget_s=1.0, output_tokens=4, longest_prompt=64, slice_s=0.5)
    out = tmp_path / "t.parquet"
    measure_and_report(Endpoint(two_slots.url, "fake"), settings, out, False, Console(file=io.StringIO()))
    assert load_table(out).axes["batch_size"] == (1.0, 4.0)


def test_a_context_too_short_and_a_server_that_fails_are_said(launch: Callable[..., Any], tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    short = launch("--max-model-len", 80)
    with pytest.raises(EngineError, match="no room for a prompt of 64"):
        measure_and_report(Endpoint(short.url, "fake"), SETTINGS, tmp_path / "t.parquet", False, console)
    stalling = launch("--fault", "stall")
    endpoint = Endpoint(stalling.url, "fake", stall_timeout_s=0.2)
    with pytest.raises(EngineError, match="no token for 0.2 s"):
        measure_and_report(endpoint, SETTINGS, tmp_path / "t.parquet", False, console)
    with pytest.raises(FileNotFoundError, match="no folder"):
        measure_and_report(endpoint, SETTINGS, tmp_path / "none" / "t.parquet", False, console)
