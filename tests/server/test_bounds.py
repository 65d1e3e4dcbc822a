"""What one request may hold: bodies, messages, errors, answers in pieces."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from anyio import CapacityLimiter
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError

from server import streams
from server.bad_input import MOST_TOLD, sentence, short, told
from server.bodies import body_route, is_json, parse
from server.bounds import LOG_BODY, MOST_KEYS, SMALL_BODY, TooMuch, body_limit, excess, read_json
from server.messages import complaint, shortened
from server.schemas import ResetRequest, RolloutRequest
from server.streams import PieceResponse, Streams


def test_a_body_is_read_as_json_does():
    for value in ({"a": [1, 2.5, None, True, "é😀"]}, [], "x", {"a": {"b": {}}}):
        assert read_json(json.dumps(value).encode()) == value
        assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert read_json(b'{"a": 1, "a": 2}') == {"a": 2}
    assert read_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" + b"{}," * 200_000 + b"{}]", "objects and arrays"),
        (b"[" + b"1," * 700_000 + b"1]", "values"),
        (json.dumps(dict.fromkeys(map(str, range(MOST_KEYS + 1)))).encode(), f"at most {MOST_KEYS}"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
    ],
)
def test_a_body_that_holds_too_much_is_refused(body: bytes, words: str):
    with pytest.raises(TooMuch, match=words):
        read_json(body)


@pytest.mark.parametrize("value", [{"a": [1, {"b": [2]}]}, {}, [], 7, {"a": {"b": {"c": [1, 2, 3]}}}])
def test_a_message_of_the_usual_size_is_not_too_much(value: Any):
    assert excess(value) is None


def test_values_and_levels_of_a_message_are_counted():
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    assert excess(deep) is None and "levels" in str(excess([deep]))
    assert excess(list(range(299))) is None and "values" in str(excess(list(range(300))))
    assert "values" in str(excess({"a": [[1] * 100] * 3}))


def test_each_path_has_its_limit():
    assert body_limit("/rollout", 4_000_000) == 4_000_000
    assert body_limit("/step", 4_000_000) == body_limit("/nowhere", 4_000_000) == SMALL_BODY
    assert body_limit("/grader", 9_000_000) == LOG_BODY and body_limit("/grader", 2000) == 2000


def test_what_is_told_of_many_errors_is_short():
    errors = [{"type": "x", "loc": ("body", "k" * 500, i), "msg": "no", "input": "v" * 10**6} for i in range(1000)]
    details = told(errors)
    assert len(details) == MOST_TOLD + 1 and "992 more" in details[-1]["message"]
    assert len(orjson.dumps(details)) < 4000 and len(sentence(errors)) < 2000
    assert details[0]["field"] == f"body.{'k' * 40}.0"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("\ud800", "?"),
        (float("nan"), "nan"),
        (10**30, "an integer of more than 63 bits"),
        (list(range(9)), "an array of 9 entries"),
        ({"\ud800": [1]}, {"?": [1]}),
        ([[[[1]]]], [[["an array of 1 entries"]]]),
        ("x" * 1000, "x" * 77 + "..."),
        (b"\xff" * 200, None),
    ],
)
def test_what_was_given_is_shown_within_a_line(value: Any, shown: Any):
    found = short(value)
    assert found == shown or (shown is None and len(found) < 400)
    orjson.dumps(found)


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("application/problem+json", True),
        ("text/json", False),
        ("", False),
        (None, False),
        ("application/x-www-form-urlencoded", False),
    ],
)
def test_json_is_known_by_its_type(kind: str | None, good: bool):
    assert is_json(kind) == good


def test_a_list_is_checked_as_far_as_its_first_bad_entry():
    body = json.dumps({"task_id": 1, "policy": "random", "seeds": [-1] * 5000}).encode()
    with pytest.raises(RequestValidationError) as caught:
        parse(RolloutRequest, body)
    assert [entry["loc"] for entry in caught.value.errors()] == [("body", "seeds", 0)]
    actions = json.dumps({"task_id": 1, "seeds": [1], "actions": [[{"batch_size": 0}] * 200] * 200}).encode()
    with pytest.raises(RequestValidationError) as caught:
        parse(RolloutRequest, actions)
    assert len(caught.value.errors()) == 1


@pytest.mark.parametrize("size", [100, 2 * SMALL_BODY])
def test_a_large_body_is_read_off_the_event_loop(size: int):
    app, threads = FastAPI(), []

    async def endpoint(request: ResetRequest) -> Response:
        threads.append(threading.current_thread())
        return Response(orjson.dumps({"task": request.task_id}), media_type="application/json")

    app.router.route_class = body_route()
    app.post("/reset")(endpoint)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            body, kind = b'{"task_id": 2}' + b" " * size, {"content-type": "application/json"}
            return list(await asyncio.gather(*(http.post("/reset", content=body, headers=kind) for _ in range(5))))

    assert [answer.json() for answer in asyncio.run(ask())] == [{"task": 2}] * 5
    assert set(threads) == {threading.main_thread()}  # endpoints themselves stay on the loop


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 100_000, "characters"),
        ('{"type": "step", "data": {"a": "\\ud800"}}', "surrogate"),
        ("[" * 5000, "deep"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("[1]", "object"),
        ('{"a": [' + "1," * 400 + "1]}", "values"),
    ],
)
def test_a_websocket_message_that_openenv_would_not_survive_is_refused(text: str, words: str):
    assert words in str(complaint({"type": "websocket.receive", "text": text}))


def test_an_error_over_the_websocket_is_a_sentence():
    errors = [
        {"type": "extra_forbidden", "loc": [f"k{i}"], "msg": "no", "input": i, "url": "https://errors.pydantic.dev/x"}
        for i in range(300)
    ]
    data = {"message": "Invalid message", "code": "VALIDATION_ERROR", "errors": errors}
    told = json.loads(shortened(json.dumps({"type": "error", "data": data})))["data"]
    assert told["code"] == "VALIDATION_ERROR" and told["message"].startswith("Invalid message: k0 = 0: no")
    assert len(json.dumps(told)) < 1500 and "pydantic" not in json.dumps(told)


def pieces(count: int) -> Iterator[bytes]:
    for i in range(count):
        yield b"%d," % i


def respond(response: PieceResponse, take: Any) -> list[dict[str, Any]]:
    """What a response sends; ``take`` is awaited at each message."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(3600)
            return {}

        async def send(message: Any) -> None:
            await take(message)
            sent.append(message)

        await response({"type": "http"}, receive, send)

    asyncio.run(run())
    return sent


async def at_once(message: Any) -> None:
    pass


def test_pieces_are_made_one_after_the_other_and_the_place_is_given_back():
    places = Streams(1)
    for _ in range(2):
        sent = respond(PieceResponse(pieces(5), "text/plain", places, CapacityLimiter(1)), at_once)
        assert b"".join(message.get("body", b"") for message in sent) == b"0,1,2,3,4,"
        assert sent[-1].get("more_body", False) is False
        assert b"content-length" not in dict(sent[0]["headers"])


def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "PATIENCE_S", 0.05)
    places, made = Streams(1), pieces(10**9)

    async def never(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    with pytest.raises(TimeoutError):
        respond(PieceResponse(made, "text/plain", places, CapacityLimiter(1)), never)
    assert next(made, None) is None  # closed
    assert not places.places.locked()


def test_without_a_place_in_time_the_answer_is_503(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "WAIT_S", 0.01)
    sent = respond(PieceResponse(pieces(1), "text/plain", Streams(0), CapacityLimiter(1)), at_once)
    assert sent[0]["status"] == 503 and (b"retry-after", b"30") in sent[0]["headers"]
