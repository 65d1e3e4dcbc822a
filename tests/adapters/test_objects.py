"""The objects give the same numbers as the pure path."""

import uuid

import jax
import numpy as np
import pytest

import inferencegym_jax as ig


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("task", (1, 2, 3))
def test_inference_env_plays_the_rollouts_episode(task):
    env = ig.InferenceEnv(task, seed=9)
    steps = [env.step(ig.ServeAction()) for _ in range(200)]
    pure_env, params = ig.make(task)
    pure = ig.rollout(pure_env, params, ig.policies.baseline, np.array([9]))
    np.testing.assert_allclose([s[1] for s in steps], pure.reward[:, 0], rtol=1e-6, atol=1e-7)
    for t in (0, 100, 199):
        row = jax.tree.map(lambda x, t=t: np.asarray(x)[t, 0], (pure.next_observation, pure.metrics))
        for ours, theirs in zip(
            jax.tree.leaves((steps[t][0], steps[t][3]["metrics"])), jax.tree.leaves(row), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert [s[2] for s in steps] == [False] * 199 + [True]
    state = env.state()
    assert state["step_count"] == 200 and state["done"] and state["seed"] == 9 and state["task_id"] == task
    assert state["cumulative_reward"] == pytest.approx(sum(s[1] for s in steps))
    assert state["workload_phase"] in {"warmup", "steady", "burst", "cooldown"}
    assert len(env.episode_log) == 200
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(ig.ServeAction())


def test_reset_starts_anew_with_another_session():
    env = ig.InferenceEnv("bursty-sharegpt", seed=1)
    first, session = env.step(ig.ServeAction()), env.session_id
    env.reset()
    assert uuid.UUID(env.session_id) != uuid.UUID(session)
    assert env.episode_log == [] and env.state()["step_count"] == 0
    assert env.step(ig.ServeAction())[1] == first[1]
    env.reset(seed=2)
    assert env.state()["seed"] == 2 and env.step(ig.ServeAction())[1] != first[1]


def test_a_refused_action_leaves_the_episode_as_it_was():
    env = ig.InferenceEnv(1, seed=1)
    with pytest.raises(ValueError, match="batch_size = 0"):
        env.step(ig.ServeAction(batch_size=0))
    assert env.state()["step_count"] == 0 and env.episode_log == []


@pytest.mark.parametrize("task", (2, 3))
def test_workload_generator_and_simulator_make_the_environments_episode(task):
    env = ig.InferenceEnv(task, seed=4)
    generator = ig.WorkloadGenerator(task, seed=4)
    simulator = ig.TraceSimulator(seed=4, task_id=task)
    action = ig.ServeAction(batch_size=48, kv_budget=0.7)
    for t in range(70):
        assert generator.is_burst_active() == ((t // 30) % 2 == 1 if task == 2 else t % 120 < 15)
        workload = generator.step(batch_size=48, kv_budget=0.7)
        metrics = simulator.simulate(action, workload)
        info = env.step(action)[3]
        assert_close(workload, info["workload"])
        assert_close(metrics, info["metrics"])
    generator.reset()
    assert int(generator.step(batch_size=48).arrivals) == int(ig.WorkloadGenerator(task, seed=4).step().arrivals)


def test_simulators_noise_repeats_after_reset_seed():
    generator, simulator = ig.WorkloadGenerator(1, seed=0), ig.TraceSimulator(seed=3)
    workload = generator.step()
    first = [float(simulator.simulate(ig.ServeAction(), workload).ttft_p50_ms) for _ in range(3)]
    simulator.reset_seed(3)
    assert [float(simulator.simulate(ig.ServeAction(), workload).ttft_p50_ms) for _ in range(3)] == first
    assert len(set(first)) == 3


def test_grader_module_is_grade():
    env = ig.InferenceEnv(2, seed=0)
    for _ in range(10):
        env.step(ig.ServeAction())
    assert ig.GraderModule().score(2, env.episode_log) == ig.grade(2, env.episode_log)
