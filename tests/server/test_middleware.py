"""Rate limit, CORS, log lines and settings, on applications in this process that never start their engine."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import ValidationError

from server.__main__ import main
from server.app import create_app
from server.settings import Settings


def ask(app: Any, *paths: str, client: tuple[str, int] = ("1.2.3.4", 1), **more: Any) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return [await http.request(more.get("method", "GET"), path, headers=more.get("headers")) for path in paths]

    return asyncio.run(run())


def test_more_requests_than_allowed_are_told_when_to_come_back():
    app = create_app(Settings(rate_limit="5/minute"))

    async def run() -> tuple[list[httpx.Response], httpx.Response, httpx.Response]:
        here, there = (httpx.ASGITransport(app, client=(host, 1)) for host in ("1.1.1.1", "2.2.2.2"))
        async with httpx.AsyncClient(transport=here, base_url="http://test") as http:
            answers = [await http.get("/tasks") for _ in range(7)]
            probe = await http.get("/healthz")
        async with httpx.AsyncClient(transport=there, base_url="http://test") as http:
            other = await http.get("/tasks")
        return answers, probe, other

    answers, probe, other = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert "RATE_LIMIT" in answers[-1].json()["detail"]
    assert probe.status_code == 200 and other.status_code == 200


def test_off_means_no_limit():
    assert {a.status_code for a in ask(create_app(Settings(rate_limit="off")), *["/tasks"] * 150)} == {200}


def test_a_browser_from_another_origin_may_ask():
    app = create_app(Settings(cors_origins=("https://example.org",)))
    headers = {"origin": "https://example.org", "access-control-request-method": "POST"}
    (answer,) = ask(app, "/step", method="OPTIONS", headers=headers)
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    (foreign,) = ask(app, "/tasks", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers


def test_every_request_is_a_log_line_of_json(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "server.access"):
        ask(create_app(Settings(rate_limit="off")), "/tasks", "/nowhere", headers={"x-request-id": "r1"})
    lines = [json.loads(record.message) for record in caplog.records if record.name == "server.access"]
    assert [(x["path"], x["status"], x["request_id"], x["client"]) for x in lines] == [
        ("/tasks", 200, "r1", "1.2.3.4"),
        ("/nowhere", 404, "r1", "1.2.3.4"),
    ]
    assert all(x["ms"] >= 0 for x in lines)


def test_a_body_that_is_cut_off_is_logged_as_the_clients_leaving(caplog: pytest.LogCaptureFixture):
    """Nobody hears the answer; 400 in the log would say that a client sent bad JSON."""
    app = create_app(Settings(rate_limit="off"))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"70")]
    scope = {"type": "http", "method": "POST", "path": "/step", "headers": headers, "query_string": b"", "state": {}}

    def post(*messages: dict[str, Any]) -> int:
        coming = iter(messages)

        async def receive() -> dict[str, Any]:
            return next(coming)

        async def send(message: dict[str, Any]) -> None:
            pass

        caplog.clear()
        with caplog.at_level(logging.INFO, "server.access"):
            asyncio.run(app(scope.copy(), receive, send))  # type: ignore[arg-type]
        return json.loads(caplog.messages[-1])["status"]

    begun = {"type": "http.request", "body": b'{"session_id": ', "more_body": True}
    assert post(begun, {"type": "http.disconnect"}) == 499
    assert post({"type": "http.disconnect"}) == 499
    assert post(begun, {"type": "http.request", "body": b"}"}, {"type": "http.disconnect"}) == 400


def test_a_connection_is_kept_longer_than_clients_keep_it(monkeypatch: pytest.MonkeyPatch):
    """Where both wait equally long the server may close a connection on which a request is under way."""
    started: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda *_, **options: started.update(options))
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert main([]) == 0
    assert started["timeout_keep_alive"] > (httpx.Limits().keepalive_expiry or 0) >= 5


@pytest.mark.parametrize(
    "bad", [{"rate_limit": "fast"}, {"rate_limit": "0/second"}, {"port": 70000}, {"workers": 0}, {"log_level": "loud"}]
)
def test_settings_that_cannot_be_used_are_refused(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        Settings(**bad)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PORT", "1234")
    monkeypatch.setenv("CORS_ORIGINS", "https://a.org, https://b.org")
    monkeypatch.setenv("RATE_LIMIT", "7")
    monkeypatch.setenv("REDIS_URL", "")
    settings = Settings()
    assert (settings.port, settings.rate_limit, settings.redis_url) == (1234, "7/second", None)
    assert settings.cors_origins == ("https://a.org", "https://b.org")


def test_the_command_names_a_bad_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SESSION_CAPACITY", "none")
    assert main([]) == 2
    assert "SESSION_CAPACITY" in capsys.readouterr().err


def test_several_workers_without_redis_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("WORKERS", "2")
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert main([]) == 2
    assert "REDIS_URL" in capsys.readouterr().err
