"""The policies that ship: small, documented, free of training libraries, above their rivals on tasks 2 to 4."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.episodes import parallel
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies.policy_file import load_network
from inferencegym_jax.table.latency_table import data_path
from training import headroom, lanes, rivals
from training.evaluation import episodes
from training.headroom import published, tuned_plan

TASKS = tuple(spec.id for spec in ig.task_specs().values() if ig.policies.has_trained(spec.id))


def played(task: int, name: str, seeds: np.ndarray) -> dict[str, np.ndarray]:
    problem = ig.problem(task)
    return episodes(problem, ig.policies.policy_of(name, problem), seeds)


@pytest.mark.parametrize("task", TASKS)
def test_a_policy_is_small_and_says_how_it_was_trained(task: int) -> None:
    path = Path(data_path(f"policies/task{task}.npz"))
    assert path.stat().st_size < 200_000
    _, about = load_network(path)
    assert about["task"] == ig.get_task(task).name and about["made_by"].startswith("make policies")
    assert about["table_digest"] == ig.make(task)[0].table.digest, "the table has changed: run `make policies`"
    assert about["config"]["total_steps"] > 0


@pytest.mark.ci
def test_loading_needs_no_training_library() -> None:
    program = (
        "import json, sys, inferencegym_jax as ig; ig.policies.trained(3);"
        "print(json.dumps([m for m in ('flax', 'optax', 'orbax', 'training') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.ci
def test_task_1_keeps_98_percent_of_the_best_static_score() -> None:
    seeds = np.arange(256)
    mine, best = (played(1, name, seeds)["score"].mean() for name in ("trained", "best_static"))
    assert mine >= 0.98 * best


@pytest.mark.slow
@pytest.mark.parametrize("task", [2, 3])
def test_tasks_2_and_3_beat_best_static_in_score_and_return(task: int) -> None:
    seeds = np.arange(1024)
    mine, theirs = (played(task, name, seeds) for name in ("trained", "best_static"))
    for metric in ("score", "return"):
        assert mean_interval(mine[metric] - theirs[metric])["low"] > 0, metric


def test_task_3_beats_the_reactive_controller_in_score_and_return() -> None:
    mine, theirs = (played(3, name, np.arange(256)) for name in ("trained", "reactive"))
    for metric in ("score", "return"):
        assert mean_interval(mine[metric] - theirs[metric])["low"] > 0, metric


@pytest.mark.ci
@pytest.mark.parametrize("task", [2, 3])
def test_no_policy_that_ships_runs_out_of_memory(task: int) -> None:
    assert played(task, "trained", np.arange(1024))["oom_share"].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("task", "least"), [(4, 0.995), (5, 0.995)])
def test_tasks_4_and_5_keep_the_best_static_score_and_beat_reactive(task: int, least: float) -> None:
    # there is next to nothing to win over the best static action: tests/scoring/test_exploits.py
    seeds = np.arange(512)
    mine, best, other = (played(task, name, seeds) for name in ("trained", "best_static", "reactive"))
    assert mine["score"].mean() >= least * best["score"].mean()
    assert mean_interval(mine["score"] - other["score"])["low"] > 0


def test_it_acts_deterministically_unless_asked_to_sample() -> None:
    env, params = ig.make(3)
    observation, _ = env.reset_seed(0, params)
    keys = jax.random.split(jax.random.key(0), 8)

    def batches(policy: Policy) -> int:
        actions = jax.jit(jax.vmap(lambda key: policy(key, observation, None)[0].batch_size))(keys)
        return len(np.unique(np.asarray(actions)))

    assert batches(ig.policies.trained(3)) == 1
    assert batches(ig.policies.trained(3, sample_actions=True)) > 1


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="task = 9"):
        ig.policies.trained(9)


@pytest.mark.ci
def test_networks_of_one_shape_share_a_compiled_rollout_and_keep_their_own_weights():
    env, params = ig.make(3)
    seeds = np.arange(7)
    first = ig.evaluate(env, params, ig.policies.trained(2), seeds, length=11)
    before = parallel._compiled.cache_info().misses
    second = ig.evaluate(env, params, ig.policies.trained(1), seeds, length=11)
    again = ig.evaluate(env, params, ig.policies.trained(2), seeds, length=11)
    assert parallel._compiled.cache_info().misses == before
    np.testing.assert_array_equal(first.total_reward, again.total_reward)
    assert not np.allclose(first.total_reward, second.total_reward)


@pytest.mark.slow
def test_task_6_keeps_what_the_tuned_controller_wins() -> None:
    problem, seeds = ig.problem(6), rivals.test_seeds(24)
    mine = played(6, "trained", seeds)["score"]
    plans = lanes.of_plans([tuned_plan(published(6))] * len(seeds), int(problem.params.episode_length))
    tuned = headroom.played(problem, lanes.episodes_of(problem, plans, seeds)).columns["score"]
    assert mean_interval(mine - tuned)["mean"] >= -0.005
    assert mean_interval(mine - played(6, "best_static", seeds)["score"])["low"] > 0


@pytest.mark.slow
def test_task_7_beats_two_gpus_always_on_held_out_windows() -> None:
    seeds = rivals.test_seeds(24)
    mine, theirs = (played(7, name, seeds) for name in ("trained", "best_static"))
    assert mean_interval(mine["score"] - theirs["score"])["low"] > 0
    assert mine["gpu_seconds"].sum() < 0.8 * theirs["gpu_seconds"].sum()
    assert mine["on_time_share"].mean() > theirs["on_time_share"].mean() - 0.02


@pytest.mark.slow
def test_task_7_is_never_far_below_two_gpus_always() -> None:
    seeds = rivals.test_seeds(24)
    mine, theirs = (played(7, name, seeds) for name in ("trained", "best_static"))
    assert (mine["score"] - theirs["score"]).min() >= -0.01
