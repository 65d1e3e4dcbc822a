"""Settings of a controller in a policy file play as the controller does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

import inferencegym_jax as ig
from inferencegym_jax.policies.engine_units import engine_of
from inferencegym_jax.policies.load_following import LoadPlan, follow_load
from inferencegym_jax.policies.names import policy_of
from inferencegym_jax.policies.plan_file import save_plan
from inferencegym_jax.policies.policy_file import load_network
from inferencegym_jax.policies.policy_runner import PolicyRunner


def test_a_file_of_settings_is_the_controller(tmp_path: Path) -> None:
    plan = LoadPlan(average_s=3.5, up_load=0.9, up_waiting=2.0, hold_s=2.0, batch_size=48)
    save_plan(tmp_path / "plans" / "mine.npz", plan, {"task": "second-gpu", "from": "a test"})
    task = ig.problem("second-gpu")
    _, metadata = load_network(tmp_path / "plans" / "mine.npz")
    assert metadata["from"] == "a test" and LoadPlan(**metadata["plan"]) == plan
    own = PolicyRunner(Partial(follow_load, engine_of(task.table, task.params), plan.as_arrays()))
    file = PolicyRunner(policy_of(str(tmp_path / "plans" / "mine.npz"), task))
    rng = np.random.default_rng(0)
    leased = set()
    for runner in (own, file):
        runner.reset(0)
    first, _ = task.env.reset_seed(0, task.params)
    for _ in range(60):
        now = dataclasses.replace(
            jax.tree.map(np.asarray, first),
            arrival_rate=np.float32(rng.uniform(0.0, 3.0)),
            queue_depth=np.float32(6.0 * (rng.uniform() < 0.1)),
            kv_cache_occupancy=np.float32(rng.uniform(0.0, 1.0)),
            mean_prompt_len=np.float32(1500.0),
        )
        wanted, found = own.ask(now), file.ask(now)
        assert found == wanted and found.batch_size == 48
        leased.add(found.prefill_disagg)
    assert leased == {False, True}


def test_a_file_of_settings_is_refused_for_another_task(tmp_path: Path) -> None:
    save_plan(tmp_path / "mine.npz", LoadPlan(), {"task": "second-gpu-fast"})
    with pytest.raises(ValueError, match="trained for task 'second-gpu-fast', asked for 'second-gpu'"):
        policy_of(str(tmp_path / "mine.npz"), ig.problem("second-gpu"))
