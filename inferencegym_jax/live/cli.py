"""The commands ``measure``, ``trial`` and ``control``; the main command line takes them from ``app``."""

from __future__ import annotations

import logging
import math
import os
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from inferencegym_jax.models import QUEUE_CAPACITY

app = typer.Typer(no_args_is_help=True, help="Measure a live engine, try policies on it, control it.")
console = Console(stderr=True)

API_KEY_ENV = typer.Option(
    "--api-key-env", help="environment variable that holds the server's API key; the key itself is never an argument"
)


@app.callback()
def main() -> None:
    """Measure a live engine, try policies on it, control it."""


def fail(message: str) -> NoReturn:
    """Say what is wrong and exit with status 2."""
    console.print(f"[bold red]error[/]: {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def parse_slo(text: str) -> tuple[float, float, float]:
    """TTFT objectives "300", "300,2000" or "200,2000,none" (interactive, batch, best effort) in ms; missing ones are none."""
    values = []
    for part in text.split(","):
        word = part.strip().lower()
        try:
            value = math.inf if word in ("none", "inf") else float(word)
        except ValueError:
            value = math.nan
        if not value > 0:
            fail(f"--slo-ttft-ms {text!r}: {part!r} must be a number of milliseconds above 0, or none")
        values.append(value)
    if len(values) > 3:
        fail(f"--slo-ttft-ms {text!r}: at most three classes (interactive, batch, best effort)")
    first, second, third = (values + [math.inf] * 3)[:3]
    return first, second, third


@app.command()
def control(
    upstream: Annotated[str, typer.Option(help="root URL of the engine, for example http://127.0.0.1:8000")],
    policy: Annotated[str, typer.Option(help="baseline, reactive, best_static, trained, batch_size=N, or a policy file")],
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 8080,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    task: Annotated[str, typer.Option(help="task whose best_static or trained policy is meant")] = "2",
    queue: Annotated[int, typer.Option(help="most requests waiting; beyond it 429")] = QUEUE_CAPACITY,
    slo_ttft_ms: Annotated[str, typer.Option(help="TTFT objective in ms: one, or by class 200,2000,none")] = "300",
    stall_timeout: Annotated[float, typer.Option(help="seconds without a chunk until a stream counts as broken")] = 60.0,
    first_byte_timeout: Annotated[float, typer.Option(help="seconds until the upstream must have begun to answer")] = 600.0,
    base_memory_gb: Annotated[float, typer.Option(help="memory of weights and runtime, for the observation")] = 0.0,
) -> None:
    """Proxy an OpenAI-compatible engine and admit requests as a policy says.

    Clients send priorities in the header x-priority: interactive, batch or best_effort. GET /status and /metrics (Prometheus) say how
    it goes. When the policy fails, everything passes straight through until it answers again.
    """
    import uvicorn

    from inferencegym_jax.live.control import ControlSettings, create_app
    from inferencegym_jax.live.policy import PolicyError, PolicyRunner, load_policy
    from inferencegym_jax.live.streaming import hide_user

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if queue < 0:
        fail(f"--queue {queue}: must be at least 0")
    for name, value in (("--stall-timeout", stall_timeout), ("--first-byte-timeout", first_byte_timeout)):
        if not 0 < value < math.inf:
            fail(f"{name} {value}: must be a number of seconds above 0")
    settings = ControlSettings(
        upstream=upstream,
        queue=queue,
        slo_ms=parse_slo(slo_ttft_ms),
        stall_timeout_s=stall_timeout,
        first_byte_timeout_s=first_byte_timeout,
        base_memory_gb=base_memory_gb,
    )
    try:
        runner = PolicyRunner(load_policy(policy, int(task) if task.isdigit() else task))
        application = create_app(settings, runner, policy)
    except (PolicyError, ValueError) as error:
        fail(str(error))
    console.print(f"http://{host}:{port} -> {hide_user(upstream)} under policy {policy}; /status, /metrics", highlight=False)
    uvicorn.run(
        application, host=host, port=port, log_level="warning", access_log=False, server_header=False, date_header=False
    )


def api_key(variable: str) -> str:
    """The key in an environment variable, or none."""
    return os.environ.get(variable, "")
