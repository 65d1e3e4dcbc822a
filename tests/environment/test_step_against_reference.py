"""Given the same draws, the compiled step is the obvious implementation's: scipy interpolators and a Python loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.physics import metrics
from inferencegym_jax.traffic import calendar as workload
from tests.reference.scipy_env import Draws, ScipyEnv

INTEGERS = ("eviction_events", "slo_violations")
SEEDS = (0, 11)


def draws_of(seed, params):
    """The library's own draws of an episode, as the reference takes them."""
    steps = jnp.arange(200)
    seed = jnp.uint32(seed)
    traffic = jax.vmap(lambda t: workload.draw_traffic(seed, t, params))(steps)
    noise = jax.vmap(lambda t: metrics.latency_noise(seed, t, params.noise_sigma))(steps)
    counts, lengths, noise = jax.tree.map(np.asarray, (traffic.class_arrivals, traffic.prompt_len, noise))
    return [
        Draws([int(x) for x in counts[t]], float(lengths[t]), float(noise[0][t]), float(noise[1][t]))
        for t in range(200)
    ]


@pytest.mark.parametrize("task", (1, 2, 3))
def test_every_number_of_an_episode_is_the_references(task):
    env, params = ig.make(task)
    trajectory = jax.tree.map(np.asarray, ig.rollout(env, params, ig.policies.random, np.array(SEEDS)))
    for column, seed in enumerate(SEEDS):
        reference = ScipyEnv(task)
        draws = draws_of(seed, params)
        near_slo = 0
        for t in range(200):
            action = {
                f.name: getattr(trajectory.action, f.name)[t, column].item() for f in dataclasses.fields(ig.ServeAction)
            }
            observation, reward, done, info = reference.step(action, draws[t])
            where = f"task {task}, seed {seed}, step {t}"
            slos = [x for x in reference.spec["slo_ttft_ms"] if x]
            if any(abs(info["metrics"]["ttft_p50_ms"] / slo - 1) < 1e-5 for slo in slos):
                near_slo += 1  # float32 and float64 may fall on different sides of the objective
                continue
            for name, expected in info["metrics"].items():
                got = getattr(trajectory.metrics, name)[t, column]
                if name in INTEGERS:
                    assert got == expected, f"{where}: {name}"
                else:
                    np.testing.assert_allclose(got, expected, rtol=3e-5, err_msg=f"{where}: {name}")
            for name, expected in observation.items():
                got = getattr(trajectory.next_observation, name)[t, column]
                np.testing.assert_allclose(got, expected, rtol=3e-5, atol=2e-5, err_msg=f"{where}: {name}")
            for name in ("arrivals", "served", "rejected"):
                assert getattr(trajectory.workload, name)[t, column] == info[name], f"{where}: {name}"
            assert trajectory.oom[t, column] == info["oom"], where
            assert trajectory.truncated[t, column] == done, where
            np.testing.assert_allclose(trajectory.reward[t, column], reward, rtol=1e-4, atol=2e-5, err_msg=where)
        assert near_slo < 5
