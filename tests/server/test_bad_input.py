"""Bad input over HTTP: a 4xx that names the field, and the session still usable."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

import inferencegym_jax as ig

SECOND = {  # of a task that is scored by seconds
    "action": ig.ServeAction().to_dict(),
    "metrics": {
        "tokens_per_sec": 1.0,
        "ttft_p50_ms": 1.0,
        "gpu_memory_gb": 1.0,
        "slo_violations": 0,
        "cost_per_1k": 1.0,
    },
}
GOOD = {"batch_size": 64}


@pytest.fixture(scope="module")
def session(http: httpx.Client) -> str:
    return http.post("/reset", json={"task_id": 2, "seed": 4}).json()["session_id"]


def send(http: httpx.Client, path: str, body: str | bytes) -> httpx.Response:
    return http.post(path, content=body, headers={"content-type": "application/json"})


@pytest.fixture(autouse=True)
def the_session_is_still_usable(http: httpx.Client, session: str):
    before = http.get("/state", params={"session_id": session}).json()["step_count"]
    yield
    assert http.get("/state", params={"session_id": session}).json()["step_count"] == before
    answer = http.post("/step", json={"session_id": session, "action": GOOD})
    assert answer.status_code == 200 and answer.json()["info"]["timestep"] == before + 1


@pytest.mark.parametrize(
    ("action", "field"),
    [
        ('{"kv_budget": NaN}', "kv_budget"),
        ('{"kv_budget": Infinity}', "kv_budget"),
        ('{"kv_budget": -Infinity}', "kv_budget"),
        ('{"kv_budget": "nan"}', "kv_budget"),
        ('{"kv_budget": "inf"}', "kv_budget"),
        ('{"kv_budget": 1e400}', "kv_budget"),
        ('{"kv_budget": 0.0999}', "kv_budget"),
        ('{"kv_budget": null}', "kv_budget"),
        ('{"batch_size": "64"}', "batch_size"),
        ('{"batch_size": 64.5}', "batch_size"),
        ('{"batch_size": 513}', "batch_size"),
        ('{"batch_size": -1}', "batch_size"),
        ('{"batch_size": 1' + "0" * 300 + "}", "batch_size"),
        ('{"batch_size": true}', "batch_size"),
        ('{"batch_size": [64]}', "batch_size"),
        ('{"spec_length": 3}', "spec_length"),
        ('{"spec_length": true}', "spec_length"),
        ('{"quant_tier": 3}', "quant_tier"),
        ('{"prefill_disagg": 1}', "prefill_disagg"),
        ('{"prefill_disagg": "false"}', "prefill_disagg"),
        ('{"temperature": 1.0}', "temperature"),
        ("[]", "action"),
        ('"batch_size"', "action"),
        ("null", "action"),
    ],
)
def test_a_bad_action_is_refused_by_name(http: httpx.Client, session: str, action: str, field: str):
    answer = send(http, "/step", f'{{"session_id": "{session}", "action": {action}}}')
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["detail"][0]["field"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/step", {"action": GOOD}, 422, "session_id"),
        ("/step", {"session_id": "nobody"}, 422, "action"),
        ("/step", {"session_id": "nobody", "action": GOOD}, 404, "nobody"),
        ("/step", {"session_id": 7, "action": GOOD}, 422, "session_id"),
        ("/step", {"session_id": "nobody", "action": GOOD, "steps": 3}, 422, "steps"),
        ("/step", {"session_id": "nobody", "action": GOOD, "step_id": ""}, 422, "step_id"),
        ("/reset", {"task_id": 9}, 422, "task_id"),
        ("/reset", {"task_id": "nine"}, 422, "task_id"),
        ("/reset", {"task_id": None}, 422, "task_id"),
        ("/reset", {"task_id": True}, 422, "task_id"),
        ("/reset", {"task_id": [1]}, 422, "task_id"),
        ("/reset", {"seed": -1}, 422, "seed"),
        ("/reset", {"seed": 2**32}, 422, "seed"),
        ("/reset", {"seed": 1.5}, 422, "seed"),
        ("/reset", {"seed": "1"}, 422, "seed"),
        ("/reset", {"sede": 1}, 422, "sede"),
        ("/reset", {"config": {"alpha": "0.1"}}, 422, "config.alpha"),
        ("/reset", {"config": {"alpha": -0.1}}, 422, "config.alpha"),
        ("/reset", {"config": {"slo_ttft_ms": 0}}, 422, "config.slo_ttft_ms"),
        ("/reset", {"config": {"slo_tpot_ms": -1}}, 422, "config.slo_tpot_ms"),
        ("/reset", {"task_id": 1, "config": {"slo_tpot_ms": 50}}, 422, "only open-loop tasks have"),
        ("/reset", {"config": {"epsilon": 1}}, 422, "config.epsilon"),
        ("/reset", {"config": [1]}, 422, "config"),
        ("/reset", {"episode_id": "x" * 256}, 422, "episode_id"),
        ("/reset", [], 422, "body"),
        ("/grader", {}, 422, "session_id"),
        ("/grader", {"session_id": "nobody"}, 404, "nobody"),
        ("/grader", {"task_id": 1}, 422, "episode_log"),
        ("/grader", {"task_id": 1, "actions": [{}]}, 422, "seed"),
        ("/grader", {"task_id": 1, "seed": 1, "actions": [{}] * 201}, 422, "actions"),
        ("/grader", {"task_id": 1, "seed": 1, "actions": [{"batch_size": 0}]}, 422, "actions.0.batch_size"),
        ("/grader", {"task_id": 1, "episode_log": [{"action": {}}]}, 422, "metrics"),
        ("/grader", {"task_id": 1, "episode_log": [{"action": {}, "metrics": {}}]}, 422, "tokens_per_sec"),
        ("/grader", {"task_id": 1, "episode_log": "log"}, 422, "episode_log"),
        ("/grader", {"task_id": 4, "episode_log": [SECOND]}, 422, "scored by request"),
        ("/grader", {"task_id": 4, "episode_log": [SECOND | {"outcome": {"asked": [1.0]}}]}, 422, "outcome.asked"),
        ("/rollout", {"task_id": 1}, 422, "seeds"),
        ("/rollout", {"task_id": 1, "seeds": []}, 422, "seeds"),
        ("/rollout", {"task_id": 1, "seeds": [1]}, 422, "policy"),
        ("/rollout", {"task_id": 1, "seeds": [1], "policy": "best"}, 422, "policy"),
        ("/rollout", {"task_id": 1, "seeds": list(range(5000)), "policy": "random"}, 422, "4096"),
        ("/rollout", {"task_id": 1, "seeds": list(range(65)), "policy": "random", "trajectories": True}, 422, "64"),
        ("/rollout", {"task_id": 1, "seeds": [1, 2, 3], "actions": [[{}], [{}]]}, 422, "actions"),
        ("/rollout", {"task_id": 1, "seeds": [1], "actions": [[]]}, 422, "actions"),
        ("/rollout", {"task_id": 1, "seeds": [1], "policy": "random", "format": "arrow"}, 422, "trajectories"),
    ],
)
def test_a_bad_body_is_refused_by_name(http: httpx.Client, path: str, body: Any, status: int, words: str):
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert words in json.dumps(answer.json()["detail"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 60_000, 400),
        (b"[" * 100_000, 413),
        (b'{"action":' * 5_000, 400),
        (b'{"session_id": "x", "action": {"batch_size": ' + b"9" * 5000 + b"}}", 400),
        (b"a" * 10_000_000, 413),
        (b'{"session_id": "' + b"x" * 9_999_900 + b'"}', 413),
    ],
)
def test_a_body_that_is_no_request_is_refused(http: httpx.Client, body: bytes, status: int):
    assert send(http, "/step", body).status_code == status


def test_a_long_body_without_a_declared_length_is_refused(http: httpx.Client):
    def pieces():
        for _ in range(100):
            yield b" " * 100_000

    try:
        assert http.post("/step", content=pieces(), headers={"content-type": "application/json"}).status_code == 413
    except httpx.WriteError:
        pass  # the server closed the connection while the client was still sending: refused as well


def test_state_names_what_it_lacks(http: httpx.Client):
    assert http.get("/state").status_code == 422
    assert http.get("/state", params={"session_id": "nobody"}).status_code == 404
    assert http.get("/state", params={"session_id": "x" * 65}).status_code == 422


def test_a_path_or_method_that_is_not_there_is_said_so(http: httpx.Client):
    assert http.get("/nowhere").status_code == 404
    assert http.get("/reset").status_code == 405
