"""``python -m server``: start the server. Settings come from environment variables; --help lists them."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from multiprocessing.process import BaseProcess

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

import inferencegym_jax as ig
from inferencegym_jax.traffic.log_source import regular_file
from server.app import create_app
from server.bounds import MESSAGE
from server.compiler import Compiler
from server.connections import BoundedProtocol, BoundedWebSocket
from server.memory import bound_programs, spare_memory
from server.programs import own_log
from server.settings import Settings

# Longer than clients and proxies keep a connection (httpx 5 s, aiohttp 15, load balancers 60): whoever sends requests
# must be the one that closes, or a request that is under way to a closing connection is lost. uvicorn's own is 5.
KEEP_ALIVE_S = 75
# How long the parent waits for a worker's sign of life, and at SIGHUP for a new worker to serve: a start takes longer
# than uvicorn's own 5 s, which made every SIGHUP give up.
WORKER_SILENCE_S = 30
READING = ("unit", "columns", "from", "to", "last")  # how to read TRACE: TRACE_UNIT and so on

# A message of up to so many bytes is answered that it is too long (messages); a longer one ends the connection.
WS_MAX_SIZE = 4 * MESSAGE


def set_up_logging(settings: Settings) -> None:
    """Log lines to stdout, as they are: requests are JSON objects already."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", stream=sys.stdout)
    logging.getLogger("jax").setLevel(logging.WARNING)


def end_with(parent: BaseProcess) -> None:
    """Wait for a process to end, then end this one as SIGTERM does."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def application() -> FastAPI:
    """The application of one process; workers and reloaded ones are new processes, which log nothing by themselves."""
    settings = Settings()
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker whose parent was killed -9 would keep the port, and nobody would replace it
        threading.Thread(target=end_with, args=(parent,), name="end-with-parent", daemon=True).start()
    set_up_logging(settings)
    BoundedProtocol.most_connections = settings.connections
    bound_programs(settings.program_memory_mb)
    spare_memory()
    compiler = Compiler()
    compiler.install()
    compiler.start()  # it imports what it needs while this process makes its routes
    return create_app(settings, compiler)


def main(argv: list[str] | None = None) -> int:
    """Read settings, start uvicorn; 2 for settings, a table or a log that cannot be used."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    lines = [
        f"  {name.upper():22} {field.description} (default {field.default!r})"
        for name, field in Settings.model_fields.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Start the InferenceGym server and its page.",
        epilog="environment variables:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="overrules HOST")
    parser.add_argument("--port", type=int, help="overrules PORT")
    parser.add_argument("--table", help="overrules TABLE")
    parser.add_argument("--trace", help="overrules TRACE")
    for name in READING:
        parser.add_argument(f"--{name}", help=f"overrules TRACE_{name.upper()}")
    parser.add_argument("--tasks-from", action="append", help="overrules TASKS_FROM; may be repeated")
    parser.add_argument("--workers", type=int, help="overrules WORKERS")
    parser.add_argument("--reload", action="store_true", help="start again when a source file changes")
    options = parser.parse_args(argv)
    for name in ("host", "port", "table", "trace", "workers"):
        if getattr(options, name) is not None:
            os.environ[name.upper()] = str(getattr(options, name))  # workers are processes: they read the environment
    for name in READING:
        if getattr(options, name) is not None:
            os.environ[f"TRACE_{name.upper()}"] = getattr(options, name)
    if options.tasks_from is not None:
        os.environ["TASKS_FROM"] = ",".join(options.tasks_from)
    try:
        settings = Settings()
    except ValidationError as error:
        for entry in error.errors():
            print(f"{str(entry['loc'][0]).upper()} = {entry['input']!r}: {entry['msg']}", file=sys.stderr)
        return 2
    if settings.workers > 1 and settings.redis_url is None:
        print("WORKERS above 1 needs REDIS_URL: sessions in one process are unknown to the others.", file=sys.stderr)
        return 2
    with ExitStack() as files:
        try:
            name = "trace"
            if settings.trace is not None:
                os.environ["TRACE"] = str(files.enter_context(regular_file(settings.trace)))  # of a pipe, a copy
                settings = Settings()
                own_log(settings)
            name = "table"
            if settings.table is not None:
                ig.load_table(settings.table)
            name = "tasks_from"
            for path in settings.tasks_from:
                ig.register_file(path)
        except (ValueError, OSError) as error:
            print(f"{name.upper()}: {error}", file=sys.stderr)
            return 2
        return _serve(settings, options.reload)


def _serve(settings: Settings, reload: bool) -> int:
    """Run uvicorn until it is told to end."""
    if settings.workers > 1:
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="inferencegym-metrics-"))
    set_up_logging(settings)
    uvicorn.run(
        "server.__main__:application",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        reload=reload,
        reload_includes=["*.json", "*.parquet"] if reload else None,  # beside *.py
        loop="auto",
        http=BoundedProtocol,
        ws=BoundedWebSocket,
        ws_max_size=WS_MAX_SIZE,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=settings.forwarded_allow_ips or None,
        ws_per_message_deflate=False,  # compressing a kilobyte costs more than the step that it holds
        log_level=settings.log_level,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_worker_healthcheck=WORKER_SILENCE_S,
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
