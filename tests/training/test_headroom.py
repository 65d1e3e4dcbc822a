"""Rivals, oracle and the table of what control is worth."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, ServeObservation
from inferencegym_jax.physics.capacity import work_ms
from inferencegym_jax.physics.observation import initial_observation
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.policies.engine_units import engine_of
from inferencegym_jax.policies.load_following import NEVER, LoadPlan, Memory, act
from training import headroom, lanes, oracle, rivals
from training.cli import app
from training.intervals import interquartile, interquartile_mean

SEEDS = np.arange(3, dtype=np.uint32)


@pytest.fixture(autouse=True)
def _few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes.scores_of, "__defaults__", (24,))


def drawn_sequences(rng: np.random.Generator, steps: int = 200) -> lanes.Sequences:
    blocks = {name: rng.integers(len(knob.options), size=(len(SEEDS), steps // 20)) for name, knob in KNOBS.items()}
    return {
        name: np.repeat(np.asarray([[knob.options[i] for i in row] for row in blocks[name]]), 20, axis=1)
        for name, knob in KNOBS.items()
    }


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), rounds=st.integers(0, 3), task=st.sampled_from((1, 3)))
def test_the_oracle_never_falls_below_a_rival(seed: int, rounds: int, task: int) -> None:
    problem, rng = ig.problem(task), np.random.default_rng(seed)
    starts = [drawn_sequences(rng) for _ in range(3)]
    starts.append(lanes.held(problem.best_static, len(SEEDS), 200))
    best, score = oracle.search(problem, SEEDS, starts, candidates=4, rounds=rounds)
    for start in starts:
        assert (score >= oracle.scores_of(problem, start, SEEDS)).all()
    assert score == pytest.approx(oracle.scores_of(problem, best, SEEDS), abs=1e-9)


def test_the_search_finds_what_a_change_wins() -> None:
    problem = ig.problem(1)
    start = lanes.held(ig.ServeAction(), len(SEEDS), 200)
    _, score = oracle.search(problem, SEEDS, [start], candidates=8, rounds=6)
    assert (score > oracle.scores_of(problem, start, SEEDS) + 0.05).all()


@pytest.mark.slow
def test_replayed_actions_are_the_policys_own_episodes() -> None:
    problem = ig.problem(1)
    drawn = lanes.random_sequences(SEEDS, 200)
    own = ig.rollout(problem.env, problem.params, ig.policies.random, SEEDS)
    again = lanes.episodes_of(problem, lanes.of_sequences(drawn), SEEDS)
    assert np.asarray(again.reward) == pytest.approx(np.asarray(own.reward), abs=1e-6)
    found = headroom.played(problem, again)
    direct = problem.score(ig.evaluate(problem.env, problem.params, ig.policies.random, SEEDS))
    assert found.columns["score"] == pytest.approx(direct, abs=1e-5)


@pytest.mark.slow
def test_a_table_of_rivals_is_measured_and_written(tmp_path: Path) -> None:
    words = ["headroom", "--task", "1", "--episodes", "3", "--settings", "4", "--rounds", "2"]
    answer = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "worth")])
    assert answer.exit_code == 0, answer.output
    found = json.loads((tmp_path / "worth.json").read_text())
    rows = {row["policy"]: row for row in found["rows"]}
    assert list(rows)[-1] == "oracle" and {"random", "baseline", "best static", "best reactive", "PPO"} <= set(rows)
    static, best = rows["best static"], rows["oracle"]
    won = best["score"]["mean"] - static["score"]["mean"]
    assert static["paired"]["mean"] == 0.0
    assert [static["normalised"], best["normalised"]] == ([0.0, pytest.approx(1.0)] if won > 0 else [None, None])
    for row in rows.values():
        assert best["score"]["mean"] >= row["score"]["mean"] - 1e-9 and row["worst"]["paired"] <= row["paired"]["mean"]
    with (tmp_path / "worth.csv").open() as file:
        assert [line["policy"] for line in csv.DictReader(file)] == list(rows)
    assert (tmp_path / "worth.png").stat().st_size > 5000 and "<svg" in (tmp_path / "worth.svg").read_text()
    assert answer.stdout.count("\n|") == len(rows) + 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--episodes", "0"], "episodes = 0: must be a whole number of at least 1"),
        (["--settings", "0"], "settings = 0"),
        (["--policy", "nobody"], "--policy 'nobody': must be ROW=FILE"),
        (["--clock", "60"], "task 1's traffic has no hours of the day"),
    ],
)
def test_what_cannot_be_measured_is_named(words: list[str], message: str) -> None:
    answer = CliRunner().invoke(app, ["headroom", "--task", "1", *words])
    assert answer.exit_code == 2 and message in answer.output.replace("\n", " ")


def test_ablations_change_what_they_say_and_nothing_else() -> None:
    problem = ig.problem("second-gpu")
    free, quick = headroom.ablated(problem, free_switching=True), headroom.ablated(problem, clock=60.0)
    assert (float(free.params.engine.start_s), float(free.params.engine.lease_s)) == (0.0, 0.0)
    assert float(quick.params.engine.day.clock) == 60.0 and quick.normalisers == problem.normalisers
    same = free.params.replace(engine=free.params.engine.replace(**{
        name: getattr(problem.params.engine, name) for name in ("start_s", "lease_s", "restart_s")
    }))  # fmt: skip
    for one, other in zip(jax.tree.leaves(same), jax.tree.leaves(problem.params), strict=True):
        assert np.array_equal(one, other)


def observed(**fields: float) -> ServeObservation:
    seen: Any = initial_observation()
    return ServeObservation(**{**vars(seen), **{name: np.float32(value) for name, value in fields.items()}})


def controlled(
    plan: LoadPlan, loads: list[float], forecast: Any = None, waiting: float = 0.0, start_s: float = 30.0
) -> list[bool]:
    """Whether the second GPU is asked for, second by second, at loads of one GPU's capacity."""
    problem = ig.problem("second-gpu")
    engine = dataclasses.replace(engine_of(problem.table, problem.params), start_s=np.float32(start_s))
    memory, asked = Memory.start(), []
    work = float(engine.work_base_ms) + 500.0 * float(engine.work_token_ms)
    told = np.full(1, np.nan, np.float32) if forecast is None else np.asarray(forecast, np.float32)
    for load in loads:
        seen = observed(arrival_rate=1000.0 * load / work, mean_prompt_len=500.0, queue_depth=waiting)
        action, memory = act(engine, plan.as_arrays(), told, seen, memory)
        asked.append(bool(action.prefill_disagg))
    return asked


def test_the_controller_asks_above_the_threshold_and_holds_before_it_gives_back() -> None:
    plan = LoadPlan(average_s=1.0, up_load=0.8, down_share=0.5, hold_s=3.0)
    assert controlled(plan, [0.5, 0.7, 0.9, 0.7, 0.5, 0.3, 0.3, 0.3, 0.3]) == [False] * 2 + [True] * 5 + [False] * 2
    assert controlled(plan, [0.1] * 3, waiting=9.0) == [False] * 3
    assert controlled(plan.replace(up_waiting=8.0), [0.1] * 3, waiting=9.0) == [True] * 3
    assert controlled(plan.replace(up_load=NEVER), [2.0] * 3) == [False] * 3
    assert controlled(plan, [0.1] * 3, forecast=[0.1, 1.2, 1.2]) == [False, True, True]
    assert controlled(plan.replace(average_s=60.0), [0.1] * 9 + [3.0]) == [False] * 10
    begun = plan.replace(first_s=1.0)  # before a load is known
    assert controlled(begun, [0.1] * 4) == [True, True, False, False] and controlled(begun, [0.5] * 4) == [True] * 4
    # a GPU that serves sooner than a first token is late is asked for when it is needed
    assert controlled(begun, [0.1, 0.1, 0.9], start_s=1.9) == [False, False, True]
    assert controlled(begun, [0.1, 0.1, 0.9], start_s=2.1) == [True, True, True]


def test_slots_are_not_fewer_than_the_plans_least() -> None:
    problem = ig.problem("second-gpu")
    engine = engine_of(problem.table, problem.params)
    hopeless = dataclasses.replace(engine, slo_tpot_ms=np.full(3, 1.0, np.float32))  # of which one request is too many
    told, plan = np.full(1, np.nan, np.float32), LoadPlan(slots_share=2.0)

    def slots(own: Any, least: float) -> int:
        asked = act(own, plan.replace(least_slots=least).as_arrays(), told, observed(), Memory.start())[0]
        return int(asked.batch_size)

    assert (slots(hopeless, 1.0), slots(hopeless, 32.0)) == (2, 32)
    assert slots(engine, 1.0) == slots(engine, 32.0) > 32


def test_drafts_get_shorter_as_more_run() -> None:
    problem = ig.problem("drafts-by-load")
    engine, memory = engine_of(problem.table, problem.params), Memory.start()
    plan = LoadPlan(few=10.0, many=40.0, long_drafts=4, short_drafts=1, draft_average_s=1.0, margin=0.1).as_arrays()
    lengths = []
    for running in (1, 9, 10.5, 12, 10.5, 30, 43, 50, 39):
        share = running * (160.0 + 0.5 * float(engine.output)) / float(engine.pool)
        seen = observed(kv_cache_occupancy=share, mean_prompt_len=160.0)
        action, memory = act(engine, plan, np.full(1, np.nan, np.float32), seen, memory)
        lengths.append(int(action.spec_length))
    assert lengths == [4, 4, 4, 1, 1, 1, 1, 0, 1]


def test_the_true_load_is_the_rate_times_the_work() -> None:
    problem = ig.problem("drafts-by-load")
    found = rivals.true_load(problem, rivals.test_seeds(2), ahead=1)
    assert found.shape == (2, 600) and found.max() == pytest.approx(1.1, abs=0.03)
    assert found.min() == pytest.approx(0.1, abs=0.03)
    fitted = rivals.true_load(ig.problem(4), np.arange(64, dtype=np.uint32))
    engine = ig.problem(4).params.engine
    work = work_ms(iterations_of(ig.load_table()), engine, engine.prompt_mean, engine.output_mean)
    assert fitted.mean() == pytest.approx(float(engine.rate) * float(work) / 1000.0, rel=0.06)


def test_work_of_a_request_is_what_saturates_an_engine() -> None:
    problem = ig.problem("second-gpu")
    engine, grid = problem.params.engine, iterations_of(problem.table)
    short, long = (float(work_ms(grid, engine, prompt, 300.0)) for prompt in (100.0, 4000.0))
    more = float(work_ms(grid, engine, 100.0, 600.0))
    assert 0 < short < more < 2.2 * short and long - short > 3900 * 0.04  # a prompt token costs 0.05 ms on an A100


def test_seeds_of_search_and_measurement_are_apart() -> None:
    assert rivals.training_seeds(50).min() >= 1 << 31 and rivals.test_seeds(50).max() < 1 << 30
    assert len(np.unique(rivals.test_seeds(50) // 48)) > 40  # of task 7: windows of days apart


def test_interquartile_means() -> None:
    values = np.random.default_rng(0).normal(size=(8, 40))
    assert interquartile_mean(values[0]) == pytest.approx(trim_mean(values[0], 0.25))
    assert interquartile_mean([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(3.5)
    found = interquartile(values, resamples=200)
    assert found["low"] < found["mean"] < found["high"]
