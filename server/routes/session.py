"""POST /reset, POST /step, GET /state, GET /health."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Body, Query, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from redis.exceptions import RedisError

from server.bad_input import BadInput
from server.bodies import of_field
from server.errors import problem, responses
from server.metrics import Metrics
from server.schema_parts import StateModel
from server.schemas import Health, ResetRequest, ResetResponse, StepRequest, StepResponse, config_dict
from server.service import Service

JSON = "application/json"
SESSION = "$response.body#/session_id"
LINKS = {  # what can be asked of the session that a reset answers
    "step": {"operationId": "step", "requestBody": {"session_id": SESSION, "action": {}}},
    "state": {"operationId": "state", "parameters": {"session_id": SESSION}},
    "grader": {"operationId": "grader", "requestBody": {"session_id": SESSION}},
}


def build(service: Service, metrics: Metrics, ws_sessions: Callable[[], int], route: type[APIRoute]) -> APIRouter:
    """The router of the session endpoints.

    Args:
        service: episodes of HTTP clients.
        metrics: counts the steps.
        ws_sessions: how many WebSocket sessions are open.
        route: how bodies are read, see ``bodies.body_route``.
    """
    router = APIRouter(tags=["Environment Control"], route_class=route)
    started = time.monotonic()

    @router.post(
        "/reset",
        response_model=ResetResponse,
        operation_id="reset",
        responses=responses(400, 408, 413, 422, 500, 503) | {200: {"links": LINKS}},
    )
    async def reset(request: Annotated[ResetRequest, Body(default_factory=lambda: ResetRequest())]) -> Response:
        """Start an episode: a new session."""
        response = await service.reset(request.task_id, request.seed, config_dict(request.config), request.episode_id)
        return Response(orjson.dumps(response), media_type=JSON)

    @router.post(
        "/step",
        operation_id="step",
        response_model=StepResponse,
        responses=responses(400, 404, 408, 409, 413, 422, 500, 503),
    )
    async def step(request: StepRequest) -> Response:
        """Serve one simulated second with these knobs; of a fleet a decision, five seconds."""
        try:
            response, taken = await service.step(request.session_id, request.action, request.step_id)
        except ValidationError as error:
            raise of_field(error, "body", "action") from error
        except ValueError as error:
            raise BadInput(str(error)) from error
        if taken:
            metrics.http_steps.inc()
        return Response(response, media_type=JSON)

    @router.get(
        "/state",
        operation_id="state",
        response_model=StateModel,
        tags=["State Management"],
        responses=responses(404, 422, 503),
    )
    async def state(
        session_id: Annotated[str, Query(min_length=1, max_length=64, description="from POST /reset")],
    ) -> Response:
        """Where a session stands."""
        return Response(orjson.dumps(await service.state(session_id)), media_type=JSON)

    @router.get("/health", response_model=Health, tags=["Health"], responses=responses(503))
    async def health() -> Response:
        """Is the server up; "healthy" only after the first program is compiled."""
        try:
            sessions = await service.store.count()
        except RedisError as error:
            return problem(503, f"the session store cannot be reached: {type(error).__name__}", {"retry-after": "1"})
        response: dict[str, Any] = {
            "status": "healthy",
            "ok": True,
            "active_sessions": sessions + ws_sessions(),
            "uptime_s": round(time.monotonic() - started, 3),
        }
        return Response(orjson.dumps(response), media_type=JSON)

    @router.get("/healthz", tags=["Health"], responses=responses())
    async def healthz() -> dict[str, str]:
        """Is the process alive."""
        return {"status": "ok"}

    return router
