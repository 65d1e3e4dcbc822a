"""POST /grader and POST /rollout: work that may take a while runs in a worker thread each, not on the event loop; of a
rollout one block, then it is the next one's turn."""

from __future__ import annotations

from typing import Any

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from inferencegym_jax.fleet.making import is_anywhere
from server.bad_input import BadInput, sentence
from server.errors import problem, responses
from server.found import Found
from server.kinds import Kind, kind_of
from server.metrics import Metrics
from server.rollouts import Rollouts
from server.schemas import GraderRequest, GraderResponse, RolloutRequest, RolloutResponse, config_dict
from server.service import Service
from server.streams import PieceResponse, Streams
from server.trajectories import ARROW, JSON, STEPS_AT_ONCE, arrow_pieces, json_pieces

MOST_ROLLOUTS = 32  # that take turns


def build(service: Service, rollouts: Rollouts, metrics: Metrics, route: type[APIRoute]) -> APIRouter:
    """The router of grader and rollout; ``route``: how bodies are read, see ``bodies.body_route``."""
    router = APIRouter(tags=["Scoring"], route_class=route)
    grading, one_at_a_time = CapacityLimiter(1), CapacityLimiter(1)
    streams = Streams()
    playing: set[Request] = set()

    async def played(request: RolloutRequest, http: Request) -> Found | None:
        """What a rollout comes to; None: the client left."""
        if len(playing) >= MOST_ROLLOUTS:
            raise HTTPException(503, f"{MOST_ROLLOUTS} other rollouts take turns", {"retry-after": "10"})
        playing.add(http)
        try:
            blocks = rollouts.play(request)
            while not await http.is_disconnected():
                result = await to_thread.run_sync(next, blocks, limiter=one_at_a_time)
                if result is not None:
                    return result
        finally:
            playing.discard(http)
        return None

    def checked(kind: Kind, i: int, action: dict[str, Any]) -> dict[str, Any]:
        try:
            return kind.action.model_validate(action).knobs()
        except ValidationError as error:
            raise BadInput(f"episode_log[{i}].action: {sentence(error.errors(include_url=False))}") from error

    def from_log(request: GraderRequest) -> dict[str, Any]:
        log = [entry.model_dump() for entry in request.episode_log or []]
        assert request.task_id is not None
        task, kind = request.task_id, kind_of(request.task_id)
        if request.seed is not None and log:
            actions = [checked(kind, i, entry["action"]) for i, entry in enumerate(log)]
            return service.verify(task, request.seed, config_dict(request.config), actions, log)
        if is_anywhere(task):
            raise BadInput("seed: missing; a condition of fleet-anywhere is drawn from it")
        result = service.programs.of(task).grade(log)
        note = " Not verified: without the seed the episode cannot be regenerated." if log else ""
        return result | {"verified": False, "feedback": result["feedback"] + note}

    def grade(request: GraderRequest) -> dict[str, Any]:
        try:
            if request.actions is None:
                return from_log(request)
            assert request.task_id is not None and request.seed is not None
            kind = kind_of(request.task_id)
            actions = [kind.knobs_in(action) for action in request.actions]
            log = None if request.episode_log is None else [entry.model_dump() for entry in request.episode_log]
            return service.verify(request.task_id, request.seed, config_dict(request.config), actions, log)
        except ValidationError as error:
            raise BadInput(f"actions: {sentence(error.errors(include_url=False))}") from error
        except (ValueError, TypeError) as error:
            raise BadInput(str(error)) from error

    @router.post(
        "/grader",
        operation_id="grader",
        response_model=GraderResponse,
        responses=responses(400, 404, 408, 413, 422, 500, 503),
    )
    async def grader(request: GraderRequest) -> Response:
        """Score an episode: a session's, a log's, or that of task, seed, config and actions, simulated again."""
        if request.session_id is not None:
            session, actions = await service.session_episode(request.session_id)
            result = await to_thread.run_sync(
                service.verify, session.task, session.seed, session.config, actions, limiter=grading
            )
        else:
            result = await to_thread.run_sync(grade, request, limiter=grading)
        return Response(orjson.dumps({"first_difference": None} | result), media_type="application/json")

    @router.post(
        "/rollout",
        response_model=RolloutResponse,
        responses=responses(400, 408, 413, 422, 500, 503)
        | {200: {"content": {ARROW: {}}, "description": "scores, and steps where asked for; arrow: an IPC stream"}},
    )
    async def rollout(request: RolloutRequest, http: Request) -> Response:
        """Whole episodes, vmapped: a built-in policy or given actions on many seeds."""
        rollouts.check(request)
        result = await played(request, http)
        if result is None:
            http.scope["client_left"] = True  # nobody hears the answer; log and counters say so
            return problem(503, "the client left")
        metrics.rollout_steps.inc(result.steps)
        if not request.trajectories:
            return Response(orjson.dumps(result.answer(trajectories=None)), media_type=JSON)
        pieces = arrow_pieces(result) if request.format == "arrow" else json_pieces(result)
        media_type = ARROW if request.format == "arrow" else JSON
        if result.steps <= STEPS_AT_ONCE:
            body = await to_thread.run_sync(b"".join, pieces, limiter=one_at_a_time)
            return Response(body, media_type=media_type)
        return PieceResponse(pieces, media_type, streams, one_at_a_time)

    return router
