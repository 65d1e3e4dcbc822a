"""``policy_of``: one function knows every name, and ``best_static`` means the problem's own table and traffic."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.episodes.static_search import search_static, static_actions
from inferencegym_jax.fleet.rules import DEFAULTS
from inferencegym_jax.policies import NAMES, policy_of
from inferencegym_jax.policies.policy_file import load_network, save_network, shipped_file
from inferencegym_jax.table.latency_table import table_from_columns
from server.schemas import RolloutRequest


def own_table() -> ig.LatencyTable:
    """Four batch sizes; large ones are slow, so that its best static action is not the shipped table's."""
    rows = [(batch, bucket) for batch in (1, 8, 32, 64) for bucket in (0, 3, 7)]
    columns = {"batch_size": [b for b, _ in rows], "prompt_len_bucket": [p for _, p in rows]}
    columns |= {"ttft_p50_ms": [20.0 + 5 * b for b, _ in rows], "ttft_p99_ms": [40.0 + 9 * b for b, _ in rows]}
    columns |= {"tpot_ms": [10.0 + b for b, _ in rows], "tps": [300.0 * b / (1 + b * b / 100) for b, _ in rows]}
    columns |= {"gpu_mem_gb": [20.0] * len(rows), "cost_per_1k": [0.01] * len(rows)}
    return table_from_columns(columns)


def action_of(policy: Policy, problem: ig.Problem) -> ig.ServeAction:
    observation, _ = problem.env.reset_seed(0, problem.params)
    answer = policy(jax.random.key(0), observation, None)
    action = answer[0] if isinstance(answer, tuple) else answer
    return jax.tree.map(lambda x: np.asarray(x).item(), action)


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_name_is_a_policy_that_acts(name: str) -> None:
    problem = ig.problem(3)
    found = ig.evaluate(problem.env, problem.params, policy_of(name, problem), np.arange(2), length=5)
    assert np.isfinite(found.total_reward).all()


def test_best_static_is_that_of_the_problems_own_table_and_traffic() -> None:
    table = own_table()
    problem = ig.problem(1, table=table)
    scores = problem.score(
        search_static(problem.env, problem.params, static_actions(problem.env, problem.params), np.arange(16)).per_seed
    ).mean(axis=1)
    mine = action_of(policy_of("best_static", problem), problem)
    assert mine.batch_size in (1, 8, 32)
    actions = static_actions(problem.env, problem.params)
    assert scores[actions.index(mine.to_dict())] == scores.max()
    assert mine == action_of(ig.policies.best_static(1, table=table), problem) == problem.best_static
    assert mine != action_of(policy_of("best_static", ig.problem(1)), problem)


def test_a_files_path_and_a_runs_folder_are_policies_wherever_a_name_is(tmp_path: Path) -> None:
    problem = ig.problem(2)
    network, about = load_network(shipped_file(2))
    save_network(tmp_path / "policy.npz", network, about)
    shipped = ig.evaluate(problem.env, problem.params, ig.policies.trained(2), np.arange(3))
    for path in (tmp_path, tmp_path / "policy.npz"):
        for policy in (policy_of(str(path), problem), ig.policies.load(path)):
            found = ig.evaluate(problem.env, problem.params, policy, np.arange(3))
            np.testing.assert_array_equal(found.total_reward, shipped.total_reward)


def test_a_file_of_another_task_is_refused_unless_any_will_do(tmp_path: Path) -> None:
    network, about = load_network(shipped_file(2))
    save_network(tmp_path / "other.npz", network, about)
    save_network(tmp_path / "nameless.npz", network, {})
    problem = ig.problem(1)
    with pytest.raises(ValueError, match="trained for task 'bursty-sharegpt', asked for 'static-uniform'"):
        policy_of(str(tmp_path / "other.npz"), problem)
    wanted = action_of(ig.policies.load(tmp_path / "other.npz"), problem)
    assert action_of(policy_of(str(tmp_path / "other.npz"), problem, any_task=True), problem) == wanted
    assert action_of(policy_of(str(tmp_path / "nameless.npz"), problem), problem) == wanted


def test_knobs_are_a_policy_that_always_sets_them() -> None:
    problem = ig.problem(3)
    action = action_of(policy_of("batch_size=64, kv_budget=5e-1,prefill_disagg=true", problem), problem)
    assert action == ig.ServeAction(batch_size=64, kv_budget=0.5, prefill_disagg=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", r"policy = 'nobody': no such name and no such file; must be one of baseline, random, .*\.npz"),
        ("batch_size=0", "batch_size = 0: must be a whole number from 1 to 512"),
        ("batch=3", "unknown knob 'batch'; allowed are"),
        ("batch_size=3,batch_size=4", "batch_size is given twice"),
        ("batch_size=", "must be name=value"),
        ("kv_budget=nan", "kv_budget"),
        (__file__, "not a policy file, or truncated"),
    ],
)
def test_what_is_no_policy_is_named_with_what_there_is(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        policy_of(name, ig.problem(1))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.npz.*no such file"):
        policy_of(str(tmp_path / "absent.npz"), ig.problem(1))


def test_the_server_plays_the_names_that_the_library_lists() -> None:
    schema = RolloutRequest.model_json_schema()["properties"]["policy"]["anyOf"][0]
    assert tuple(schema["enum"]) == (*NAMES, *DEFAULTS)  # rules with published defaults are fleets'


def test_an_own_best_static_action_takes_the_place_of_the_search() -> None:
    problem = dataclasses.replace(ig.problem(2), own_best_static=ig.ServeAction(batch_size=5))
    assert action_of(policy_of("best_static", problem), problem) == ig.ServeAction(batch_size=5)
