"""POST /grader and POST /rollout: work that may take a while runs in one worker thread, not on the event loop."""

from __future__ import annotations

from typing import Any

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Response
from pydantic import ValidationError

import inferencegym_jax as ig
from server.bad_input import BadInput
from server.errors import responses, short
from server.metrics import Metrics
from server.rollouts import ARROW, Rollouts
from server.schema_parts import ActionModel
from server.schemas import GraderRequest, GraderResponse, RolloutRequest, RolloutResponse, config_dict
from server.service import Service


def build(service: Service, rollouts: Rollouts, metrics: Metrics) -> APIRouter:
    """The router of grader and rollout."""
    router = APIRouter(tags=["Scoring"])
    one_at_a_time = CapacityLimiter(1)

    def checked(i: int, action: dict[str, Any]) -> dict[str, Any]:
        try:
            return ActionModel.model_validate(action).knobs()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            text = f"episode_log[{i}].action.{where} = {short(first['input'])}: {first['msg']}"
            raise BadInput(text) from error

    def from_log(request: GraderRequest) -> dict[str, Any]:
        log = [entry.model_dump() for entry in request.episode_log or []]
        assert request.task_id is not None
        spec = ig.get_task(request.task_id)
        if request.seed is not None and log:
            actions = [checked(i, entry["action"]) for i, entry in enumerate(log)]
            return service.verify(spec.id, request.seed, config_dict(request.config), actions, log)
        result = ig.grade(spec.id, log, service.programs.program(spec.id).problem.normalisers)
        note = " Not verified: without the seed the episode cannot be regenerated." if log else ""
        return result | {"verified": False, "feedback": result["feedback"] + note}

    def grade(request: GraderRequest) -> dict[str, Any]:
        try:
            if request.actions is None:
                return from_log(request)
            assert request.task_id is not None and request.seed is not None
            actions = [action.knobs() for action in request.actions]
            log = None if request.episode_log is None else [entry.model_dump() for entry in request.episode_log]
            return service.verify(request.task_id, request.seed, config_dict(request.config), actions, log)
        except (ValueError, TypeError) as error:
            raise BadInput(str(error)) from error

    @router.post("/grader", response_model=GraderResponse, responses=responses(400, 404, 413, 422, 503))
    async def grader(request: GraderRequest) -> Response:
        """Score an episode: a session's, a log's, or that of task, seed, config and actions, simulated again."""
        if request.session_id is not None:
            session, actions = await service.session_episode(request.session_id)
            result = await to_thread.run_sync(
                service.verify, session.task, session.seed, session.config, actions, limiter=one_at_a_time
            )
        else:
            result = await to_thread.run_sync(grade, request, limiter=one_at_a_time)
        return Response(orjson.dumps({"first_difference": None} | result), media_type="application/json")

    @router.post(
        "/rollout",
        response_model=RolloutResponse,
        responses=responses(400, 413, 422)
        | {200: {"content": {ARROW: {}}, "description": "scores, and steps where asked for; arrow: an IPC stream"}},
    )
    async def rollout(request: RolloutRequest) -> Response:
        """Whole episodes, vmapped: a built-in policy or given actions on many seeds."""
        rollouts.check(request)
        body, media_type, steps = await to_thread.run_sync(rollouts.run, request, limiter=one_at_a_time)
        metrics.rollout_steps.inc(steps)
        return Response(body, media_type=media_type)

    return router
