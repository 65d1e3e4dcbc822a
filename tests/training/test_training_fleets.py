"""PPO on fleets: what is maximised, whose tasks an environment has, and a run whose file is what was evaluated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction
from inferencegym_jax.policies.layout import head_sizes
from inferencegym_jax.policies.network import sample
from training import fleet_forms
from training.config import Hyperparameters, TrainConfig, task_config
from training.distribution import log_prob_and_entropy
from training.fleet_search import frontier
from training.networks import starting_bias
from training.trainer import starting_offsets

SMALL: dict[str, Any] = {
    "environments": 8,
    "rollout_length": 8,
    "minibatches": 2,
    "epochs": 2,
    "hidden": (16,),
    "total_steps": 256,
    "evaluate_every": 2,
    "evaluation_episodes": 2,
    "stagger": False,
}


def outcome(gpu_seconds: float, late: float, rejected: float) -> Any:
    def classes(value: float) -> jax.Array:
        return jnp.asarray([[value, 0.0, 0.0]])

    return SimpleNamespace(
        gpu_seconds=jnp.asarray([gpu_seconds]), late=classes(late), rejected=classes(rejected), failed=classes(0.0)
    )


def test_the_signal_is_gpu_time_and_what_late_and_shed_requests_cost() -> None:
    params: Any = SimpleNamespace(gpus=8, late_price=10.0, work_s=0.1)
    info = {"outcome": outcome(20.0, 3.0, 1.0), "metrics": SimpleNamespace(changed=jnp.asarray([2.0]))}
    reward = jnp.asarray([-(20.0 + 10.0 * 0.1 * 4.0) / 40.0])
    plain = fleet_forms.signal(params, Hyperparameters(), reward, info, False)
    np.testing.assert_allclose(plain, reward, rtol=1e-6)
    dear = fleet_forms.signal(params, Hyperparameters(late_weight=50.0, shed_weight=20.0), reward, info, False)
    np.testing.assert_allclose(dear, -(20.0 + 60.0 * 0.1 * 4.0 + 20.0 * 0.1) / 40.0, rtol=1e-6)
    restless = fleet_forms.signal(params, Hyperparameters(change_weight=7.0), reward, info, False)
    np.testing.assert_allclose(restless, reward - 2.0 * 7.0 / 40.0, rtol=1e-6)
    bounded = fleet_forms.signal(params, Hyperparameters(late_weight=50.0, late_limit=0.1), reward, info, True)
    np.testing.assert_allclose(bounded, -(20.0 / 40.0 + 0.1), rtol=1e-6)


def test_samples_of_a_fleets_knobs_have_the_probability_that_is_computed() -> None:
    size = sum(head_sizes(FLEET_KNOBS).values())
    outputs = jnp.broadcast_to(jnp.asarray(starting_bias(FleetAction(), FLEET_KNOBS)), (512, size))
    keys = jax.random.split(jax.random.key(0), 512)
    log_std = jnp.log(jnp.full(3, 0.3))
    raw = sample(outputs, log_std, keys, FLEET_KNOBS)
    assert raw.shape == (512, len(FLEET_KNOBS))
    active = jnp.asarray([True, False, False, False])
    log_prob, entropy = log_prob_and_entropy(outputs, log_std, raw, active, FLEET_KNOBS)
    z = (raw[:, 0] - jnp.tanh(outputs[:, 0])) / 0.3
    np.testing.assert_allclose(log_prob, -0.5 * z * z - np.log(0.3) - 0.5 * np.log(2 * np.pi), rtol=1e-4, atol=1e-4)
    assert float(-log_prob.mean()) == pytest.approx(float(entropy.mean()), abs=0.15)


def test_staggered_environments_start_in_phases() -> None:
    config = task_config("fleet-elastic").replace(environments=8, phases=4, minibatches=1, rollout_length=8)
    assert starting_offsets(config).tolist() == [0, 0, 360, 360, 720, 720, 1080, 1080]
    assert starting_offsets(config.replace(phases=0)).tolist() == [180 * i for i in range(8)]


def test_a_frontier_is_the_least_mixture_that_keeps_the_share() -> None:
    gpus, share = np.asarray([2.0, 4.0, 5.0]), np.asarray([0.9, 0.98, 1.0])
    assert frontier(gpus, share, 0.99) == pytest.approx(4.5)
    assert np.isnan(frontier(gpus[:2], share[:2], 0.99))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "acts"), [("fleet-elastic", "correction"), ("fleet-anywhere", "knobs")])
def test_a_run_trains_and_its_file_plays_what_was_evaluated(tmp_path: Path, task: str, acts: str) -> None:
    import inferencegym_jax as ig
    from inferencegym_jax.policies import load
    from training.runner import run
    from training.trainer import VALIDATION_SEED

    start = "middle" if acts == "correction" else "baseline"
    config = TrainConfig().replace(task=task, acts=acts, start=start, late_weight=50.0, late_limit=2.0, **SMALL)
    result = run(config, tmp_path)
    assert len(result.rows) == 2 and all(np.isfinite(list(row.values())).all() for row in result.rows)
    problem: Any = config.problem()
    seeds = VALIDATION_SEED + 53 * np.arange(2)
    found = ig.evaluate_fleet(problem.env, problem.validation, load(tmp_path), seeds)
    assert found.mean_gpus.mean() == pytest.approx(result.rows[-1]["mean_gpus"], rel=1e-3)
    assert found.on_time_share.mean() == pytest.approx(result.rows[-1]["on_time_share"], abs=1e-3)
