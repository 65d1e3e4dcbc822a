"""The environment as tools of the Model Context Protocol, on /mcp: reset, step, state, grade.

The tools call the same ``Service`` as the HTTP endpoints, so an MCP client's session is a session. Transport is
streamable HTTP without MCP sessions: every answer is one JSON body, and any worker may give it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import orjson
from anyio import to_thread
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from pydantic import Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import inferencegym_jax as ig
from server.metrics import Metrics
from server.schema_parts import ActionModel, Config, Seed, SessionId, TaskId
from server.schemas import config_dict
from server.service import Service, StepConflict
from server.sessions import SessionNotFound

PATH = "/mcp"
INSTRUCTIONS = (
    "Control a simulated LLM serving engine. Call reset, then step once for each of the 200 simulated seconds with the"
    " knobs that the task leaves free, then grade. Watch queue_depth, ttft_p50 and gpu_memory_used_gb."
)


def build_tools(service: Service, metrics: Metrics) -> FastMCP:
    """The MCP server with its four tools.

    Args:
        service: episodes of HTTP clients.
        metrics: counts the steps.
    """
    mcp: FastMCP = FastMCP("inferencegym-jax", instructions=INSTRUCTIONS, version=ig.__version__)

    @mcp.tool
    async def reset(
        task_id: TaskId = 1,
        seed: Annotated[Seed | None, Field(description="left out: drawn, and reported in info")] = None,
        config: Config | None = None,
    ) -> dict[str, Any]:
        """Start an episode of 200 seconds. Gives session_id, the first observation, and the free knobs."""
        try:
            return await service.reset(task_id, seed, config_dict(config))
        except ValueError as error:
            raise ToolError(str(error)) from error

    @mcp.tool
    async def step(session_id: SessionId, action: ActionModel) -> dict[str, Any]:
        """Serve one simulated second with these knobs; one left out takes the baseline's value."""
        try:
            response, taken = await service.step(session_id, action.knobs())
        except (SessionNotFound, StepConflict, ValueError) as error:
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
        if scope["method"] != "POST":
            await self._inner(scope, receive, send)
            return
        body = await read_body(receive)
        if not is_request(body):
            await _answer(send, {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Invalid Request"}})
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept"]
        accepting = {**scope, "headers": [*headers, (b"accept", b"application/json, text/event-stream")]}
        await self._inner(accepting, replay(body, receive), send)


def is_request(body: bytes) -> bool:
    """Whether a body is a JSON-RPC request, notification or response."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return (
        isinstance(message, dict)
        and message.get("jsonrpc") == "2.0"
        and bool({"method", "result", "error"} & set(message))
    )


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
