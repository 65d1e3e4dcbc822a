"""The command ``control``: its options, and how it listens."""

from __future__ import annotations

import logging
import math
import os
import socket
from typing import Annotated, Any

import typer

from inferencegym_jax import registry
from inferencegym_jax.cli.options import BaseMemory, TableFile, parse_slo, task_of
from inferencegym_jax.cli.output import fail, notices, sentences
from inferencegym_jax.cli.spare_options import (
    HealthPath,
    Lease,
    SleepPath,
    SpareUrl,
    StartCmd,
    StartTimeout,
    StopCmd,
    StopTimeout,
    WakePath,
    spare_of,
)
from inferencegym_jax.models import QUEUE_CAPACITY
from inferencegym_jax.policies.names import POLICY_HELP, is_told_objectives
from inferencegym_jax.tasks import get_task

console = notices()
PLAIN_TASK, LEASING_TASK = "4", "7"
TOKEN_ENV = "INFERENCEGYM_CONTROL_TOKEN"


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Its protocol is named, because asyncio turns Nagle's algorithm off for those only, and
    with it on every streamed token waits up to 40 ms for an acknowledgement."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(2048)
    return listener


def control(
    upstream: Annotated[str, typer.Option(help="root URL of the engine, for example http://127.0.0.1:8000")],
    policy: Annotated[str, typer.Option(help=POLICY_HELP)],
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 8080,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    task: Annotated[
        str | None,
        typer.Option(
            help="task whose best_static, reactive or trained policy is meant; 1 to 3 set batch_size alone; default: "
            f"{PLAIN_TASK}, or {LEASING_TASK} with a spare"
        ),
    ] = None,
    table: TableFile = None,
    queue: Annotated[int, typer.Option(help="most requests waiting; beyond it 429")] = QUEUE_CAPACITY,
    slo_ttft_ms: Annotated[str, typer.Option(help="TTFT objective in ms: one, or by class 200,2000,none")] = "300",
    slo_tpot_ms: Annotated[
        float, typer.Option(help="objective on a request's mean time per output token; default: none")
    ] = math.inf,
    stall_timeout: Annotated[
        float, typer.Option(help="seconds without a chunk until a stream counts as broken")
    ] = 60.0,
    first_byte_timeout: Annotated[
        float, typer.Option(help="seconds until the upstream must have begun to answer")
    ] = 600.0,
    base_memory_gb: BaseMemory = 0.0,
    observe: Annotated[
        bool, typer.Option("--observe", help="dry run: ask the policy, show what it would have done, and do none of it")
    ] = False,
    token_env: Annotated[
        str, typer.Option(help="environment variable that holds the token for POST /policy; unset: nobody may")
    ] = TOKEN_ENV,
    spare: SpareUrl = None,
    start_cmd: StartCmd = None,
    stop_cmd: StopCmd = None,
    wake_path: WakePath = None,
    sleep_path: SleepPath = None,
    health_path: HealthPath = None,
    lease: Lease = None,
    start_timeout: StartTimeout = None,
    stop_timeout: StopTimeout = None,
) -> None:
    """Proxy an OpenAI-compatible engine and admit requests as a policy says.

    Clients send priorities in the header x-priority: interactive, batch or best_effort. GET /status and /metrics
    (Prometheus) say how it goes. When the policy fails, everything passes straight through until it answers again.
    With --spare the policy's second GPU is another engine, which is started and stopped. SIGHUP reads the policy again.
    """
    import uvicorn

    from inferencegym_jax.live.proxy.app import ControlSettings, create_app
    from inferencegym_jax.live.proxy.policy_source import PolicySource
    from inferencegym_jax.live.server.streaming import hide_user

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if queue < 0:
        fail(f"--queue {queue}: must be at least 0")
    for name, value in (("--stall-timeout", stall_timeout), ("--first-byte-timeout", first_byte_timeout)):
        if not 0 < value < math.inf:
            fail(f"{name} {value}: must be a number of seconds above 0")
    if not slo_tpot_ms > 0:
        fail(f"--slo-tpot-ms {slo_tpot_ms}: must be a number of milliseconds above 0")
    description: dict[str, Any] = {
        "start_cmd": start_cmd,
        "stop_cmd": stop_cmd,
        "wake_path": wake_path,
        "sleep_path": sleep_path,
        "health_path": health_path,
        "lease_s": lease,
        "start_timeout_s": start_timeout,
        "stop_timeout_s": stop_timeout,
    }
    with sentences():
        second = spare_of(spare, description)
        default = PLAIN_TASK if second is None else LEASING_TASK
        name, objectives = task_of(default if task is None else task), parse_slo(slo_ttft_ms)
        told = {"slo_ttft_ms": objectives[0]} if is_told_objectives(policy, name) else {}
        if told and get_task(name).dynamics == "open_loop":  # the others have no objective on the time per token
            told["slo_tpot_ms"] = slo_tpot_ms
        config = {name: value for name, value in told.items() if math.isfinite(value)} or None
        problem = registry.problem(name, table=table, config=config)
        settings = ControlSettings(
            upstream=upstream,
            queue=queue,
            slo_ms=objectives,
            slo_tpot_ms=slo_tpot_ms,
            stall_timeout_s=stall_timeout,
            first_byte_timeout_s=first_byte_timeout,
            base_memory_gb=base_memory_gb,
            applies_kv_budget=problem.dynamics == "open_loop",
            spare=second,
            observes=observe,
            token=os.environ.get(token_env, ""),
        )
        source = PolicySource(problem, leases=second is not None)
        application = create_app(settings, source.load(policy), policy, source)
    try:
        listener = listen(host, port)
    except OSError as error:
        fail(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}")
    bound = listener.getsockname()[1]
    beside = "" if second is None else f" and {hide_user(second.url)}"
    console.print(
        f"http://{host}:{bound} -> {hide_user(upstream)}{beside} {'beside' if observe else 'under'} policy {policy}; "
        "/status, /metrics",
        highlight=False,
        soft_wrap=True,
    )
    config = uvicorn.Config(application, log_level="warning", access_log=False, server_header=False, date_header=False)
    uvicorn.Server(config).run([listener])
