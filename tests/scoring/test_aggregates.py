"""What is counted of an episode: the same whichever room counts it, and a second's score is its share in the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import plain
from inferencegym_jax.scoring.aggregates import aggregate
from inferencegym_jax.scoring.grader import score_rate

SEEDS = np.arange(3)


def played(task, policy):
    env, params = ig.make(task)
    return params, jax.tree.map(np.asarray, ig.rollout(env, params, policy, SEEDS))


@pytest.mark.ci
@pytest.mark.parametrize("task", (1, 3, 4))
def test_whole_episodes_come_to_what_their_seconds_came_to_one_by_one(task):
    env, params = ig.make(task)
    spec = ig.get_task(task)
    one_by_one = ig.evaluate(env, params, ig.policies.random, SEEDS)
    _, t = played(task, ig.policies.random)
    whole = aggregate(spec, t.metrics, t.action, t.outcome)
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(one_by_one, name), value, rtol=3e-4, atol=3e-4, err_msg=name)


@pytest.mark.parametrize("task", (3, 4))
def test_an_episode_that_ends_early_is_counted_to_its_end(task):
    spec = ig.get_task(task)
    _, t = played(task, ig.policies.random)
    lengths = np.array([1, 70, 200])
    found = aggregate(spec, t.metrics, t.action, t.outcome, lengths)
    for i, length in enumerate(lengths):
        parts = jax.tree.map(lambda x, i=i, n=length: x[:n, i], (t.metrics, t.action, t.outcome))
        alone = aggregate(spec, *parts)
        for name, value in vars(alone).items():
            assert getattr(found, name)[i] == pytest.approx(float(value), rel=1e-12, abs=1e-9), name


@pytest.mark.parametrize("task", (1, 2, 3, 4))
def test_the_mean_of_the_seconds_scores_is_the_episodes_without_what_no_second_has_alone(task):
    # seconds that put no component at a bound, and that ask on average for what the mean second does
    problem = ig.problem(task)
    params, draw = problem.params, np.random.default_rng(5)
    optimal, mean_cost = float(params.optimal_tps), float(params.cost_normaliser)
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
    demand = draw.uniform(0.5, 1.5, 200)
    demand = demand / demand.mean()
    on_time = demand * draw.uniform(0.3, 1.0, 200)
    by_class = np.array([1.0, 0.0, 0.0])
    requests, tokens = float(params.engine.demand_rps), float(params.engine.demand_tps)
    nobody = np.zeros((200, 3))
    outcome = ig.RequestOutcome(
        asked=requests * demand[:, None] * by_class,
        on_time=requests * on_time[:, None] * by_class,
        late=requests * (demand - on_time)[:, None] * by_class,
        rejected=nobody,
        failed=nobody,
        present=nobody,
        tokens_asked=tokens * demand,
        on_time_tokens=0.9 * tokens * on_time,
        gpu_seconds=draw.uniform(1.0, 1.2, 200),
        quality=np.ones(200),
    )
    log = [
        {"action": {"batch_size": 32, "kv_budget": 1.0, "spec_length": 0, "prefill_disagg": False}, "reward": 0.0}
        | {part: plain(jax.tree.map(lambda x, i=i: x[i], tree)) for part, tree in parts.items()}
        for parts in [{"metrics": metrics, "outcome": outcome}]
        for i in range(200)
    ]
    graded = ig.grade(task, log)
    assert all(0 < value < 1 for name, value in graded["breakdown"].items() if name != "stability")
    rates = score_rate(ig.get_task(task), params, *jax.tree.map(jnp.float32, (metrics, outcome)))
    assert rates.shape == (200,)
    score = graded["score"]
    if task == 2:
        score += 0.5 * (1.0 - graded["breakdown"]["memory"])
    if task > 2:
        score -= 0.1 * graded["breakdown"]["stability"]
    assert float(rates.mean()) == pytest.approx(score, rel=1e-5)
