"""The endpoints of docs/server.md over a real socket."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

import inferencegym_jax as ig
from inferencegym_jax.fleet.making import fleet_tasks
from inferencegym_jax.models import KNOBS, OBSERVATION, MetricsSnapshot, WorkloadState
from inferencegym_jax.tasks import CONFIG_KEYS
from tests.server.twins import episodes, random_actions, same, seen


def reset(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post("/reset", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def step(http: httpx.Client, session: str, action: dict[str, Any], **more: Any) -> httpx.Response:
    return http.post("/step", json={"session_id": session, "action": action, **more})


@pytest.mark.ci
@pytest.mark.parametrize(
    "task",
    [
        pytest.param(spec.id, marks=[pytest.mark.slow] if spec.episode_length > 200 else [])
        for spec in ig.task_specs().values()
        if spec.episode_length <= 600
    ],
)
def test_an_episode_over_http_is_the_rollouts(http: httpx.Client, task: int):
    seed, config = 40 + task, {"gamma": 0.5} if task == 3 else None
    steps = ig.get_task(task).episode_length
    actions = random_actions(seed, steps)
    session = reset(http, task_id=task, seed=seed, config=config)["session_id"]
    answers = [step(http, session, action).json() for action in actions]
    assert same([seen(answer) for answer in answers], episodes(task, [seed], [actions], config)[0], task)
    assert [answer["done"] for answer in answers] == [False] * (steps - 1) + [True]
    after = step(http, session, {})
    assert after.status_code == 409 and "over" in after.json()["detail"]

    state = http.get("/state", params={"session_id": session}).json()
    assert state["step_count"] == steps and state["done"] and state["task_id"] == task and state["seed"] == seed
    assert state["cumulative_reward"] == pytest.approx(sum(answer["reward"] for answer in answers))

    log = [
        {"action": action, "reward": answer["reward"], "metrics": answer["info"]["metrics"]}
        | ({"outcome": answer["info"]["outcome"]} if ig.get_task(task).dynamics == "open_loop" else {})
        for action, answer in zip(actions, answers, strict=True)
    ]
    by_session = http.post("/grader", json={"session_id": session}).json()
    by_log = http.post("/grader", json={"task_id": task, "episode_log": log}).json()
    verified = http.post("/grader", json={"task_id": task, "seed": seed, "config": config, "episode_log": log}).json()
    simulated = http.post("/grader", json={"task_id": task, "seed": seed, "config": config, "actions": actions}).json()
    scores = [x["score"] for x in (by_session, by_log, verified, simulated)]
    assert scores == pytest.approx([ig.grade(task, log)["score"]] * 4)
    assert [x["verified"] for x in (by_session, by_log, verified, simulated)] == [True, False, True, True]


def test_a_forged_log_is_found_and_not_scored(http: httpx.Client):
    actions = random_actions(5, 20)
    honest = episodes(1, [5], [actions])[0]
    log = [
        {"action": action, "reward": row["reward"], "metrics": row["metrics"]}
        for action, row in zip(actions, honest, strict=True)
    ]
    log[7]["metrics"] = {**log[7]["metrics"], "tokens_per_sec": 99999.0}
    answer = http.post("/grader", json={"task_id": 1, "seed": 5, "episode_log": log}).json()
    assert not answer["verified"]
    assert (answer["first_difference"]["step"], answer["first_difference"]["field"]) == (7, "metrics.tokens_per_sec")
    simulated = http.post("/grader", json={"task_id": 1, "seed": 5, "actions": actions}).json()
    assert answer["score"] == simulated["score"]


def test_an_empty_log_scores_nothing_and_says_so(http: httpx.Client):
    answer = http.post("/grader", json={"task_id": 3, "episode_log": []}).json()
    assert answer["score"] == 0 and "empty" in answer["feedback"]


def test_a_retry_with_the_same_step_id_steps_once(http: httpx.Client):
    session = reset(http, task_id=2, seed=1)["session_id"]
    first = step(http, session, {"batch_size": 64}, step_id="one")
    again = step(http, session, {"batch_size": 64}, step_id="one")
    assert first.content == again.content
    assert http.get("/state", params={"session_id": session}).json()["step_count"] == 1
    assert step(http, session, {"batch_size": 64}, step_id="two").json()["info"]["timestep"] == 2


def test_a_reset_without_anything_draws_a_seed_and_reports_it(http: httpx.Client):
    seeds = {reset(http)["info"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert http.post("/reset").json()["info"]["task_id"] == 1


def test_health_says_healthy_and_counts_sessions(http: httpx.Client):
    before = http.get("/health").json()
    reset(http)
    after = http.get("/health").json()
    assert (after["status"], after["ok"]) == ("healthy", True)
    assert after["active_sessions"] == before["active_sessions"] + 1
    assert after["uptime_s"] >= before["uptime_s"]
    assert http.get("/healthz").json() == {"status": "ok"}


def test_the_catalogue_is_the_librarys(http: httpx.Client):
    tasks = http.get("/tasks").json()["tasks"]
    assert [(t["id"], t["name"], t["active_actions"]) for t in tasks] == [
        (spec.id, spec.name, list(spec.active_knobs)) for spec in (*ig.task_specs().values(), *fleet_tasks().values())
    ]
    info = http.get("/info").json()
    assert info["table"]["digest"] == ig.load_table().digest
    assert info["table"]["metadata"] == ig.load_table().metadata
    for name, knob in KNOBS.items():
        schema = info["action_space"]["properties"][name]
        assert schema["default"] == knob.default and schema["description"] == knob.description
        if knob.choices:
            assert schema["enum"] == list(knob.choices)
        elif knob.kind != "bool":
            assert (schema["minimum"], schema["maximum"]) == (knob.low, knob.high)
    assert list(info["observation_space"]["properties"]) == list(OBSERVATION)


def test_info_says_for_which_tasks_there_is_a_trained_policy(http: httpx.Client):
    def ships(task: int) -> bool:
        try:
            return bool(ig.policies.trained(task))
        except FileNotFoundError:
            return False

    info = http.get("/info").json()
    assert info["trained_policies"] == {spec.name: ships(spec.id) for spec in ig.task_specs().values()}
    assert info["policies"]["trained"] == any(info["trained_policies"].values())
    assert list(info["config"]["properties"]) == info["config_keys"] == list(CONFIG_KEYS)


def test_the_pages_files_are_asked_about_again_after_an_upgrade(http: httpx.Client):
    page = http.get("/")
    files = re.findall(r'"(static/[^"]+)"', page.text)
    assert page.headers["cache-control"] == "no-cache" and len(files) >= 2
    for path in files:
        first = http.get(f"/{path}")
        again = http.get(f"/{path}", headers={"if-none-match": first.headers["etag"]})
        assert (first.status_code, again.status_code) == (200, 304)
        assert first.headers["cache-control"] == again.headers["cache-control"] == "no-cache"


def test_the_schema_names_every_metric_and_workload_field(http: httpx.Client):
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    assert list(schemas["Metrics"]["properties"]) == list(MetricsSnapshot.__dataclass_fields__)
    assert list(schemas["Workload"]["properties"]) == list(WorkloadState.__dataclass_fields__)


@pytest.mark.slow
def test_the_baseline_scores_are_those_of_its_episodes(http: httpx.Client):
    answer = http.get("/baseline").json()
    for entry in answer["tasks"]:
        actions = [ig.ServeAction().to_dict()] * ig.get_task(entry["task_id"]).episode_length
        again = http.post("/grader", json={"task_id": entry["task_id"], "seed": answer["seed"], "actions": actions})
        assert entry["score"] == again.json()["score"]
        rolled = {"task_id": entry["task_id"], "seeds": [answer["seed"]], "policy": "baseline"}
        assert entry["oom_share"] == pytest.approx(http.post("/rollout", json=rolled).json()["mean_oom_share"])
        if entry["expected_range"]:
            low, high = entry["expected_range"]
            assert low <= entry["score"] <= high


def test_the_root_answers_a_page(http: httpx.Client):
    answer = http.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "InferenceGym" in answer.text


def test_metrics_count_requests_sessions_and_steps(http: httpx.Client):
    def steps() -> float:
        lines = http.get("/metrics").text.splitlines()
        return float(next(x for x in lines if x.startswith('inferencegym_steps_total{transport="http"}')).split()[1])

    session = reset(http)["session_id"]
    before = steps()
    step(http, session, {})
    assert steps() == before + 1
    text = http.get("/metrics").text
    assert 'inferencegym_requests_total{method="POST",route="/step",status="200"}' in text
    assert 'inferencegym_request_seconds_bucket{le="0.005",route="/step"}' in text
    assert 'inferencegym_sessions{transport="http"}' in text


def test_a_request_id_is_kept_or_made(http: httpx.Client):
    assert http.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = http.get("/healthz", headers={"x-request-id": "bad id"}).headers["x-request-id"]
    assert len(made) == 32
