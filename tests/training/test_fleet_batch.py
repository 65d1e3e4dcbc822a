"""Many runs on fleets in one program: each is the run that its config makes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from inferencegym_jax.policies.policy_file import load_network
from training import fleet_forms
from training.config import TrainConfig, task_config
from training.fleet_batch import members_of, train_many
from training.fleet_headroom import expected_load
from training.runner import run

SMALL: dict[str, Any] = {
    "environments": 8,
    "rollout_length": 8,
    "minibatches": 2,
    "epochs": 2,
    "hidden": (8,),
    "total_steps": 256,
    "evaluate_every": 2,
    "evaluation_episodes": 2,
    "stagger": False,
    "phases": 0,
    "final_learning_rate": 1e-3,
}


def small(task: str, **changes: Any) -> TrainConfig:
    return task_config(task).replace(**{**SMALL, **changes})


@pytest.mark.slow
def test_each_of_many_runs_is_the_run_of_its_config_alone(tmp_path: Path) -> None:
    configs = [small("fleet-elastic", seed=3, out_of_reach=0.25), small("fleet-elastic-m-mid", out_of_reach=0.5)]
    together = train_many(configs, tmp_path)
    for config, network in zip(configs, together, strict=True):
        alone = run(config, devices=1).network
        for ours, theirs in zip(jax.tree.leaves(network), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)
        kept, metadata = load_network(tmp_path / f"{config.task_name}-seed{config.seed}.npz")
        assert metadata["updates"] == 4 and metadata["config"]["seed"] == config.seed
        np.testing.assert_array_equal(kept.layers[0][0], network.layers[0][0])
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 2 * len(configs)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused_before_anything_is_compiled(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds = .*: must be a number above 0"):
        train_many([small("fleet-elastic")], seconds=seconds)


def test_runs_of_one_program_have_the_same_shapes() -> None:
    with pytest.raises(ValueError, match="rollout_length = 4: other runs of the program have 8"):
        members_of([small("fleet-elastic"), small("fleet-elastic", rollout_length=4)])
    with pytest.raises(ValueError, match="task = 3: is no fleet"):
        members_of([task_config(3)])
    with pytest.raises(ValueError, match="at least one"):
        members_of([])


def test_a_share_of_the_environments_has_objectives_out_of_reach_and_no_price_on_late_requests() -> None:
    problem: Any = small("fleet-elastic", environments=16, out_of_reach=0.25).problem()
    tpot = np.asarray(problem.params.engine.slo_tpot_ms).reshape(16, -1)[:, 0]
    assert np.flatnonzero(tpot == fleet_forms.OUT_OF_REACH[1]).tolist() == [3, 7, 11, 15]
    np.testing.assert_array_equal(problem.params.late_price > 0, tpot == 50.0)
    assert len(np.unique(problem.params.prompt_gpus)) == 1
    assert np.ndim(problem.validation.task_id) == 0
    with pytest.raises(ValueError, match="out_of_reach = 0.25: is of a fleet of one pool"):
        task_config("fleet-anywhere").replace(out_of_reach=0.25)
    with pytest.raises(ValueError, match="out_of_reach = 0.25"):
        task_config(3).replace(out_of_reach=0.25)


def test_a_share_of_the_environments_has_a_constant_load() -> None:
    problem: Any = small("fleet-elastic-m-large", environments=16, out_of_reach=0.25, steady=0.25).problem()
    params = problem.params
    steady = np.flatnonzero(~np.asarray(params.engine.modulation).any(axis=-1))
    assert len(steady) == 4
    heights = np.asarray(params.busiest)
    assert heights[steady].tolist() == [np.float32(load) for load in fleet_forms.STEADY_LOADS[:4]]
    assert set(np.delete(heights, steady).tolist()) == {np.float32(problem.spec.busiest)}
    # the load of every hour of such a day is its height
    for i in steady[:2].tolist():
        own = jax.tree.map(lambda x: x[i], params)  # noqa: B023
        load = expected_load(problem.env, 1440, own, np.arange(1, dtype=np.uint32))
        np.testing.assert_allclose(load, heights[i], rtol=1e-4)
    tpot = np.asarray(params.engine.slo_tpot_ms).reshape(16, -1)[:, 0]
    assert (tpot == fleet_forms.OUT_OF_REACH[1]).sum() == 4
    with pytest.raises(ValueError, match="steady = 0.25: is of a fleet of one pool"):
        task_config("fleet-anywhere").replace(steady=0.25)
    with pytest.raises(ValueError, match="base_rule = 'bold': must be one of tuned, calm"):
        task_config("fleet-elastic").replace(base_rule="bold")
