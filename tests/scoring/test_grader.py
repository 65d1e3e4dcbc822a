"""Graders: the formulas of ENVIRONMENT.md, section 7, purity, and what a bad log is told."""

import copy
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.scoring.grader import score_aggregates
from inferencegym_jax.tasks import calibration

TASKS = (1, 2, 3)


def entry(batch=32, kv=1.0, tps=1000.0, ttft=100.0, memory=30.0, violations=0, cost=0.01):
    return {
        "action": {"batch_size": batch, "kv_budget": kv, "spec_length": 0, "prefill_disagg": False, "quant_tier": 0},
        "reward": 0.0,
        "metrics": {
            "tokens_per_sec": tps,
            "ttft_p50_ms": ttft,
            "gpu_memory_gb": memory,
            "slo_violations": violations,
            "cost_per_1k": cost,
        },
    }


def norms(task):
    return calibration()["tasks"][ig.get_task(task).name]


def test_task_1_is_throughput_between_floor_and_optimal():
    optimal, floor = norms(1)["optimal_tps"], norms(1)["throughput_floor"]
    log = [entry(tps=0.25 * optimal), entry(tps=0.75 * optimal)]
    assert ig.grade(1, log)["score"] == pytest.approx((0.5 * optimal - floor) / (optimal - floor))
    assert ig.grade(1, [entry(tps=9 * optimal)])["score"] == 1.0


@pytest.mark.parametrize("peak, memory", [(35.9, 1.0), (36.0, 1.0), (38.0, 0.8), (40.0, 0.6), (50.0, 0.0)])
def test_task_2_is_latency_and_peak_memory(peak, memory):
    result = ig.grade(2, [entry(ttft=60, memory=20), entry(ttft=120, memory=peak)])
    assert result["breakdown"] == {"latency": pytest.approx(0.7), "memory": pytest.approx(memory)}
    assert result["score"] == pytest.approx(0.35 + 0.5 * memory)


def test_task_3_is_the_weighted_sum_of_four():
    optimal = norms(3)["optimal_tps"]
    batches, budgets = [32, 64, 32, 128], [1.0, 0.5, 0.5, 0.25]
    log = [
        entry(batch=b, kv=k, tps=0.5 * optimal, violations=25, cost=0.5) for b, k in zip(batches, budgets, strict=True)
    ]
    stability = 1 - (np.std(np.diff(batches)) / 512 + np.std(np.diff(budgets))) / 0.5
    result = ig.grade(3, log)
    assert result["breakdown"] == pytest.approx({"throughput": 0.5, "slo": 0.75, "cost": 0.6, "stability": stability})
    assert result["score"] == pytest.approx(0.40 * 0.5 + 0.30 * 0.75 + 0.20 * 0.6 + 0.10 * stability)


@pytest.mark.parametrize("task", TASKS)
def test_an_empty_log_scores_zero_and_says_so(task):
    result = ig.grade(task, [])
    assert result["score"] == 0.0 and "empty" in result["feedback"]


@pytest.mark.parametrize("task", TASKS)
def test_a_log_of_one_step_is_graded(task):
    assert 0 <= ig.grade(task, [entry()])["score"] <= 1


numbers = st.floats(0, 1e6, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    log=st.lists(
        st.builds(
            entry,
            batch=st.integers(1, 512),
            kv=st.floats(0.1, 1),
            tps=numbers,
            ttft=numbers,
            memory=st.floats(0, 80),
            violations=st.integers(0, 5000),
            cost=numbers,
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_every_component_and_the_score_stay_in_the_unit_interval_and_grading_is_pure(task, log):
    before = copy.deepcopy(log)
    first, second = ig.grade(task, log), ig.grade(task, log)
    assert first == second and log == before
    assert all(0 <= value <= 1 for value in (first["score"], *first["breakdown"].values()))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e.pop("metrics"), r"episode_log\[1\].metrics: missing"),
        (lambda e: e["metrics"].pop("cost_per_1k"), r"episode_log\[1\].metrics.cost_per_1k: missing"),
        (lambda e: e["metrics"].update(tokens_per_sec=float("nan")), r"tokens_per_sec = nan: must be a finite"),
        (lambda e: e["metrics"].update(tokens_per_sec=float("inf")), r"tokens_per_sec = inf: must be a finite"),
        (lambda e: e["metrics"].update(tokens_per_sec="12"), r"tokens_per_sec = '12': must be a finite"),
        (lambda e: e["metrics"].update(slo_violations=None), r"slo_violations = None: must be a finite"),
        (lambda e: e["metrics"].update(slo_violations=[1]), r"slo_violations = \[1\]: must be a finite"),
        (lambda e: e["action"].update(batch_size=10**5000), r"batch_size = a number of thousands of digits"),
        (lambda e: e.update(action=[1]), r"episode_log\[1\].action: missing"),
    ],
)
def test_a_bad_entry_names_its_place_and_field(change, message):
    log = [entry(), entry()]
    change(log[1])
    with pytest.raises(ValueError, match=message):
        ig.grade(3, log)


@pytest.mark.parametrize("log", ["text", {"a": 1}, 5, None])
def test_something_else_than_a_list_is_told_so(log):
    with pytest.raises(ValueError, match="must be a list of log entries"):
        ig.grade(1, log)


@pytest.mark.parametrize("task", TASKS)
def test_statistics_of_a_vmapped_batch_score_as_the_log_does(task):
    env, params = ig.make(task)
    seeds = np.arange(3)
    scores = score_aggregates(task, ig.evaluate(env, params, ig.policies.random, seeds))["score"]
    trajectory = ig.rollout(env, params, ig.policies.random, seeds)
    for i in range(3):
        log = [
            {
                "action": {n: np.asarray(getattr(trajectory.action, n))[t, i] for n in ("batch_size", "kv_budget")},
                "reward": float(trajectory.reward[t, i]),
                "metrics": {n: np.asarray(x)[t, i] for n, x in vars(trajectory.metrics).items()},
            }
            for t in range(200)
        ]
        assert ig.grade(task, log)["score"] == pytest.approx(scores[i], abs=2e-4)


def test_grading_starts_no_jax_computation():
    code = (
        "import inferencegym_jax.scoring.grader as g, sys;"
        "from jax._src import xla_bridge;"
        "m={'tokens_per_sec':1.0,'ttft_p50_ms':1.0,'gpu_memory_gb':1.0,'slo_violations':0,'cost_per_1k':1.0};"
        "g.grade(1,[{'action':{'batch_size':1,'kv_budget':1.0},'reward':0,'metrics':m}]);"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
