"""The four policies, the exhaustive search behind one of them, and the calibration that holds its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.episodes import static_search as solver
from inferencegym_jax.models import KNOBS
from inferencegym_jax.scoring.grader import score_aggregates
from inferencegym_jax.tasks import calibration

TASKS = (1, 2, 3)
HELD_OUT = np.arange(256) + 10_000


def scores(task, policy, seeds=HELD_OUT):
    env, params = ig.make(task)
    return score_aggregates(task, ig.evaluate(env, params, policy, seeds))["score"]


@pytest.mark.parametrize("task, low, high", [(1, 0.30, 0.40), (2, 0.22, 0.32), (3, 0.18, 0.28)])
def test_the_baselines_score_on_seed_0_is_in_its_range(task, low, high):
    env = ig.InferenceEnv(task, seed=0)
    while not env.done:
        env.step(ig.ServeAction())
    assert low <= ig.grade(task, env.episode_log)["score"] <= high


@pytest.mark.ci
@pytest.mark.parametrize("task", TASKS)
def test_best_static_beats_baseline_and_random(task):
    best = scores(task, ig.policies.best_static(task)).mean()
    assert best > scores(task, ig.policies.baseline).mean()
    assert best > scores(task, ig.policies.random).mean()


@pytest.mark.ci
@pytest.mark.parametrize("task", TASKS)
def test_no_static_action_near_it_scores_clearly_higher_than_best_static(task):
    env, params = ig.make(task)
    rng = np.random.default_rng(task)
    actions = []
    for _ in range(60):
        sampled = {
            "kv_budget": float(rng.uniform(0.1, 1)),
            "spec_length": int(rng.choice(KNOBS["spec_length"].choices)),
            "batch_size": int(rng.integers(1, 513)),
            "prefill_disagg": bool(rng.integers(2)),
            "quant_tier": int(rng.integers(3)),
        }
        actions.append(sampled)
    seeds = np.arange(32) + 500
    found = solver.search_static(env, params, actions, seeds)
    best = scores(task, ig.policies.best_static(task), seeds).mean()
    assert score_aggregates(task, found.per_seed)["score"].mean(axis=1).max() <= best + 0.01


@pytest.mark.parametrize("task", TASKS)
def test_optimal_action_is_safe_and_within_the_slo_where_that_is_possible(task):
    spec, entry = ig.get_task(task), calibration()["tasks"][ig.get_task(task).name]
    env, params = ig.make(task)
    found = solver.search_static(env, params, [entry["optimal_action"]], np.arange(64))
    assert found.worst_oom_share[0] == 0
    assert found.means.mean_tps[0] == pytest.approx(entry["optimal_tps"], rel=1e-4)
    if entry["optimal_mean_ttft_ms"] > spec.slo_ttft_ms[0]:  # then no safe action may manage it
        grid = solver.search_static(env, params, solver.static_actions(env, params), np.arange(8))
        assert (grid.means.mean_ttft_p50_ms[grid.worst_oom_share == 0] > spec.slo_ttft_ms[0]).all()


@pytest.mark.ci
@pytest.mark.parametrize("task", TASKS)
def test_best_static_is_never_out_of_memory_on_the_searchs_seeds_and_is_what_a_search_finds(task):
    entry = calibration()["tasks"][ig.get_task(task).name]
    env, params = ig.make(task)
    found = solver.search_static(env, params, [entry["best_static"]["action"]], np.arange(64))
    assert found.worst_oom_share[0] == 0
    assert scores(task, ig.policies.best_static(task), np.arange(64)).mean() == pytest.approx(
        entry["best_static"]["mean_score"], rel=1e-4
    )


def test_the_best_of_anything_is_never_out_of_memory():
    env, params = ig.make(3)
    actions = [env.table.knob_defaults | {"batch_size": b, "kv_budget": 0.1, "quant_tier": 1} for b in (64, 512, 128)]
    found = solver.search_static(env, params, actions, np.arange(8))
    np.testing.assert_array_equal(solver.never_out_of_memory(found), [True, False, True])
    assert solver.best_action(found, np.array([0.2, 0.9, 0.3])) == 2


@pytest.mark.slow
def test_refining_finds_what_lies_between_the_nodes_and_keeps_the_grid(monkeypatch):
    monkeypatch.setattr(solver, "CHUNK", 512)
    problem, seeds = ig.problem(3), np.arange(8)
    env, params = problem.env, problem.params
    coarse = solver.static_actions(
        env,
        params,
        {"batch_size": (8, 128, 512), "kv_budget": (0.1, 1.0), "spec_length": (0,), "prefill_disagg": (False,)},
    )
    grid = solver.search_static(env, params, coarse, seeds)

    def scores_of(search):
        return problem.score(search.per_seed).mean(axis=1)

    found = solver.refine(env, params, grid, scores_of, seeds)
    assert found.actions[: len(coarse)] == coarse
    np.testing.assert_array_equal(found.per_seed.total_cost[: len(coarse)], grid.per_seed.total_cost)
    best = solver.best_action(found, scores_of(found))
    assert found.worst_oom_share[best] == 0 and best >= len(coarse)
    assert scores_of(found)[best] > scores_of(grid)[solver.best_action(grid, scores_of(grid))] + 0.01
    assert all(1 <= action["batch_size"] <= 512 and 0.1 <= action["kv_budget"] <= 1 for action in found.actions)
    # no neighbour that fits is better
    at = found.actions[best]
    around = [
        at | {"batch_size": at["batch_size"] + n, "kv_budget": min(max(at["kv_budget"] + k, 0.1), 1.0)}
        for n in (-1, 0, 1)
        for k in (-0.001, 0.0, 0.001)
    ]
    near = solver.search_static(env, params, around, seeds)
    fits = near.worst_oom_share == 0
    assert scores_of(near)[fits].max() <= scores_of(found)[best] + 2e-3


def test_search_of_an_impossible_table_says_so():
    env, params = ig.make(1)
    hot = params.replace(oom_limit_gb=np.float32(1.0))
    found = solver.search_static(env, hot, [env.table.knob_defaults], np.arange(2))
    with pytest.raises(ValueError, match="every static action runs out of memory"):
        solver.optimal_throughput(found, 500.0)
    with pytest.raises(ValueError, match="every static action runs out of memory"):
        solver.best_action(found, np.zeros(1))


@pytest.mark.slow
def test_calibration_is_what_the_script_writes():
    script = Path(__file__).resolve().parents[2] / "data" / "calibrate.py"
    as_users_do = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, str(script), "--check"], env=as_users_do, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_calibration_is_that_of_the_shipped_table():
    assert calibration()["table_digest"] == ig.load_table().digest
    assert calibration()["cost_scale"] == float(ig.load_table().metadata["cost_scale"])
    assert json.dumps(calibration())  # plain JSON, no NaN
    assert "NaN" not in json.dumps(calibration())


def test_random_is_uniform_over_every_knob():
    env, params = ig.make(3)
    action = jax.tree.map(np.asarray, ig.rollout(env, params, ig.policies.random, np.arange(512)).action)
    n = action.batch_size.size
    assert action.batch_size.min() == 1 and action.batch_size.max() == 512
    assert action.batch_size.mean() == pytest.approx(256.5, abs=4 * 148 / np.sqrt(n))
    assert action.kv_budget.mean() == pytest.approx(0.55, abs=4 * 0.26 / np.sqrt(n))
    assert action.kv_budget.min() >= np.float32(0.1) and action.kv_budget.max() <= 1
    for name in ("spec_length", "quant_tier", "prefill_disagg"):
        _, counts = np.unique(getattr(action, name), return_counts=True)
        share = 1 / len(counts)
        assert np.abs(counts / n - share).max() < 5 * np.sqrt(share * (1 - share) / n)
    flat = np.stack([action.kv_budget.ravel(), action.batch_size.ravel(), action.quant_tier.ravel()])
    assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 5 / np.sqrt(n)
    assert np.abs(np.corrcoef(action.kv_budget[:-1].ravel(), action.kv_budget[1:].ravel())[0, 1]) < 5 / np.sqrt(n)


def test_static_policies_of_equal_actions_are_one_function():
    assert ig.policies.static(ig.ServeAction(batch_size=7)) is ig.policies.static(ig.ServeAction(batch_size=7))
    assert ig.policies.best_static(2) is ig.policies.best_static("bursty-sharegpt")


def test_todays_random_actions_stay_as_they_are():
    env, params = ig.make(3)
    action = jax.tree.map(np.asarray, ig.rollout(env, params, ig.policies.random, np.arange(3), length=2).action)
    assert action.batch_size.tolist() == [[501, 231, 270], [443, 134, 335]]
    assert action.spec_length.tolist() == [[8, 0, 2], [4, 8, 2]]
    assert action.quant_tier.tolist() == [[2, 2, 2], [2, 2, 0]]
    assert action.prefill_disagg.tolist() == [[True, False, False], [False, True, False]]
    assert action.kv_budget.tolist() == [
        [0.18662822246551514, 0.29707247018814087, 0.7115013003349304],
        [0.2157382220029831, 0.6048740744590759, 0.9045546054840088],
    ]
