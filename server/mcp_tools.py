"""The environment as tools of the Model Context Protocol, on /mcp: reset, step, state, grade.

The tools call the same ``Service`` as the HTTP endpoints, so an MCP client's session is a session. Transport is
streamable HTTP without MCP sessions: every answer is one JSON body, and any worker may give it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import orjson
from anyio import to_thread
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError, ValidationError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from pydantic import Field
from pydantic import ValidationError as PydanticError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import inferencegym_jax as ig
from server.bad_input import sentence
from server.bounds import excess
from server.errors import problem
from server.metrics import Metrics
from server.schema_parts import AnyAction, Config, Seed, SessionId, TaskId
from server.schemas import config_dict
from server.service import NotFinite, Service, StepConflict
from server.sessions import SessionNotFound

PATH = "/mcp"
INSTRUCTIONS = (
    "Control a simulated LLM serving engine, or a fleet of them. Call reset, then step until done with the knobs that"
    " the task leaves free, then grade. Watch queue_depth, ttft_p50 and gpu_memory_used_gb; of a fleet loads and queue."
)

FIRST = "nothing seen yet: no second has been served, so every number of this observation is 0 until the first step"


class PlainErrors(Middleware):
    """Says of wrong arguments what is wrong, in a sentence: no links, no copy of what was sent."""

    async def on_call_tool(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Call the tool; its arguments' errors become one short one."""
        try:
            return await call_next(context)
        except (ValidationError, PydanticError) as error:
            cause = error if isinstance(error, PydanticError) else error.__cause__
            if not isinstance(cause, PydanticError):
                raise
            raise ToolError(sentence(cause.errors(include_url=False))) from None


def build_tools(service: Service, metrics: Metrics) -> FastMCP:
    """The MCP server with its four tools.

    Args:
        service: episodes of HTTP clients.
        metrics: counts the steps.
    """
    mcp: FastMCP = FastMCP(
        "inferencegym-jax", instructions=INSTRUCTIONS, version=ig.__version__, middleware=[PlainErrors()]
    )
    logging.getLogger("fastmcp").setLevel(logging.ERROR)  # it would log a bad call's arguments, all of them

    @mcp.tool
    async def reset(
        task_id: TaskId = 1,
        seed: Annotated[Seed | None, Field(description="left out: drawn, and reported in info")] = None,
        config: Config | None = None,
    ) -> dict[str, Any]:
        """Start an episode. Gives session_id, the first observation, and the free knobs."""
        try:
            return await service.reset(task_id, seed, config_dict(config)) | {"note": FIRST}
        except ValueError as error:
            raise ToolError(str(error)) from error

    @mcp.tool
    async def step(session_id: SessionId, action: AnyAction) -> dict[str, Any]:
        """Serve one simulated second with these knobs (of a fleet five seconds); one left out takes its default."""
        try:
            response, taken = await service.step(session_id, action)
        except PydanticError as error:
            raise ToolError(sentence(error.errors(include_url=False))) from None
        except (SessionNotFound, StepConflict, NotFinite, ValueError) as error:
            raise ToolError(str(error)) from error
        if taken:
            metrics.http_steps.inc()
        return orjson.loads(response)

    @mcp.tool
    async def state(session_id: SessionId) -> dict[str, Any]:
        """Where an episode stands: steps, cumulative reward, done, phase of the traffic."""
        try:
            return await service.state(session_id)
        except SessionNotFound as error:
            raise ToolError(str(error)) from error

    @mcp.tool
    async def grade(session_id: SessionId) -> dict[str, Any]:
        """Score an episode so far, from 0 to 1, by simulating its actions again."""
        try:
            session, actions = await service.session_episode(session_id)
        except SessionNotFound as error:
            raise ToolError(str(error)) from error
        return await to_thread.run_sync(service.verify, session.task, session.seed, session.config, actions)

    return mcp


class MCPEndpoint:
    """The ASGI application on /mcp.

    A POST whose body is no JSON-RPC request (OpenEnv's validator sends ``{}``) is answered 200 with a JSON-RPC error;
    everything else goes to the MCP server, with the Accept header that it insists on.
    """

    def __init__(self, mcp: FastMCP):
        # any Host: the server runs behind proxies under names that it does not know, and holds nothing private
        self._inner: Any = mcp.http_app(
            path=PATH, json_response=True, stateless_http=True, host_origin_protection=False
        )

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """What must be open while requests are answered."""
        return self._inner.lifespan(self._inner)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] != "POST":  # without MCP sessions there is nothing to listen to or to end
            await problem(405, "Method Not Allowed: MCP is spoken with POST", {"allow": "POST"})(scope, receive, send)
            return
        body = await read_body(receive)
        wrong = complaint(body)
        if wrong is not None:
            error = {"code": -32600, "message": f"Invalid Request: {wrong}"}
            await _answer(send, {"jsonrpc": "2.0", "id": None, "error": error})
            return
        replaced = (b"accept", b"content-type")
        headers = [(name, value) for name, value in scope["headers"] if name not in replaced]
        headers += [(b"accept", b"application/json, text/event-stream"), (b"content-type", b"application/json")]
        await self._inner({**scope, "headers": headers}, replay(body, receive), send)


def complaint(body: bytes) -> str | None:
    """Why a body is no JSON-RPC request, notification or response that can be passed on, or None."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "the body is no JSON"
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        return 'must be an object with "jsonrpc": "2.0"; batches are not taken'
    if not {"method", "result", "error"} & set(message):
        return "method is missing"
    if "id" in message and (isinstance(message["id"], bool) or not isinstance(message["id"], str | int)):
        return "id must be a text or a whole number"
    if "method" in message and not isinstance(message["method"], str):
        return "method must be a text"
    if not isinstance(message.get("params", {}), dict):
        return "params must be an object"
    return excess(message)


async def read_body(receive: Receive) -> bytes:
    """The whole body; ``BodyLimit`` has bounded it."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Callable[[], Any]:
    """A receive that gives the body again, then whatever comes."""
    is_sent = False

    async def again() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, value: Any) -> None:
    body = orjson.dumps(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def as_route(endpoint: MCPEndpoint) -> Any:
    """The route of the endpoint, to be put before OpenEnv's own POST /mcp."""
    from starlette.routing import Route

    application: ASGIApp = endpoint
    return Route(PATH, application, name="mcp", include_in_schema=False)
