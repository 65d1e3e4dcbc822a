"""What every answer has: JSON and a request id even where the server fails, headers, HEAD, no text that UTF-8 lacks."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

import server.app
from server.__main__ import main
from server.app import create_app
from server.connections import BoundedProtocol, BoundedWebSocket
from server.programs import Programs
from server.schema_parts import ActionModel
from server.service import NotFinite, Service
from server.sessions import EmbeddedStore
from server.settings import Settings
from tests.server.test_middleware import ask

HALF = '"\\ud800"'
JSON = {"content-type": "application/json"}


def test_a_failure_of_any_cause_is_json_with_a_request_id_and_cors_headers():
    app = create_app(Settings(rate_limit="off"))

    async def fails() -> None:
        raise ZeroDivisionError("secret")

    app.add_api_route("/fails", fails)
    (answer,) = ask(app, "/fails", headers={"origin": "https://a.example", "x-request-id": "r7"})
    assert answer.status_code == 500 and answer.headers["content-type"] == "application/json"
    assert "r7" in answer.json()["detail"] and "secret" not in answer.text
    assert answer.headers["x-request-id"] == "r7" and answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/reset", '{"task_id": %s}'),
        ("/reset", '{"episode_id": %s}'),
        ("/reset", "{%s: 1}"),
        ("/reset", '{"config": {%s: 1}}'),
        ("/step", '{"session_id": %s, "action": {}}'),
        ("/step", '{"session_id": "a", "action": {}, "step_id": %s}'),
        ("/grader", '{"session_id": %s}'),
        ("/grader", '{"task_id": %s, "episode_log": []}'),
        ("/grader", '{"task_id": 1, "episode_log": [{"action": {%s: 1}, "metrics": {}}]}'),
        ("/grader", '{"task_id": 1, "episode_log": [{"action": {}, "metrics": {}, "more": %s}]}'),
        ("/rollout", '{"task_id": %s, "seeds": [1], "policy": "random"}'),
        ("/rollout", '{"task_id": 1, "seeds": [1], "policy": %s}'),
    ],
)
def test_text_that_utf_8_cannot_carry_is_refused(http: httpx.Client, path: str, body: str):
    answer = http.post(path, content=body % HALF, headers=JSON | {"origin": "https://a.example"})
    assert answer.status_code == 422 and "surrogate" in answer.json()["detail"][0]["message"]
    assert answer.headers["x-request-id"] and answer.headers["access-control-allow-origin"]


def test_head_is_answered_as_get_without_the_body(http: httpx.Client):
    for path in ("/", "/tasks", "/healthz", "/info", "/static/app.js", "/docs"):
        head, get = http.head(path), http.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(get.content)), path
    assert http.head("/reset").status_code == 405 and http.head("/nowhere").status_code == 404


def test_pages_say_what_they_may_load_and_load_nothing_from_elsewhere(http: httpx.Client):
    for path in ("/", "/docs"):
        page = http.get(path)
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"]
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', page.text)
        for name in re.findall(r'(?:src|href)="(static/[^"]+)"', page.text):
            assert http.get(f"/{name}").status_code == 200
    assert "content-security-policy" not in http.get("/tasks").headers


def test_openapi_holds_no_route_that_can_never_answer(http: httpx.Client):
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/reset", "/step", "/state", "/tasks"} <= set(paths) and not [path for path in paths if "{" in path]
    assert http.post("/anything/tasks", json={}).status_code == 404
    assert http.get("/list_environments").status_code == 200


def test_the_grade_of_a_part_says_that_it_is_one(http: httpx.Client):
    session = http.post("/reset", json={"task_id": 1, "seed": 0}).json()["session_id"]
    http.post("/step", json={"session_id": session, "action": {}})
    part = http.post("/grader", json={"session_id": session}).json()
    whole = http.post("/grader", json={"task_id": 1, "seed": 0, "actions": [{}] * 200}).json()
    assert (part["complete"], whole["complete"]) == (False, True)


def test_a_step_that_gives_no_finite_number_is_not_applied(monkeypatch: pytest.MonkeyPatch):
    async def run() -> None:
        service = Service(Programs(), EmbeddedStore(10, 60.0))
        session = (await service.reset(1, 0, {}))["session_id"]
        await service.step(session, ACTION)
        before = await service.store.get(session)
        program = service.programs.program(1)
        outcome = program.step(before.state, program.pack_action(KNOBS))
        for bad in (
            outcome._replace(reward=float("nan")),
            outcome._replace(observation=outcome.observation | {"ttft_p50": float("inf")}),
            outcome._replace(observation=outcome.observation | {"priority_distribution": [0.0, float("nan"), 1.0]}),
        ):
            monkeypatch.setattr(program, "step", lambda *_, bad=bad: bad)
            with pytest.raises(NotFinite, match="reward|ttft_p50|priority_distribution"):
                await service.step(session, ACTION)
            assert await service.store.get(session) == before
        monkeypatch.undo()
        assert (await service.step(session, ACTION))[1]
        assert (await service.store.get(session)) == replace(await service.store.get(session), steps=2)

    asyncio.run(run())


ACTION = ActionModel()
KNOBS = {"kv_budget": 1.0, "spec_length": 0, "batch_size": 32, "prefill_disagg": False, "quant_tier": 0}


def test_opening_websockets_is_under_the_rate_limit():
    client = TestClient(create_app(Settings(rate_limit="2/minute")))
    for _ in range(2):
        with client.websocket_connect("/ws") as socket:
            socket.close()
    with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/ws"):
        pass
    assert caught.value.status_code == 429 and caught.value.headers["retry-after"]


def test_messages_beyond_the_rate_limit_wait_and_are_answered():
    client = TestClient(create_app(Settings(rate_limit="20/second")))
    with client.websocket_connect("/ws") as socket:
        for _ in range(50):
            socket.send_json({"type": "state"})
        assert [socket.receive_json()["type"] for _ in range(50)] == ["state"] * 50


@pytest.mark.parametrize(("setting", "believed"), [("", False), ("10.0.0.1", True)])
def test_a_forwarded_address_is_believed_of_named_proxies_only(
    monkeypatch: pytest.MonkeyPatch, setting: str, believed: bool
):
    started: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda *_, **options: started.update(options))
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", setting)
    assert main([]) == 0
    assert started["proxy_headers"] is believed and started["forwarded_allow_ips"] == (setting or None)
    assert started["http"] is BoundedProtocol and started["ws"] is BoundedWebSocket


def test_the_application_is_made_when_it_is_first_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOG_LEVEL", "error")
    monkeypatch.delitem(vars(server.app), "app", raising=False)
    assert "app" not in vars(sys.modules["server.app"])
    first = server.app.app
    assert isinstance(first, FastAPI) and server.app.app is first
    with pytest.raises(AttributeError, match="nothing"):
        getattr(server.app, "nothing")  # noqa: B009
    monkeypatch.delitem(vars(server.app), "app")
