"""``inferencegym serve``: the HTTP server and its page, from a checkout or the image."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from inferencegym_jax.cli.options import LogColumns, LogFrom, LogLast, LogTo, LogUnit, TableFile
from inferencegym_jax.cli.output import fail

NEEDED = ("fastapi", "uvicorn", "pydantic_settings", "openenv")


def checkout() -> Path | None:
    """The folder that holds this project's ``server``: the checkout this library lies in, or the current folder."""
    for folder in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (folder / "server" / "openenv_environment.py").is_file():
            return folder
    return None


def serve(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default: PORT, or 7860.")] = None,
    host: Annotated[str | None, typer.Option(help="Address; default: HOST, or all.")] = None,
    table: TableFile = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Request log (docs/request_logs.md), replayed open-loop as every task's traffic; default: TRACE."
        ),
    ] = None,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
) -> None:
    """Start the server and its page (the same as `python -m server` in a checkout; further options go to it)."""
    folder = checkout()
    if folder is None:
        fail(
            "the server is not part of the wheel: run this in a checkout of the project (make serve),"
            " or use the Docker image"
        )
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        fail(f"the server needs {', '.join(absent)}: run `make install-serve` in {folder}, or `make serve`")
    own = context.find_root().obj or []
    tasks = [("--tasks-from", path.resolve()) for path in own]
    log = trace if trace is None or str(trace) == "-" or str(trace).startswith("/dev/") else trace.resolve()
    files = [("--table", None if table is None else table.resolve()), ("--trace", log)]
    reading = [("--unit", unit), ("--columns", columns), ("--from", start), ("--to", end), ("--last", last)]
    variables = [
        (name, value)
        for name, value in (("--port", port), ("--host", host), *files, *reading, *tasks)
        if value is not None
    ]
    command = [sys.executable, "-m", "server", *(str(x) for pair in variables for x in pair), *context.args]
    try:
        code = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}).returncode
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)
