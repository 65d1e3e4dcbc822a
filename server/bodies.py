"""Reading a request's body: bounded, off the event loop where it is large, one large one at a time."""

from __future__ import annotations

import asyncio
import email.message
import json
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from server.bounds import SMALL_BODY, TooMuch, read_json

TURN_S = 60.0  # how long a large request waits for those before it


def is_json(content_type: str | None) -> bool:
    """Whether a Content-Type says JSON."""
    if not content_type:
        return False
    message = email.message.Message()
    message["content-type"] = content_type
    kind, _, subtype = message.get_content_type().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def of_field(error: ValidationError, *place: str) -> RequestValidationError:
    """The error of a part of a request, as that of the whole: its fields stand in ``place``."""
    entries = error.errors(include_url=False)
    return RequestValidationError([{**entry, "loc": (*place, *entry["loc"])} for entry in entries])


def parse(model: type[BaseModel], body: bytes) -> BaseModel:
    """The checked request of a JSON body.

    Raises:
        RequestValidationError: it is no JSON (entry ``json_invalid``), or a field is missing, unknown or out of range.
    """
    try:
        return model.model_validate(read_json(body))
    except ValidationError as error:
        raise of_field(error, "body") from error
    except TooMuch as error:
        raise _refused("too_much", str(error)) from error
    except json.JSONDecodeError as error:
        raise _refused("json_invalid", f"JSON decode error: {error.msg}", error.pos) from error
    except UnicodeDecodeError as error:
        raise _refused("json_invalid", "the body is not UTF-8", error.start) from error
    except RecursionError as error:
        raise _refused("json_invalid", "arrays or objects nested a thousand deep") from error
    except ValueError as error:
        raise _refused("json_invalid", "an integer of thousands of digits") from error


def _refused(kind: str, message: str, *position: int) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", *position), "msg": message}])


def body_route() -> type[APIRoute]:
    """A route class whose endpoints take one request model, and the ``Request`` if they want it, and answer a
    ``Response``.

    A body of up to ``SMALL_BODY`` bytes is read on the event loop, which takes a few milliseconds at most. Large ones
    are read in a thread, one after the other from reading to the answer, so that their memory is that of one.
    """
    turn = asyncio.Lock()
    reader = CapacityLimiter(1)

    class BodyRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            if self.body_field is None:
                return super().get_route_handler()
            field, endpoint = self.body_field.field_info, self.endpoint
            model: Any = field.annotation
            required = field.is_required()
            name = self.dependant.request_param_name

            async def handler(request: Request) -> Response:
                body = await request.body()
                more = {} if name is None else {name: request}
                if not body and not required:
                    return await endpoint(model(), **more)
                if not body:
                    raise _refused("missing", "Field required")
                if not is_json(request.headers.get("content-type")):
                    raise _refused("content_type", "send JSON, with content-type: application/json")
                if len(body) <= SMALL_BODY:
                    return await endpoint(parse(model, body), **more)
                try:
                    async with asyncio.timeout(TURN_S):
                        await turn.acquire()
                except TimeoutError:
                    text = "other large requests are being worked on"
                    raise HTTPException(503, text, {"retry-after": "10"}) from None
                try:
                    return await endpoint(await to_thread.run_sync(parse, model, body, limiter=reader), **more)
                finally:
                    turn.release()

            return handler

    return BodyRoute
