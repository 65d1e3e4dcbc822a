"""The same episode alone, in batches of 2, 7 and 4,096, in a mixed batch and step by step: one trajectory."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig

LENGTH = 200
SMALL = np.arange(7) * 613  # these seeds are looked at; the others only fill the batch
RELATIVE, RELATIVE_OPEN_LOOP = 1e-6, 1e-5


def rollout(task, seeds, params=None):
    env, own = ig.make(task)
    return jax.tree.map(np.asarray, ig.rollout(env, own if params is None else params, ig.policies.random, seeds))


def assert_same(one, other, what, relative=RELATIVE):
    for path, expected in jax.tree_util.tree_leaves_with_path(one):
        got = dict(jax.tree_util.tree_leaves_with_path(other))[path]
        name = f"{what}: {jax.tree_util.keystr(path)}"
        assert got.dtype == expected.dtype, name
        if np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_allclose(got, expected, rtol=relative, atol=relative, err_msg=name)
        else:
            np.testing.assert_array_equal(got, expected, err_msg=name)


def columns(trajectory, index):
    return jax.tree.map(lambda x: x[:, index], trajectory)


@pytest.mark.parametrize("task", (1, 2, 3))
def test_batches_of_any_size_give_the_same_episodes(task):
    seven = rollout(task, SMALL)
    assert_same(columns(seven, slice(2)), rollout(task, SMALL[:2]), "batch of 2")
    assert_same(columns(seven, slice(3, 4)), rollout(task, SMALL[3:4]), "batch of 1")
    assert_same(seven, columns(rollout(task, np.arange(4096)), SMALL), "batch of 4,096")


def test_a_mixed_batch_gives_the_same_episodes():
    tasks = [1 + i % 3 for i in range(7)]
    mixed = rollout(1, SMALL, ig.stack_params([ig.make(task)[1] for task in tasks]))
    for i, task in enumerate(tasks):
        assert_same(rollout(task, SMALL[i : i + 1]), columns(mixed, slice(i, i + 1)), f"task {task} in a mixed batch")


@pytest.mark.slow
@pytest.mark.parametrize("task", (4, 5))
def test_open_loop_episodes_are_the_same_in_every_batch(task):
    """In a process of its own, compiled as users compile: conftest's flags round otherwise (1.5e-5 in two seconds)."""
    code = f"from {__name__} import compare_batches; compare_batches({task})"
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def compare_batches(task):
    seven = rollout(task, SMALL)
    others = {
        "batch of 2": (columns(seven, slice(2)), rollout(task, SMALL[:2])),
        "batch of 1": (columns(seven, slice(3, 4)), rollout(task, SMALL[3:4])),
        "batch of 4,096": (seven, columns(rollout(task, np.arange(4096)), SMALL)),
    }
    kinds = [task, 1, 3, task, 2, 9 - task, task]
    mixed = rollout(1, SMALL, ig.stack_params([ig.make(kind)[1] for kind in kinds]))
    for i, kind in enumerate(kinds):
        if kind == task:
            others[f"mixed, {i}"] = (columns(seven, slice(i, i + 1)), columns(mixed, slice(i, i + 1)))
    for name, (expected, found) in others.items():
        assert_same(expected, found, name, RELATIVE_OPEN_LOOP)


@pytest.mark.parametrize("task", (1, 2, 3))
def test_stepping_alone_gives_the_same_episode(task):
    env, params = ig.make(task)
    batch = rollout(task, SMALL)
    _, state = env.reset_seed(int(SMALL[4]), params)
    for t in range(LENGTH):
        action = jax.tree.map(lambda x, t=t: jnp.asarray(x[t, 4]), batch.action)
        _, state, reward, _, _, info = env.step(None, state, action, params)
        found = jax.tree.map(np.asarray, (info["metrics"], info["workload"], info["oom"], reward))
        expected = jax.tree.map(lambda x, t=t: x[t, 4], (batch.metrics, batch.workload, batch.oom, batch.reward))
        assert_same(expected, found, f"step {t}")


@pytest.mark.ci
def test_parts_on_several_cores_are_the_whole(monkeypatch):
    from inferencegym_jax.episodes import parallel

    env, params = ig.make(3)
    statistics = {}
    for cores in (1, 2, 4):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        found = ig.evaluate(env, params, ig.policies.random, np.arange(2048))
        statistics[cores] = jax.tree.map(np.asarray, found)
    assert_same(statistics[1], statistics[2], "2 parts")
    assert_same(statistics[1], statistics[4], "4 parts")
