"""From exceptions to answers: one sentence, or one entry a field, and the status that HTTP means by it."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError

from server.bad_input import BadInput, clean, told
from server.schemas import Problem
from server.service import NotFinite, StepConflict
from server.sessions import SessionNotFound

MEANINGS = {
    400: "the body is no JSON",
    404: "unknown or expired session",
    409: "the episode is over, or another step was applied at the same time",
    408: "the body did not arrive in time",
    413: "the body is too large",
    422: "a field is missing, unknown or out of range",
    429: "too many requests; see Retry-After",
    500: "the server failed; its log says why, under the request id",
    503: "the session store cannot be reached, or the server has too much to do; see Retry-After",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses, and of those that any request may get."""
    every = sorted({*statuses, 429})
    return {status: {"model": Problem, "description": MEANINGS[status]} for status in every}


MOST_TEXT = 1000  # characters of a sentence in an answer


def problem(status: int, detail: Any, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer with ``detail``; a text is made one that UTF-8 can carry, and no longer than a paragraph."""
    if isinstance(detail, str):
        detail = clean(detail if len(detail) <= MOST_TEXT else detail[: MOST_TEXT - 3] + "...")
    return Response(orjson.dumps({"detail": detail}), status, headers, "application/json")


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    entries = error.errors()
    return problem(400 if any(entry["type"] == "json_invalid" for entry in entries) else 422, told(entries))


async def _not_found(request: Request, error: Exception) -> Response:
    return problem(404, str(error))


async def _conflict(request: Request, error: Exception) -> Response:
    return problem(409, str(error))


async def _bad_value(request: Request, error: Exception) -> Response:
    return problem(422, str(error))


async def _store_away(request: Request, error: Exception) -> Response:
    return problem(503, f"the session store cannot be reached: {type(error).__name__}", {"retry-after": "1"})


async def _not_finite(request: Request, error: Exception) -> Response:
    return problem(500, str(error))


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(SessionNotFound, _not_found)
    app.add_exception_handler(StepConflict, _conflict)
    app.add_exception_handler(BadInput, _bad_value)
    app.add_exception_handler(RedisError, _store_away)
    app.add_exception_handler(NotFinite, _not_finite)
