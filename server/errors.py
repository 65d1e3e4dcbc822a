"""From exceptions to answers: one sentence, or one entry a field, and the status that HTTP means by it."""

from __future__ import annotations

import math
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError

from server.bad_input import BadInput
from server.schemas import Problem
from server.service import StepConflict
from server.sessions import SessionNotFound

MEANINGS = {
    400: "the body is no JSON",
    404: "unknown or expired session",
    409: "the episode is over, or another step was applied at the same time",
    413: "the body is too large",
    422: "a field is missing, unknown or out of range",
    429: "too many requests; see Retry-After",
    503: "the session store cannot be reached, or the server is still warming up",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses, and of those that any request may get."""
    every = sorted({*statuses, 429})
    return {status: {"model": Problem, "description": MEANINGS[status]} for status in every}


def problem(status: int, detail: Any, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer with ``detail``."""
    return Response(orjson.dumps({"detail": detail}), status, headers, "application/json")


def short(value: Any, depth: int = 3) -> Any:
    """What was given, fit for an error message: JSON-ready, finite, and not longer than a line."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if abs(value) < 2**63 else "an integer of more than 63 bits"
    if isinstance(value, dict) and depth and len(value) <= 8:
        return {str(key)[:60]: short(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth and len(value) <= 8:
        return [short(item, depth - 1) for item in value]
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)} entries"
    text = str(value)
    return (text if len(text) <= 80 else text[:77] + "...").encode("utf-8", "replace").decode()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = []
    status = 422
    for entry in error.errors():
        if entry["type"] == "json_invalid":
            status = 400
        where = ".".join(str(part)[:60] for part in entry["loc"])
        detail = {"field": short(where), "message": entry["msg"], "loc": [short(part) for part in entry["loc"]]}
        if "input" in entry and entry["type"] != "missing":
            detail["given"] = short(entry["input"])
        details.append(detail)
    return problem(status, details[:20])


async def _not_found(request: Request, error: Exception) -> Response:
    return problem(404, str(error))


async def _conflict(request: Request, error: Exception) -> Response:
    return problem(409, str(error))


async def _bad_value(request: Request, error: Exception) -> Response:
    return problem(422, str(error))


async def _store_away(request: Request, error: Exception) -> Response:
    return problem(503, f"the session store cannot be reached: {type(error).__name__}", {"retry-after": "1"})


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(SessionNotFound, _not_found)
    app.add_exception_handler(StepConflict, _conflict)
    app.add_exception_handler(BadInput, _bad_value)
    app.add_exception_handler(RedisError, _store_away)
