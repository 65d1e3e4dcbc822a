"""GET /tasks, /info, /baseline, /metrics, the page at / and the API's at /docs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path
from typing import Any

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server import catalogue, leaderboard
from server.errors import responses
from server.metrics import Metrics
from server.programs import Programs
from server.schemas import Baseline, Info, TaskList
from server.settings import Settings

STATIC = Path(__file__).resolve().parent.parent / "static"
PAGE, API_PAGE = STATIC / "index.html", STATIC / "docs.html"
BASE = "{base}"
FALLBACK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>InferenceGym JAX</title>
<h1>InferenceGym JAX</h1><p>An RL environment for LLM inference control. <a href="docs">The API</a>,
<a href="tasks">its tasks</a>, <a href="baseline">the baseline's scores</a>, <a href="info">everything else</a>.</p>
</html>
"""


def html(path: Path, base: str = "") -> Response:
    """A page of the static folder, asked about again on every visit.

    Args:
        path: of the page.
        base: the server's address, ending in a slash, where the page says ``{base}``: previews of links need whole
            addresses.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else FALLBACK
    return page_response(text.replace(BASE, escape(base, quote=True)))


def page_response(text: str) -> Response:
    """A page as an answer."""
    return Response(text, media_type="text/html; charset=utf-8", headers={"cache-control": "no-cache"})


def build(
    programs: Programs,
    settings: Settings,
    metrics: Metrics,
    scored: dict[int, dict[str, Any]],
    sessions: Callable[[], Awaitable[int]],
    ws_sessions: Callable[[], int],
) -> APIRouter:
    """The router of what only tells.

    Args:
        programs: for its table.
        settings: for the limits.
        metrics: for /metrics.
        scored: scores of the fixed agent so far, by task.
        sessions: how many HTTP sessions live.
        ws_sessions: how many WebSocket sessions are open.
    """
    router = APIRouter()
    one_at_a_time = CapacityLimiter(1)

    @router.get("/tasks", response_model=TaskList, tags=["Catalogue"], responses=responses())
    async def tasks() -> Response:
        """The tasks and the knobs that each leaves to the agent."""
        return Response(orjson.dumps({"tasks": catalogue.tasks(programs)}), media_type="application/json")

    @router.get("/info", response_model=Info, tags=["Catalogue"], responses=responses())
    async def info() -> Response:
        """Spaces as JSON schema, reward weights, policies, provenance of the latency table, limits."""
        return Response(orjson.dumps(catalogue.info(programs, settings)), media_type="application/json")

    @router.get("/baseline", response_model=Baseline, tags=["Catalogue"], responses=responses())
    async def baseline_scores() -> Response:
        """Scores of the fixed agent on every engine's task, computed when the server started."""
        scores = await to_thread.run_sync(catalogue.baseline, programs, scored, limiter=one_at_a_time)
        return Response(orjson.dumps(scores), media_type="application/json")

    @router.get("/metrics", tags=["Health"], response_class=Response, responses=responses(503))
    async def prometheus() -> Response:
        """Counters in Prometheus' text format."""
        metrics.sessions.labels("http").set(await sessions())
        metrics.sessions.labels("websocket").set(ws_sessions())
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page."""
        return html(PAGE, (settings.public_url or str(request.base_url)).rstrip("/") + "/")

    @router.get("/leaderboard", include_in_schema=False)
    async def leaderboard_page() -> Response:
        """The leaderboard, to read."""
        if not leaderboard.SOURCE.is_file():
            raise HTTPException(404, "this server has no leaderboard")
        return page_response(leaderboard.page())

    @router.get("/docs", include_in_schema=False)
    async def api_page() -> Response:
        """The API, to read and to try out; it loads nothing from elsewhere."""
        return html(API_PAGE)

    return router
