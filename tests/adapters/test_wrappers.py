"""Views for learners: flat and discrete actions, flat observations, the five-value step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencegym_jax as ig
from inferencegym_jax.adapters.wrappers import (
    DiscreteAction,
    FiveValueStep,
    FlatAction,
    FlatObservation,
    ObservationHistory,
    ScoreReward,
    WholeScoreReward,
)
from inferencegym_jax.encoding import action_from_box, box_from_action, normalise
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS, check_action
from inferencegym_jax.scoring import grader
from inferencegym_jax.scoring.formula import formula, stability_weight


@settings(max_examples=80, deadline=None)
@given(box=st.lists(st.floats(-3, 3, width=32), min_size=5, max_size=5))
def test_every_box_is_an_allowed_action(box):
    action = action_from_box(jnp.asarray(box))
    check_action(action)


@settings(max_examples=80, deadline=None)
@given(
    kv=st.floats(0.1, 1.0),
    spec=st.sampled_from((0, 1, 2, 4, 8)),
    batch=st.integers(1, 512),
    disagg=st.booleans(),
    tier=st.integers(0, 2),
)
def test_box_and_action_are_inverse(kv, spec, batch, disagg, tier):
    action = ig.ServeAction(kv, spec, batch, disagg, tier)
    back = action_from_box(box_from_action(action)).to_dict()
    assert back == {**action.to_dict(), "kv_budget": pytest.approx(kv, abs=1e-5)}


def test_box_is_logarithmic_in_batch_size():
    sizes = [int(action_from_box(jnp.array([0, 0, x, 0, 0])).batch_size) for x in (-1.0, 0.0, 1.0)]
    assert sizes == [1, 23, 512]


def test_flat_views_step_as_the_environment_does():
    env, params = ig.make(3)
    view = FlatAction(FlatObservation(env, normalised=False))
    box = jnp.array([0.1, -0.5, 0.4, 0.2, -0.3])
    obs, state = view.reset_seed(5, params)
    plain_obs, plain_state = env.reset_seed(5, params)
    np.testing.assert_array_equal(obs, plain_obs.to_array())
    flat = view.step(None, state, box, params)
    direct = env.step(None, plain_state, action_from_box(box), params)
    np.testing.assert_array_equal(flat[0], direct[0].to_array())
    np.testing.assert_array_equal(flat[5]["final_observation"], direct[5]["final_observation"].to_array())
    assert float(flat[2]) == float(direct[2])
    assert view.observation_space(params).contains(flat[0])
    assert view.action_space(params).contains(view.action_space(params).sample(jax.random.key(0)))


@pytest.mark.parametrize("task, points", [(1, 7 * 4), (2, 7 * 4 * 5), (3, 7 * 4 * 5 * 2 * 3)])
def test_discrete_grid_covers_the_free_knobs(task, points):
    env, params = ig.make(task)
    view = DiscreteAction(env)
    assert view.num_actions == points == view.action_space(params).n
    decoded = jax.vmap(view.decode)(jnp.arange(points))
    check_action(decoded)
    rows = {tuple(np.asarray(getattr(decoded, name))[i].item() for name in vars(decoded)) for i in range(points)}
    assert len(rows) == points
    _, state = view.reset_seed(0, params)
    assert float(view.step(None, state, 3, params)[2]) == float(env.step(None, state, view.decode(3), params)[2])


def test_five_value_step_ends_with_done_and_discount():
    env, params = ig.make(1)
    view = FiveValueStep(FlatAction(FlatObservation(env)))
    _, state = view.reset(jax.random.key(0), params)
    for t in range(200):
        obs, state, _, done, info = view.step(jax.random.key(t), state, jnp.zeros(len(KNOBS)), params)
        assert bool(done) == (t == 199)
    assert float(info["discount"]) == 1.0 and obs.shape == (FLAT_OBSERVATION_SIZE,)


@pytest.mark.slow
def test_rejax_trains_its_ppo_through_the_five_value_step():
    rejax = pytest.importorskip("rejax")
    env, params = ig.make(1)
    view = FiveValueStep(FlatAction(FlatObservation(env)))
    learner = rejax.PPO.create(
        env=view,
        env_params=params,
        agent_kwargs={"activation": "tanh"},
        num_envs=16,
        num_steps=32,
        num_epochs=2,
        num_minibatches=4,
        total_timesteps=16 * 32 * 8,
        eval_freq=16 * 32 * 4,
        learning_rate=3e-3,
        skip_initial_evaluation=False,
    )
    state, (lengths, returns) = jax.jit(learner.train)(jax.random.key(0))
    assert np.isfinite(np.asarray(returns)).all() and (np.asarray(lengths) <= 200).all()
    assert np.asarray(returns).mean(axis=1)[-1] > np.asarray(returns).mean(axis=1)[0]
    assert int(state.global_step) >= 16 * 32 * 8


def same_trees(mine, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mine, theirs)


def test_a_history_beside_the_observation_is_that_of_the_episode_and_vmaps():
    env, params = ig.make(3)
    params = params.replace(episode_length=jnp.int32(12))
    view = ObservationHistory(env, (15.0,), last=2)
    seeds, action = jnp.arange(3, dtype=jnp.uint32), ig.ServeAction(batch_size=64).as_arrays()

    def episode(seed):
        first, state = view.reset_seed(seed, params)

        def step(state, _):
            features, state, _, _, truncated, info = view.step(None, state, action, params)
            return state, (features, truncated, info["final_observation"])

        return first, *jax.lax.scan(step, state, None, length=20)[1]

    first, features, truncated, final = jax.jit(jax.vmap(episode))(seeds)
    plain = jax.vmap(normalise)(ig.rollout(env, params, lambda *_: action, np.asarray(seeds), length=20).observation)
    assert features.shape == (3, 20, 14 * 4) and view.observation_space(params).shape == (14 * 4,)
    for lane in range(3):
        rows = np.asarray(plain[:, lane])
        np.testing.assert_allclose(first[lane, :14], rows[0], rtol=1e-5, atol=1e-6)
        for t in range(20):  # features[t] are of the observation before step t + 1
            begin = 0 if t + 1 < 12 else 12
            past = np.concatenate([rows, np.asarray(features[lane, 19:20, :14])])[begin : t + 2]
            wanted = [past[-1], past.mean(axis=0)] + [past[-k] if len(past) >= k else 0 * past[0] for k in (2, 3)]
            np.testing.assert_allclose(features[lane, t], np.concatenate(wanted), rtol=1e-3, atol=1e-5)
        assert np.flatnonzero(truncated[lane]).tolist() == [11]
        before = np.asarray(features[lane, 10])
        np.testing.assert_allclose(final[lane, 11, 28:42], before[:14], rtol=1e-4, atol=1e-6)  # not the new episode's
    alone = jax.jit(episode)(seeds[1])
    same_trees(alone[1], features[1])


@pytest.mark.ci
@pytest.mark.parametrize("task", [2, 3, 4])
def test_the_score_as_a_reward_adds_up_to_the_score(task):
    problem = ig.problem(task)
    view: Any = ScoreReward(problem.env, task)
    policy, seeds = ig.policies.best_static(task), np.arange(4)
    rewards = np.asarray(ig.rollout(view, problem.params, policy, seeds).reward)
    plain = ig.evaluate(problem.env, problem.params, policy, seeds)
    score = grader.score_aggregates(problem.spec, plain, problem.normalisers)["score"]
    if task == 4:  # the seconds measure by the mean second's demand, the score by the episode's
        weights, norms = {name: part.weight for name, part in formula(problem.spec).items()}, problem.normalisers
        score = (
            weights["goodput_share"] * plain.goodput / norms["demand_tps"]
            + weights["on_time_share"] * plain.on_time / (200 * norms["demand_rps"])
            + weights["cost"] * (1.5 - plain.gpu_seconds / (200 * norms["static_gpus"]))
            + weights["stability"]
            - (1.0 - plain.quality) * ("quality_lost" in weights)
        )
    np.testing.assert_allclose(rewards.mean(axis=0), score, atol=0.03)  # seconds clipped at 1
    assert np.abs(rewards).max() <= 1.1


def test_the_score_as_a_reward_is_the_graders_second_and_leaves_the_environments():
    env, params = ig.make(4)
    view = ScoreReward(env, 4)
    spec, first = ig.get_task(4), ig.ServeAction(batch_size=64).as_arrays()
    _, state = view.reset_seed(5, params)
    _, state, steady, *_, info = view.step(None, state, first, params)
    plain = env.step(None, env.reset_seed(5, params)[1], first, params)
    assert float(info["environment_reward"]) == pytest.approx(float(plain[2]))
    rate = grader.score_rate(spec, params, info["metrics"], info["outcome"])
    assert float(steady) == pytest.approx(float(rate) + stability_weight(spec), abs=1e-6)  # nothing changed yet
    moved = dataclasses.replace(first, batch_size=jnp.int32(320))
    *_, score, _, _, info = view.step(None, state, moved, params)
    rate = grader.score_rate(spec, params, info["metrics"], info["outcome"])
    assert float(score) == pytest.approx(float(rate) + 0.10 * (1 - (256 / 512) / 0.5), abs=1e-6)
    flat = FlatAction(FlatObservation(view))
    _, state = flat.reset_seed(5, params)
    again = flat.step(None, state, box_from_action(first), params)
    assert float(again[2]) == pytest.approx(float(steady), abs=1e-5)
    assert view == ScoreReward(env, 4) and view != ScoreReward(env, 3) and hash(view) == hash(ScoreReward(env, 4))


def restless(key, observation, carry):
    """Random knobs, which change every second, and a second GPU for some of them: every component moves."""
    return ig.policies.random(key, observation, carry)


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2, 3, 4])
def test_the_whole_score_as_a_reward_adds_up_to_the_score_exactly(task):
    problem = ig.problem(task)
    view: Any = WholeScoreReward(problem.env, task)
    for policy in (ig.policies.best_static(task), restless):
        rewards = np.asarray(ig.rollout(view, problem.params, policy, np.arange(3)).reward)
        plain = ig.evaluate(problem.env, problem.params, policy, np.arange(3))
        score = grader.score_aggregates(problem.spec, plain, problem.normalisers)["score"]
        np.testing.assert_allclose(rewards.sum(axis=0) / len(rewards), score, atol=2e-5)


@pytest.mark.slow
def test_saved_gpus_that_cost_requests_on_time_are_not_paid_for_by_the_whole_score():
    problem = ig.problem(4)
    asked = dict(problem.normalisers, static_gpus=2.0, static_on_time_share=1.0)  # one GPU is half, and some are late
    policy = ig.policies.static(ig.ServeAction(batch_size=8))
    seconds, whole = (
        float(np.asarray(ig.rollout(view, problem.params, policy, np.arange(1)).reward).mean())
        for view in (
            ScoreReward(problem.env, 4),
            WholeScoreReward(problem.env, 4, asked),
        )
    )
    params = problem.params.replace(engine=problem.params.engine.replace(static_gpus=np.float32(2.0)))
    uncapped = np.asarray(ig.rollout(ScoreReward(problem.env, 4), params, policy, np.arange(1)).reward).mean()
    assert uncapped - seconds == pytest.approx(0.3 * 0.5, abs=1e-3)  # 1.5 - 1/2 against 1.5 - 1
    plain = ig.evaluate(problem.env, problem.params, policy, np.arange(1))
    assert plain.on_time_share[0] < 0.98
    assert whole == pytest.approx(float(grader.score_aggregates(problem.spec, plain, asked)["score"][0]), abs=2e-5)
    assert (
        WholeScoreReward(problem.env, 4) == WholeScoreReward(problem.env, 4) != WholeScoreReward(problem.env, 4, asked)
    )


def test_a_rollout_of_a_view_is_of_the_view():
    env, params = ig.make(1)
    view: Any = FlatObservation(env)
    flat: Any = ig.rollout(view, params, ig.policies.baseline, np.arange(2), length=3).observation
    assert flat.shape == (3, 2, FLAT_OBSERVATION_SIZE)
