"""POST /rollout: whole episodes, the same as stepping them one by one."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, OBSERVATION, MetricsSnapshot
from inferencegym_jax.policies import PolicyRunner
from inferencegym_jax.policies.network import network_policy
from server.programs import Programs
from server.rollouts import Rollouts
from server.schemas import RolloutRequest
from server.settings import Settings
from tests.policies.test_memory import BOTH
from tests.server.twins import episodes, random_actions


def rollout(http: httpx.Client, **body: Any) -> httpx.Response:
    answer = http.post("/rollout", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def grades(http: httpx.Client, task: int, seed: int, actions: list[dict[str, Any]]) -> dict[str, Any]:
    return http.post("/grader", json={"task_id": task, "seed": seed, "actions": actions}).json()


@pytest.mark.parametrize("task", [1, 2, 3])
def test_sequences_score_as_the_grader_scores_them(http: httpx.Client, task: int):
    lengths = [1, 2, 57, 200, 200]
    actions = [random_actions(i, n) for i, n in enumerate(lengths)]
    answer = rollout(http, task_id=task, seeds=[3, 4, 5, 6, 7], actions=actions).json()
    assert answer["steps"] == lengths
    for i, seed in enumerate(answer["seeds"]):
        graded = grades(http, task, seed, actions[i])
        assert answer["scores"][i] == pytest.approx(graded["score"], rel=1e-6, abs=1e-9)
        for name, value in graded["breakdown"].items():
            assert answer["breakdown"][name][i] == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert answer["mean_score"] == pytest.approx(sum(answer["scores"]) / 5)
    assert answer["trajectories"] is None


def test_the_share_of_seconds_out_of_memory_stands_beside_the_scores(http: httpx.Client):
    actions = [[{"batch_size": 512}] * 20, [{"batch_size": 1, "kv_budget": 0.1}] * 50, random_actions(3, 200)]
    answer = rollout(http, task_id=3, seeds=[1, 2, 3], actions=actions, trajectories=True).json()
    counted = [np.mean([step["oom"] for step in episode]) for episode in answer["trajectories"]]
    assert answer["oom_shares"] == pytest.approx(counted) and answer["oom_shares"][:2] == [1.0, 0.0]
    assert 0 < answer["oom_shares"][2] < 1
    assert answer["mean_oom_share"] == pytest.approx(np.mean(counted))
    assert rollout(http, task_id=3, seeds=[1, 2, 3], actions=actions).json()["oom_shares"] == answer["oom_shares"]


def test_one_sequence_serves_all_seeds_and_a_config_counts(http: httpx.Client):
    actions, config = random_actions(1, 5), {"alpha": 0.1, "slo_ttft_ms": 50.0}
    answer = rollout(http, task_id=2, seeds=[1, 2], actions=[actions], config=config, trajectories=True).json()
    twins = episodes(2, [1, 2], [actions, actions], config)
    for found, twin in zip(answer["trajectories"], twins, strict=True):
        assert len(found) == 5
        for t in range(5):
            assert {k: found[t][k] for k in ("reward", "metrics", "workload", "oom")} == {
                k: twin[t][k] for k in ("reward", "metrics", "workload", "oom")
            }
            assert found[t]["action"] == pytest.approx(actions[t])
            if t:
                assert found[t]["observation"] == twin[t - 1]["observation"]


@pytest.mark.ci
@pytest.mark.parametrize("policy", ["baseline", "best_static", "reactive", "random", "trained"])
def test_a_policy_by_name_is_the_librarys(http: httpx.Client, policy: str):
    problem = ig.problem(2)
    found = ig.rollout(problem.env, problem.params, ig.policies.policy_of(policy, problem), [0, 1])
    answer = rollout(http, task_id=2, seeds=[0, 1], policy=policy, trajectories=True).json()
    for i, episode in enumerate(answer["trajectories"]):
        # approx: a policy that computes its action is compiled together with the step here, and its last bit may differ
        assert [step["reward"] for step in episode] == pytest.approx(np.asarray(found.reward)[:, i].tolist(), rel=1e-5)
        for name in KNOBS:
            actions = [step["action"][name] for step in episode]
            assert actions == pytest.approx(np.asarray(getattr(found.action, name))[:, i].tolist(), rel=1e-6)


def test_many_seeds_run_in_blocks_and_come_back_in_order(http: httpx.Client):
    many = rollout(http, task_id=1, seeds=list(range(300)), policy="baseline").json()
    few = rollout(http, task_id=1, seeds=[299, 3], policy="baseline").json()
    assert [many["scores"][299], many["scores"][3]] == few["scores"]
    assert [many["total_rewards"][299], many["total_rewards"][3]] == few["total_rewards"]


def test_arrow_holds_the_same_steps_as_json(http: httpx.Client):
    body = {"task_id": 3, "seeds": [8, 9], "actions": [random_actions(8, 3), random_actions(9, 4)]}
    whole = rollout(http, **body, trajectories=True).json()
    answer = rollout(http, **body, trajectories=True, format="arrow")
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    table = pa.ipc.open_stream(answer.content).read_all()
    summary = json.loads(table.schema.metadata[b"inferencegym"])
    assert summary["scores"] == whole["scores"]
    rows = table.to_pylist()
    assert [(row["episode"], row["seed"], row["step"]) for row in rows] == [
        (0, 8, 0), (0, 8, 1), (0, 8, 2), (1, 9, 0), (1, 9, 1), (1, 9, 2), (1, 9, 3)
    ]  # fmt: skip
    steps = [step for episode in whole["trajectories"] for step in episode]
    for row, step in zip(rows, steps, strict=True):
        assert row["reward"] == step["reward"] and row["oom"] == step["oom"]
        assert {name: row[f"metrics.{name}"] for name in MetricsSnapshot.__dataclass_fields__} == step["metrics"]
        assert row["observation.priority_distribution"] == step["observation"]["priority_distribution"]


@pytest.mark.slow
def test_a_policy_with_memory_acts_over_http_as_in_a_rollout(http: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    policy, seeds, length = network_policy(BOTH), [0, 1, 2], 40
    env, params = ig.make(3)
    there = ig.rollout(env, params, policy, np.asarray(seeds), length=length).action
    runner = PolicyRunner(policy)
    runner.reset(2)
    answer = http.post("/reset", json={"task_id": 3, "seed": 2}).json()
    session, seen = answer["session_id"], answer["observation"]
    for t in range(length):
        fields = {name: seen[name] for name in OBSERVATION}
        action = runner.ask(ig.ServeObservation(**fields)).to_dict()
        for name, value in action.items():
            assert value == pytest.approx(np.asarray(getattr(there, name))[t, 2], rel=1e-5), (t, name)
        seen = http.post("/step", json={"session_id": session, "action": action}).json()["observation"]

    monkeypatch.setattr("server.rollouts.policy_of", lambda name, problem: policy)  # as if it were the one that ships
    driver = Rollouts(Programs(None, None), Settings())
    found = driver.score(RolloutRequest(task_id=3, seeds=seeds, policy="trained", actions=None, trajectories=True))
    for block, steps in found.blocks():
        for name in KNOBS:
            mine, theirs = (np.asarray(getattr(actions, name))[:length] for actions in (steps.action, there))
            np.testing.assert_allclose(mine, theirs[:, block], rtol=1e-5, err_msg=name)
