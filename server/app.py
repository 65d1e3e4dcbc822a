"""The application: one factory, no work at import; what most ask for is compiled before the first request is answered,
the rest right after."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from openenv.core.env_server.http_server import HTTPEnvServer
from openenv.core.env_server.types import ConcurrencyConfig
from starlette.middleware.cors import CORSMiddleware

import inferencegym_jax as ig
from server import catalogue as about
from server import errors
from server.bodies import body_route
from server.compiler import Compiler, CompilerFailed
from server.mcp_tools import PATH as MCP_PATH
from server.mcp_tools import MCPEndpoint, as_route, build_tools
from server.memory import let_go
from server.messages import MessageCheck
from server.metrics import Metrics
from server.middleware import BodyLimit, Failures, Head, Observe, RateLimit, SecurityHeaders
from server.openenv_environment import DESCRIPTION, ServingEnvironment
from server.plans import planned_here
from server.programs import Programs, own_log
from server.rollouts import Rollouts
from server.routes import catalogue, scoring, session
from server.schema_parts import ObservationModel, OpenEnvAction, StateModel
from server.service import Service
from server.sessions import EmbeddedStore, SessionStore
from server.settings import Settings

log = logging.getLogger("server")
API_VERSION = "1.0.0"
STATIC = Path(__file__).resolve().parent / "static"
REPLACED = {"/health", "/reset", "/step", "/state"}  # OpenEnv's own are stateless; ours serve both contracts
EMPTY = "Task API"  # the tag of OpenEnv's routes about splits of tasks; all but the list always answer 501


def replaced(route: Any) -> bool:
    """Whether a route of OpenEnv gives way to ours, or can never answer; its WebSocket on /mcp stays."""
    path = getattr(route, "path", None)
    if not isinstance(route, APIRoute):
        return False
    return path in REPLACED or path == MCP_PATH or (EMPTY in route.tags and path != "/list_environments")


class RevalidatedFiles(StaticFiles):
    """The page's files, asked about again on every visit, so that a new version of the server brings its own page."""

    def file_response(self, *args: Any, **named: Any) -> Response:
        """The file, or 304 where the browser holds it."""
        response = super().file_response(*args, **named)
        response.headers["cache-control"] = "no-cache"
        if str(args[0]).endswith(".gz"):
            response.headers["content-encoding"] = "gzip"
        return response


def make_store(settings: Settings) -> SessionStore:
    """The session store of the settings: Redis where REDIS_URL is set, in process otherwise."""
    if settings.redis_url is None:
        return EmbeddedStore(settings.session_capacity, settings.session_idle_s)
    from server.redis_store import RedisStore

    return RedisStore(settings.redis_url, settings.session_idle_s)


def told(compiling: asyncio.Task[None]) -> None:
    """Say in the log why the start's compiling ended early; a task's first reset tries again."""
    if not compiling.cancelled() and (error := compiling.exception()) is not None:
        log.error("not everything was compiled", exc_info=error)


def create_app(settings: Settings | None = None, compiler: Compiler | None = None) -> FastAPI:
    """The FastAPI application.

    Args:
        settings: default: from the environment.
        compiler: the child process that compiles, ended with the application; None: this process compiles itself.

    Raises:
        FileNotFoundError, TableError, TraceError: TABLE or TRACE cannot be used.
    """
    settings = Settings() if settings is None else settings
    for path in settings.tasks_from:
        ig.register_file(path)
    plan = planned_here if compiler is None else compiler.plan
    programs, metrics, store = Programs(settings.table, own_log(settings), plan), Metrics(), make_store(settings)
    service, rollouts = Service(programs, store), Rollouts(programs, settings)
    mcp = MCPEndpoint(build_tools(service, metrics))
    scored: dict[int, dict[str, Any]] = {}
    openenv = HTTPEnvServer(
        functools.partial(ServingEnvironment, programs, metrics.ws_steps.inc),
        OpenEnvAction,
        ObservationModel,
        concurrency_config=ConcurrencyConfig(
            max_concurrent_envs=settings.ws_sessions, session_timeout=settings.session_idle_s
        ),
        env_name="inferencegym",
        state_cls=StateModel,
    )

    async def compile_rest(rest: list[int]) -> None:
        """What is left of the start, while requests are answered; who asks for one of these tasks waits for it."""
        start = time.perf_counter()
        for task in rest:
            await programs.ready(task)
        await to_thread.run_sync(about.baseline, programs, scored)
        await to_thread.run_sync(let_go)
        log.info("compiled in %.1f s more", time.perf_counter() - start)
        if settings.warm_rollouts:
            await to_thread.run_sync(rollouts.warm_up)
            if compiler is not None:  # which has what makes one, and then makes the others in a moment
                await to_thread.run_sync(programs.plan_all)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        rest = await to_thread.run_sync(programs.warm_up)
        gc.freeze()  # what lives for good need not be looked through at every collection
        await store.ping()
        openenv._start_reaper()  # FastAPI's lifespan switches OpenEnv's own start-up handlers off
        async with mcp.lifespan():
            compiling = asyncio.create_task(compile_rest(rest))
            compiling.add_done_callback(told)
            yield
        compiling.cancel()
        if compiler is not None:
            compiler.end()
        with contextlib.suppress(asyncio.CancelledError, CompilerFailed):
            await compiling
        openenv._stop_reaper()
        await store.close()

    app = FastAPI(
        title="InferenceGym JAX",
        version=API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        license_info={"name": "Apache-2.0"},
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere; ours is routes/catalogue's
        redoc_url=None,
    )
    openenv.register_routes(app)
    app.router.routes[:] = [route for route in app.router.routes if not replaced(route)]
    app.router.routes.append(as_route(mcp))

    def ws_sessions() -> int:
        return openenv.active_sessions

    route = body_route()
    app.include_router(session.build(service, metrics, ws_sessions, route))
    app.include_router(scoring.build(service, rollouts, metrics, route))
    app.include_router(catalogue.build(programs, settings, metrics, scored, store.count, ws_sessions))
    if STATIC.is_dir():
        app.mount("/static", RevalidatedFiles(directory=STATIC), name="static")
    errors.install(app)

    # the last one added is the outermost
    app.add_middleware(MessageCheck)
    app.add_middleware(Head)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.rate_limit != "off":
        app.add_middleware(RateLimit, limit=settings.rate_limit)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Failures)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origins),
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
    app.add_middleware(Observe, metrics=metrics)
    return app


def __getattr__(name: str) -> FastAPI:
    """``app``, for ``uvicorn server.app:app``: made when it is first asked for, as ``python -m server`` makes it."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from server.__main__ import application

    return globals().setdefault("app", application())
