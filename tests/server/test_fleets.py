"""Fleets on the server: the same endpoints by their own schema, the same trajectory as ``FleetEnvironment``'s."""

from __future__ import annotations

from typing import Any

import httpx
import jax
import numpy as np
import pytest
from openenv.core.generic_client import GenericEnvClient

import inferencegym_jax as ig
from inferencegym_jax.adapters.client import Client
from inferencegym_jax.fleet import rules
from inferencegym_jax.fleet.action import FLEET_KNOBS
from inferencegym_jax.fleet.making import anywhere_params, fleet_tasks
from inferencegym_jax.fleet.observation import FLEET_OBSERVATION, FleetObservation
from inferencegym_jax.fleet.state import FleetMetrics
from inferencegym_jax.models import plain
from tests.server.conftest import Running

pytestmark = pytest.mark.slow  # a fleet's step and rollout compile for a minute
SIZES = (4, 6, 2, 8, 3, 5, 1, 7)


def twin(task: str, seed: int, actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps that the library gives for the same actions."""
    env, params = ig.make_fleet(task)
    if task == "fleet-anywhere":
        params = jax.tree.map(lambda x: x[0], anywhere_params([seed]))
    _, state = env.reset_seed(seed, params)
    steps = []
    for action in actions:
        seen, state, reward, _, info = env.step_env(None, state, ig.FleetAction(**action), params)
        steps.append({"observation": seen.to_dict(), "reward": float(reward), **{k: plain(info[k]) for k in PARTS}})
    return steps


PARTS = ("metrics", "workload", "outcome")


def close(given: Any, expected: Any) -> None:
    """Every number within 1e-5 of the other, as the open loop's are."""
    if isinstance(expected, dict):
        assert set(given) == set(expected)
        for name, value in expected.items():
            close(given[name], value)
    else:
        assert np.asarray(given) == pytest.approx(np.asarray(expected), rel=2e-5, abs=2e-4)


@pytest.mark.parametrize("task", ["fleet-elastic", "fleet-anywhere"])
def test_a_session_is_the_librarys_episode(http: httpx.Client, task: str) -> None:
    reset = http.post("/reset", json={"task_id": task, "seed": 7}, timeout=400).json()
    assert set(reset["observation"]) == set(FLEET_OBSERVATION) and reset["episode_length"] == 1440
    assert reset["info"]["active_actions"] == ["gpus", "batch_size", "spec_length"]
    defaults = {name: knob.default for name, knob in FLEET_KNOBS.items()}  # a log is compared knob by knob
    actions = [defaults | {"gpus": size, "batch_size": 64 + i} for i, size in enumerate(SIZES)]
    session = reset["session_id"]
    answers = [http.post("/step", json={"session_id": session, "action": action}).json() for action in actions]
    for answer, step in zip(answers, twin(task, 7, actions), strict=True):
        info = answer["info"]
        close({"observation": answer["observation"], "reward": answer["reward"], **{k: info[k] for k in PARTS}}, step)
    state = http.get("/state", params={"session_id": session}).json()
    assert (state["step_count"], state["done"], state["task_id"]) == (8, False, fleet_tasks()[task].id)
    graded = http.post("/grader", json={"session_id": session}).json()
    paid = sum(answer["info"]["outcome"]["gpu_seconds"] for answer in answers)
    assert graded["verified"] and not graded["complete"] and graded["outcome"]["gpu_seconds"] == pytest.approx(paid)
    mean = np.mean([answer["reward"] for answer in answers])
    assert graded["score"] == pytest.approx(max(0.0, 1.0 + mean), abs=1e-5)  # score and reward price the same
    body = {"task_id": task, "seeds": [7], "actions": [actions]}
    rolled = http.post("/rollout", json=body, timeout=400).json()
    assert rolled["scores"][0] == pytest.approx(graded["score"], abs=1e-5)
    log = [
        {
            "action": action,
            "reward": answer["reward"],
            **{part: answer["info"][part] for part in ("metrics", "outcome")},
        }
        for action, answer in zip(actions, answers, strict=True)
    ]
    claimed = {"task_id": task, "seed": 7, "episode_log": log}
    assert http.post("/grader", json=claimed).json()["verified"]
    log[3]["reward"] += 0.1
    assert http.post("/grader", json=claimed).json()["first_difference"]["step"] == 3


def test_rollouts_are_the_librarys(http: httpx.Client) -> None:
    body = {"task_id": "fleet-elastic-m-mid", "seeds": [0, 1], "policy": "reactive"}
    answer = http.post("/rollout", json=body, timeout=400).json()
    env, params = ig.make_fleet("fleet-elastic-m-mid")
    found = ig.evaluate_fleet(env, params, rules.rule(rules.REACTIVE), [0, 1])
    assert answer["gpu_seconds"] == pytest.approx(found.gpu_seconds, rel=2e-3)
    assert answer["scores"] == pytest.approx(1.0 - found.price / 8, abs=2e-3)
    fixed = {
        name: http.post("/rollout", json=body | {"policy": name}, timeout=400).json() for name in ("baseline", "random")
    }
    assert fixed["baseline"]["gpu_seconds"] == [8 * 5 * 1440] * 2
    assert all(0 < seconds < 8 * 5 * 1440 for seconds in fixed["random"]["gpu_seconds"])
    best = http.post("/rollout", json=body | {"policy": "best_static", "trajectories": True}, timeout=400).json()
    sizes = {step["action"]["gpus"] for episode in best["trajectories"] for step in episode}
    assert len(sizes) == 1 and best["mean_score"] > fixed["baseline"]["mean_score"]


@pytest.mark.parametrize(
    ("path", "change", "field", "text"),
    [
        ("/reset", {"config": {"alpha": 1.0}}, None, "config: fleet-elastic is a fleet, which takes none"),
        ("/reset", {"seed": -1}, "body.seed", "greater than or equal to 0"),
        ("/step", {"action": {"gpus": 9}}, "body.action.gpus", "less than or equal to 8"),
        ("/step", {"action": {"gpus": 2.5}}, "body.action.gpus", "valid integer"),
        ("/step", {"action": {"gpus": 2, "kv_budget": 0.5}}, "body.action.kv_budget", "Extra inputs"),
        ("/step", {"action": {"quant_tier": 1}}, "body.action.quant_tier", "Extra inputs"),
        ("/step", {"action": {"gpus": 2, "prefill_gpus": 2}}, None, "leaves no GPU"),
        ("/rollout", {"policy": "trained"}, None, "policy = 'trained': not available for task 801"),
        ("/rollout", {"actions": [[{"kv_budget": 0.5}]]}, None, "kv_budget"),
        ("/grader", {"episode_log": [{"action": {}, "metrics": {}}]}, None, "episode_log[0].outcome.on_time: missing"),
    ],
)
def test_bad_input_is_refused_in_words(
    http: httpx.Client, path: str, change: dict[str, Any], field: str | None, text: str
) -> None:
    body: dict[str, Any] = {"task_id": "fleet-elastic"}
    if path == "/step":
        body = {"session_id": http.post("/reset", json=body, timeout=400).json()["session_id"]}
    if path == "/rollout":
        body["seeds"] = [0]
    answer = http.post(path, json=body | change, timeout=400)
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    if field is None:
        assert text in str(detail)
    else:
        assert [entry["field"] for entry in detail] == [field] and text in detail[0]["message"]


def test_an_engines_task_takes_no_fleets_knobs(http: httpx.Client) -> None:
    session = http.post("/reset", json={"task_id": 1}).json()["session_id"]
    answer = http.post("/step", json={"session_id": session, "action": {"gpus": 2}})
    assert answer.status_code == 422 and answer.json()["detail"][0]["field"] == "body.action.gpus"
    answer = http.post("/rollout", json={"task_id": 1, "seeds": [0], "policy": "KEDA, queue"})
    assert answer.status_code == 422 and "KEDA, queue" in answer.json()["detail"]


def test_tasks_and_info_know_them(http: httpx.Client) -> None:
    tasks = {entry["name"]: entry for entry in http.get("/tasks").json()["tasks"]}
    for name, spec in fleet_tasks().items():
        entry = tasks[name]
        assert (entry["id"], entry["kind"], entry["step_s"]) == (spec.id, "fleet", 5)
        assert entry["episode_length"] == spec.decisions and {"reactive", "KEDA, queue"} <= set(entry["policies"])
    assert tasks["static-uniform"]["kind"] == "engine"
    fleet = http.get("/info").json()["fleet"]
    assert set(FLEET_KNOBS) <= set(fleet["action_space"]["properties"])
    assert set(fleet["observation_space"]["properties"]) == set(FLEET_OBSERVATION)


def test_over_the_websocket(server: Running) -> None:
    with GenericEnvClient(base_url=server.url).sync() as env:
        first = env.reset(seed=7, task_id="fleet-elastic")
        assert set(first.observation) == set(FLEET_OBSERVATION)
        actions = [{"gpus": size} for size in SIZES[:3]]
        seen = [env.step(action) for action in actions]
        for result, step in zip(seen, twin("fleet-elastic", 7, actions), strict=True):
            close(result.observation, step["observation"])
            assert result.reward == pytest.approx(step["reward"], rel=2e-5)
        with pytest.raises(Exception, match="kv_budget"):
            env.step({"kv_budget": 0.5})
        assert env.step({}).done is False  # the session goes on
        env.reset(seed=7, task_id=1)
        with pytest.raises(Exception, match="gpus"):
            env.step({"gpus": 2})


def test_over_mcp(http: httpx.Client) -> None:
    def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        return http.post("/mcp", json=body, timeout=400).json()["result"]

    session = call("reset", {"task_id": "fleet-elastic", "seed": 7})["structuredContent"]["session_id"]
    stepped = call("step", {"session_id": session, "action": {"gpus": 4}})["structuredContent"]
    close(stepped["observation"], twin("fleet-elastic", 7, [{"gpus": 4}])[0]["observation"])
    wrong = call("step", {"session_id": session, "action": {"kv_budget": 0.5}})
    assert wrong["isError"] and "kv_budget" in wrong["content"][0]["text"]
    assert call("grade", {"session_id": session})["structuredContent"]["verified"] is True


def test_the_clients_speak_fleet(server: Running) -> None:
    with Client(server.url, timeout_s=400) as client:
        episode = client.reset("fleet-elastic", seed=7)
        assert isinstance(episode.observation, FleetObservation)
        step = episode.step(ig.FleetAction(gpus=4))
        close(step.observation.to_dict(), twin("fleet-elastic", 7, [{"gpus": 4}])[0]["observation"])
        assert isinstance(step.metrics, FleetMetrics) and step.metrics.asked == 4 and step.outcome is not None
        assert episode.grade()["verified"]
        with pytest.raises(ValueError, match="gpus"):
            episode.step(ig.FleetAction(gpus=9))
