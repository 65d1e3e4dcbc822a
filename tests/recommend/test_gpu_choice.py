"""How N GPUs are cut for a log: the closed forms that rank, the replay that decides, the commands."""

import dataclasses
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from inferencegym_jax.cli.app import app
from inferencegym_jax.hardware.compiled_engine import require_package
from inferencegym_jax.recommend.gpu_choice import Tried, better, front
from inferencegym_jax.recommend.layouts import (
    DRAFTS,
    SLOTS,
    TOKEN_BUDGETS,
    Layout,
    expected,
    layouts,
    neighbours,
    with_slots,
    worth_replaying,
)
from inferencegym_jax.table import TableError
from inferencegym_jax.table.derived_profile import shipped_profile

ONE = Layout(tp=1, replicas=1, apart=False, tier=0, slots=SLOTS[-1], token_budget=2048, drafts=0)


def _installed() -> bool:
    try:
        require_package()
    except TableError:
        return False
    return True


kernels = pytest.mark.skipif(not _installed(), reason="the extra `tables` (aiconfigurator-core) is not installed")


def tried(layout: Layout, attainment: float, seconds: float, ttft: float = 100.0, tpot: float = 10.0) -> Tried:
    return Tried(layout, attainment, ttft, tpot, None, seconds, attainment >= 0.99)


def test_every_cut_of_the_gpus_is_tried_and_none_beyond():
    found = layouts(4, {1: (0, 1), 2: (0,), 4: (0,)})
    assert max(one.gpus for one in found) == 4
    kinds = {one.kind for one in found}
    assert kinds == {
        *((1, n, False) for n in (1, 2, 3, 4)),
        *((1, n, True) for n in (1, 2)),
        *((2, n, False) for n in (1, 2)),
        (2, 1, True),
        (4, 1, False),
    }
    assert {(one.token_budget, one.drafts) for one in found} == {(b, k) for b in TOKEN_BUDGETS for k in DRAFTS}


def test_more_engines_wait_less_and_an_overload_is_one():
    profile = shipped_profile()
    seen = [
        expected(dataclasses.replace(ONE, replicas=n), profile, rate=0.01, prompt=512, output=128, al=1.0)
        for n in (1, 2, 4)
    ]
    assert all(one.keeps_up for one in seen)
    assert [one.ttft_ms for one in seen] == sorted((one.ttft_ms for one in seen), reverse=True)
    assert not expected(ONE, profile, rate=0.5, prompt=2048, output=128, al=1.0).keeps_up
    # Little's law: what runs is rate x output x the time of a token
    (first, *_) = seen
    assert first.running == pytest.approx(0.01 * 128 * first.tpot_ms, rel=0.02)


def test_a_pool_without_room_for_one_request_serves_none():
    profile = shipped_profile()
    huge = expected(ONE, profile, rate=1e-6, prompt=profile.pool_tokens(0) + 1, output=1, al=1.0)
    assert not huge.keeps_up and math.isinf(huge.ttft_ms)


def test_two_replicas_a_pair_and_two_gpus_wide_always_compete():
    found = layouts(8, {1: (0,), 2: (0,), 4: (0,), 8: (0,)})
    profile = shipped_profile()
    seen = [expected(one, profile, 0.02, 512, 128, 1.0) for one in found]
    picked = worth_replaying(found, seen, ttft_ms=300.0, tpot_ms=50.0, most=2)
    assert {(1, 2, False), (1, 1, True), (2, 1, False)} <= {one.kind for one in picked}
    assert len({one.kind for one in picked}) == len(picked) <= 5


def test_slots_leave_room_for_bursts_and_neighbours_differ_in_one_setting():
    assert with_slots(ONE, 20.0).slots == 64 and with_slots(ONE, 1e6).slots == SLOTS[-1]
    here = dataclasses.replace(ONE, slots=64)
    for other in neighbours(here):
        changed = [name for name in ("slots", "token_budget", "drafts") if getattr(other, name) != getattr(here, name)]
        assert len(changed) == 1 and other.kind == here.kind


def test_the_cheapest_that_meets_is_recommended_and_the_closest_where_none_does():
    two, drafts = dataclasses.replace(ONE, replicas=2), dataclasses.replace(ONE, drafts=2)
    results = {
        ONE: tried(ONE, 0.995, 1.0),
        drafts: tried(drafts, 0.999, 1.0),
        two: tried(two, 1.0, 2.0),
    }
    assert better(results).layout == ONE  # drafts need a head, and are not needed
    results[ONE] = tried(ONE, 0.5, 1.0)
    assert better(results).layout == drafts
    assert better({ONE: tried(ONE, 0.5, 1.0), two: tried(two, 0.7, 2.0)}).layout == two


def test_the_front_holds_what_nothing_beats():
    two, four = (dataclasses.replace(ONE, replicas=n) for n in (2, 4))
    results = [tried(ONE, 0.9, 1.0), tried(two, 0.99, 2.0), tried(four, 0.98, 4.0)]
    assert [one.layout for one in front(results)] == [ONE, two]


def written_log(path):
    """Two requests a second for a minute, 300 prompt and 60 output tokens."""
    rng = np.random.default_rng(0)
    rows = ["timestamp,prompt_tokens,output_tokens"]
    rows += [f"{t:.3f},300,60" for t in np.sort(rng.uniform(0, 60, 120))]
    path.write_text("\n".join(rows) + "\n")
    return path


@kernels
def test_a_cut_is_recommended_with_its_flags(tmp_path):
    log = written_log(tmp_path / "log.csv")
    arguments = ["recommend", "--trace", str(log), "--model", "meta-llama/Llama-3.1-70B"]
    arguments += ["--system", "H100", "--gpus", "2"]
    found = CliRunner().invoke(
        app, [*arguments, "--slo-ttft-ms", "5000", "--attainment", "0.9", "--dtype", "bf16", "--json"]
    )
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    best = answer["recommended"]
    assert best["meets"] and best["gpus"] == 2 and best["tensor_parallel"] == 2  # 141 GB of weights
    assert (
        "--tensor-parallel-size 2" in answer["flags"]["vllm"] and "meta-llama/Llama-3.1-70B" in answer["flags"]["vllm"]
    )
    assert "--tp-size 2" in answer["flags"]["sglang"] and "--tp_size 2" in answer["flags"]["tensorrt_llm"]
    assert best["dollars_per_million_tokens"] == pytest.approx(best["gpu_seconds_per_1k_tokens"] / 3.6 * 3.99)
    assert all(row["gpus"] <= 2 for row in answer["front"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "Qwen/Qwen3-32B", "--system", "H100"], "--gpus is missing"),
        (["--gpus", "2", "--system", "H100"], "--model is missing"),
        (["--gpus", "2", "--model", "x", "--system", "H100", "--fixed", "batch_size=8"], "--fixed has no place"),
        (["--gpus", "0", "--model", "Llama-2-7b-hf", "--system", "H100"], "gpus = 0: must be a whole number from 1"),
        (["--gpus", "1", "--model", "Llama-2-70b-hf", "--system", "H100", "--dtype", "bf16"], "2 would do: --tp 2"),
    ],
)
def test_what_is_asked_wrongly_is_said(tmp_path, arguments, message):
    found = CliRunner().invoke(app, ["recommend", "--trace", str(written_log(tmp_path / "log.csv")), *arguments])
    assert found.exit_code == 2 and message in " ".join(found.output.split())
