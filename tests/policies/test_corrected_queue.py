"""The corrected reactive controller of closed-loop tasks: what it is untrained, what it never does, its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.queue_view import CorrectedQueue
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, OBSERVATION, ServeAction, ServeObservation
from inferencegym_jax.policies.corrected import positions_policy
from inferencegym_jax.policies.corrected_queue import QUEUE_CORRECTIONS, QueuePlan, follow_queue, queue_plan_for
from inferencegym_jax.policies.network import ObservationStatistics, PolicyNetwork
from inferencegym_jax.policies.policy_file import load_network, playable, save_network
from inferencegym_jax.policies.reactive_control import act
from training.config import task_config

SEEDS = np.arange(4)
STEPS = 60


@pytest.fixture(scope="module")
def problem() -> ig.Problem:
    return ig.problem(3)


@pytest.fixture(scope="module")
def plan(problem: ig.Problem) -> QueuePlan:
    return queue_plan_for(problem.table, problem.params)


def network(bias: Any = 0.0, outputs: int = len(QUEUE_CORRECTIONS)) -> PolicyNetwork:
    layer = (jnp.zeros((FLAT_OBSERVATION_SIZE, outputs)), jnp.broadcast_to(jnp.asarray(bias, jnp.float32), (outputs,)))
    nothing = ObservationStatistics(jnp.zeros(()), jnp.zeros(FLAT_OBSERVATION_SIZE), jnp.ones(FLAT_OBSERVATION_SIZE))
    return PolicyNetwork((layer,), jnp.zeros(outputs), nothing)


def observations(count: int, seed: int = 0) -> ServeObservation:
    """Arrivals and queues of all sizes."""
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {name: np.full(count, field.low, np.float32) for name, field in OBSERVATION.items()}
    fields["priority_distribution"] = np.tile(np.asarray([1.0, 0.0, 0.0], np.float32), (count, 1))
    fields["arrival_rate"] = np.exp(rng.uniform(0.0, np.log(400.0), count)).astype(np.float32)
    fields["queue_depth"] = np.floor(np.exp(rng.uniform(0.0, np.log(512.0), count))).astype(np.float32) - 1
    return ServeObservation(**fields)


def longest_prompts_gb(problem: ig.Problem, action: ServeAction) -> np.ndarray:
    shape = np.shape(action.batch_size)
    longest = jnp.maximum(problem.params.short_high, problem.params.long_high)
    action = jax.tree.map(lambda x: jnp.broadcast_to(x, shape), action)
    return np.asarray(problem.env.grid.lookup(action, jnp.broadcast_to(longest, shape))["gpu_mem_gb"])


def test_without_corrections_it_is_the_reactive_controller(problem: ig.Problem, plan: QueuePlan) -> None:
    seen = observations(512)
    own = jax.vmap(lambda o: act(jax.tree.map(jnp.asarray, plan.reactive), jnp.zeros(2, jnp.uint32), o))(seen)
    moved = jax.vmap(lambda o: follow_queue(plan, jnp.zeros(len(QUEUE_CORRECTIONS)), o))(seen)
    for name in ("batch_size", "spec_length", "kv_budget", "prefill_disagg", "quant_tier"):
        here, there = (np.broadcast_to(np.asarray(getattr(a, name)), 512) for a in (moved, own))
        np.testing.assert_array_equal(here, there, err_msg=name)
    assert len(np.unique(np.asarray(own.batch_size))) > 10


@pytest.mark.parametrize("task", [1, 2, 3])
def test_no_correction_runs_out_of_memory_on_the_longest_prompts(task: int) -> None:
    problem = ig.problem(task)
    plan = queue_plan_for(problem.table, problem.params)
    positions = np.random.default_rng(1).uniform(-1.5, 1.5, (4096, len(QUEUE_CORRECTIONS))).astype(np.float32)
    actions = jax.vmap(lambda p, o: follow_queue(plan, p, o))(positions, observations(4096))
    used = longest_prompts_gb(problem, actions)
    assert used.max() <= float(problem.params.oom_limit_gb)
    within = positions[:, QUEUE_CORRECTIONS.index("memory")] <= 0
    assert used[within].max() <= float(min(problem.params.memory_limit_gb, problem.params.oom_limit_gb))
    leases = "prefill_disagg" in problem.spec.active_knobs
    assert bool(np.asarray(actions.prefill_disagg).any()) == leases


def test_each_correction_moves_its_knob(plan: QueuePlan) -> None:
    seen = jax.tree.map(lambda x: x[0], observations(1))
    rest = follow_queue(plan, jnp.zeros(len(QUEUE_CORRECTIONS)), seen)
    at = {
        name: follow_queue(plan, jnp.eye(len(QUEUE_CORRECTIONS))[i], seen) for i, name in enumerate(QUEUE_CORRECTIONS)
    }
    assert int(at["slots"].batch_size) > int(rest.batch_size)
    assert float(at["slots"].kv_budget) < float(rest.kv_budget)
    assert int(at["drafts"].spec_length) > int(rest.spec_length)
    assert bool(at["second_gpu"].prefill_disagg) and not bool(rest.prefill_disagg)
    assert float(at["memory"].kv_budget) > float(rest.kv_budget)


def test_file_view_and_policy_play_the_same_and_say_where_they_cannot(problem: ig.Problem, tmp_path: Path) -> None:
    path, about = tmp_path / "mine.npz", {"task": "adversarial-multi-tenant", "acts": "correction"}
    save_network(path, network(bias=[0.2, 0.0, 0.0, 2.0]), about)
    kept, metadata = load_network(path)
    assert metadata["format"] == 5 and list(metadata["knobs"]) == list(QUEUE_CORRECTIONS)
    played = ig.rollout(problem.env, problem.params, playable(kept, metadata, problem), SEEDS, length=STEPS)
    view = CorrectedQueue(problem.env, problem.params)
    viewed = ig.rollout(view, problem.params, positions_policy(kept), SEEDS, length=STEPS)
    np.testing.assert_allclose(np.asarray(viewed.reward), np.asarray(played.reward), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(viewed.action.batch_size), np.asarray(played.action.batch_size))
    reactive = ig.rollout(problem.env, problem.params, ig.policies.policy_of("reactive", problem), SEEDS, length=STEPS)
    assert (np.asarray(played.action.batch_size) > np.asarray(reactive.action.batch_size)).any()
    assert view.action_space().shape == (len(QUEUE_CORRECTIONS),)
    with pytest.raises(ValueError, match="planned for a GPU and a task"):
        ig.policies.load(path)
    with pytest.raises(ValueError, match="the task is open-loop"):
        ig.policies.load(path, problem=ig.problem(4))
    save_network(tmp_path / "wide.npz", network(outputs=9), about)
    with pytest.raises(ValueError, match="must be 14 and 4"):
        load_network(tmp_path / "wide.npz")


def test_a_config_says_which_observation_a_correction_reads() -> None:
    config = task_config(3).replace(acts="correction", start="middle", reads="observation")
    assert config.corrects_queue and not task_config(7).corrects_queue
    with pytest.raises(ValueError, match="reads = 'relative': must be 'observation'"):
        config.replace(reads="relative")
    with pytest.raises(ValueError, match="reads = 'observation': must be 'relative'"):
        task_config(7).replace(reads="observation")
