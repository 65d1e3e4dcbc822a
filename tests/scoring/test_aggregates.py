"""What is counted of an episode: the same whichever room counts it, and a second's score is its share in the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.scoring.aggregates import aggregate
from inferencegym_jax.scoring.grader import score_rate

SEEDS = np.arange(3)


def played(task, policy):
    env, params = ig.make(task)
    return params, jax.tree.map(np.asarray, ig.rollout(env, params, policy, SEEDS))


@pytest.mark.parametrize("task", (1, 3, 4))
def test_whole_episodes_come_to_what_their_seconds_came_to_one_by_one(task):
    env, params = ig.make(task)
    spec = ig.get_task(task)
    one_by_one = ig.evaluate(env, params, ig.policies.random, SEEDS)
    _, t = played(task, ig.policies.random)
    whole = aggregate(t.metrics, t.action, spec.slo_ttft_ms[0], spec.slo_tpot_ms)
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(one_by_one, name), value, rtol=2e-4, atol=2e-4, err_msg=name)


def test_an_episode_that_ends_early_is_counted_to_its_end():
    spec = ig.get_task(3)
    _, t = played(3, ig.policies.random)
    lengths = np.array([1, 70, 200])
    found = aggregate(t.metrics, t.action, spec.slo_ttft_ms[0], spec.slo_tpot_ms, lengths)
    for i, length in enumerate(lengths):
        metrics, action = jax.tree.map(lambda x, i=i, n=length: x[:n, i], (t.metrics, t.action))
        alone = aggregate(metrics, action, spec.slo_ttft_ms[0], spec.slo_tpot_ms)
        for name, value in vars(alone).items():
            assert getattr(found, name)[i] == pytest.approx(float(value), rel=1e-12, abs=1e-9), name


@pytest.mark.parametrize("task", (1, 2, 3, 4))
def test_the_mean_of_the_seconds_scores_is_the_episodes_without_what_no_second_has_alone(task):
    # seconds that put no component at a bound
    env, params = ig.make(task)
    optimal, mean_cost = float(params.optimal_tps), float(params.cost_normaliser)
    draw = np.random.default_rng(5)
    metrics = ig.MetricsSnapshot(
        ttft_p50_ms=draw.uniform(20, 250, 200),
        ttft_p99_ms=draw.uniform(300, 700, 200),
        tpot_ms=draw.uniform(30, 60, 200),
        tokens_per_sec=draw.uniform(0.1, 0.9, 200) * optimal,
        gpu_memory_gb=draw.uniform(20, 39, 200),
        cost_per_1k=draw.uniform(0.2, 0.9, 200) * mean_cost,
        spec_accept_rate=np.zeros(200),
        eviction_events=np.zeros(200),
        slo_violations=draw.integers(0, 90, 200),
    )
    log = [
        {
            "action": {"batch_size": 32, "kv_budget": 1.0},
            "reward": 0.0,
            "metrics": {name: float(column[i]) for name, column in vars(metrics).items()},
        }
        for i in range(200)
    ]
    graded = ig.grade(task, log)
    assert all(0 < value < 1 for name, value in graded["breakdown"].items() if name != "stability")
    rates = score_rate(ig.get_task(task), params, jax.tree.map(jnp.float32, metrics))
    assert rates.shape == (200,)
    score = graded["score"]
    if task == 2:
        score += 0.5 * (1.0 - graded["breakdown"]["memory"])
    if task > 2:
        score -= 0.1 * graded["breakdown"]["stability"]
    assert float(rates.mean()) == pytest.approx(score, rel=1e-5)
