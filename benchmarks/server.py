"""The server's speed, as ratios in one run: ``python -m benchmarks.server``.

Starts the server and a do-nothing OpenEnv environment on this machine and steps both, turn by turn, over their
WebSockets; then an HTTP episode with its grading, 64 WebSocket sessions at once, start-up time and memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

STEP = json.dumps({"type": "step", "data": {"batch_size": 64}})
RESET = json.dumps({"type": "reset", "data": {"seed": 1}})
EPISODE = 200
SESSIONS = (64,)  # at once


def nothing_app() -> Any:
    """An OpenEnv application whose environment does nothing: what the transport alone costs."""
    from fastapi import FastAPI
    from openenv.core.env_server.http_server import HTTPEnvServer
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, ConcurrencyConfig, Observation, State

    class Nothing(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: Any = None, episode_id: Any = None, **kwargs: Any) -> Observation:
            return Observation()

        def step(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> Observation:
            return Observation(reward=0.0)

        @property
        def state(self) -> State:
            return State()

    class NothingAsync(Nothing):
        async def step_async(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> Observation:
            return Observation(reward=0.0)

    class AnyAction(Action):
        batch_size: int = 32

    app = FastAPI()
    kind = NothingAsync if os.environ.get("NOTHING") == "async" else Nothing
    HTTPEnvServer(
        kind, AnyAction, Observation, concurrency_config=ConcurrencyConfig(max_concurrent_envs=128)
    ).register_routes(app)
    return app


@contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator[tuple[int, float]]:
    """A server process that answers /health: (process id, seconds from start to healthy)."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, stdout=subprocess.DEVNULL
    )
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except OSError:
                if time.perf_counter() - start > 120:
                    raise
                time.sleep(0.05)
        yield process.pid, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(20)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(port: int, pid: int) -> None:
    """Wait until a server has all its programs: it is healthy with the first, and works on the others meanwhile."""
    urllib.request.urlopen(f"http://127.0.0.1:{port}/baseline", timeout=600).read()
    before = cpu_seconds(pid)
    while True:
        time.sleep(1.0)
        now = cpu_seconds(pid)
        if now - before < 0.05:
            return
        before = now


def checked(reply: str | bytes) -> None:
    """Raise for an answer that is no observation: an error is answered sooner than a step is taken."""
    if not str(reply).startswith('{"type":"observation"'):
        raise RuntimeError(f"not an observation: {reply!r}")


def stepped(port: int, steps: int) -> tuple[float, float]:
    """One WebSocket client, whole episodes with their resets: (steps a second, median latency of a step in us)."""
    latencies = np.empty(steps)
    with connect(f"ws://127.0.0.1:{port}/ws", max_size=None) as socket:
        start = time.perf_counter()
        for step in range(steps):
            if step % EPISODE == 0:
                socket.send(RESET)
                checked(socket.recv())
            sent = time.perf_counter()
            socket.send(STEP)
            reply = socket.recv()
            latencies[step] = time.perf_counter() - sent
            checked(reply)
        seconds = time.perf_counter() - start
    return steps / seconds, 1e6 * float(np.median(latencies))


class Load(NamedTuple):
    """What a number of WebSocket sessions at once came to; processor times per step."""

    rate: float  # steps a second, all sessions together
    median_ms: float  # latency of a step
    p99_ms: float
    server_us: float
    client_us: float


async def together(port: int, pid: int, sessions: int, steps: int) -> Load:
    """Sessions stepped at once by one asyncio client, whole episodes with their resets; ``steps`` each."""
    latencies: list[float] = []
    ready = asyncio.Barrier(sessions + 1)

    async def one() -> None:
        async with connect_async(f"ws://127.0.0.1:{port}/ws", max_size=None) as socket:
            await ready.wait()
            for step in range(steps):
                if step % EPISODE == 0:
                    await socket.send(RESET)
                    checked(await socket.recv())
                start = time.perf_counter()
                await socket.send(STEP)
                reply = await socket.recv()
                latencies.append(time.perf_counter() - start)
                checked(reply)

    async with asyncio.TaskGroup() as group:
        for _ in range(sessions):
            group.create_task(one())
        await ready.wait()
        start, server, client = time.perf_counter(), cpu_seconds(pid), time.process_time()
    seconds, server, client = time.perf_counter() - start, cpu_seconds(pid) - server, time.process_time() - client
    count, found = sessions * steps, 1000 * np.array(latencies)
    return Load(
        count / seconds,
        float(np.median(found)),
        float(np.percentile(found, 99)),
        1e6 * server / count,
        1e6 * client / count,
    )


def http_episode(port: int) -> float:
    """Seconds for reset, 200 steps and grader over HTTP on one connection."""
    import httpx

    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        start = time.perf_counter()
        session = client.post("/reset", json={"task_id": 2, "seed": 1}).json()["session_id"]
        for _ in range(EPISODE):
            client.post("/step", json={"session_id": session, "action": {"batch_size": 64}}).raise_for_status()
        client.post("/grader", json={"session_id": session}).raise_for_status()
        return time.perf_counter() - start


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Measure and print; each ratio from alternating turns."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="steps a turn")
    parser.add_argument("--turns", type=int, default=5, help="turns of each server")
    parser.add_argument("--port", type=int, default=7870, help="first of three ports")
    options = parser.parse_args()
    ours, sync, nothing = options.port, options.port + 1, options.port + 2
    server = [sys.executable, "-m", "server", "--port", str(ours)]
    nothings = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.server:nothing_app", "--log-level", "error"]
    with running(server, ours, RATE_LIMIT="off", LOG_LEVEL="warning", WARM_ROLLOUTS="false") as (pid, healthy):
        print(f"start to healthy: {healthy:.1f} s; resident memory {resident_mb(pid):.0f} MB")
        start = time.perf_counter()
        settle(ours, pid)
        print(f"all programs {time.perf_counter() - start:.1f} s later; resident memory {resident_mb(pid):.0f} MB")
        with (
            running([*nothings, "--port", str(sync)], sync) as (sync_pid, _),
            running([*nothings, "--port", str(nothing)], nothing, NOTHING="async") as (nothing_pid, _),
        ):
            pids = {ours: pid, sync: sync_pid, nothing: nothing_pid}
            busy = dict.fromkeys(pids, 0.0)
            rates: dict[int, list[float]] = {ours: [], sync: [], nothing: []}
            medians: dict[int, list[float]] = {ours: [], sync: [], nothing: []}
            for port in rates:
                stepped(port, 400)
            for _ in range(options.turns):
                for port in rates:
                    before = cpu_seconds(pids[port])
                    rate, median = stepped(port, options.steps)
                    rates[port].append(rate)
                    medians[port].append(median)
                    busy[port] += cpu_seconds(pids[port]) - before
        names = {ours: "this server", sync: "do-nothing OpenEnv", nothing: "do-nothing OpenEnv, coroutine step"}
        print("one client over /ws                  steps/s  ratio  median step  ratio  processor a step")
        for port, name in names.items():
            rate, median = np.median(rates[port]), np.median(medians[port])
            faster = np.median(np.array(rates[ours]) / np.array(rates[port]))
            shorter = np.median(np.array(medians[port]) / np.array(medians[ours]))
            processor = 1e6 * busy[port] / (options.turns * options.steps)
            print(f"{name:36} {rate:7.0f}  {faster:5.2f}  {median:8.0f} us  {shorter:5.2f}  {processor:13.0f} us")
        print("ratios: this server against that one; the median does not see what else runs on the machine")
        counts = (1, *SESSIONS)
        loads: dict[int, list[Load]] = {count: [] for count in counts}
        for _ in range(options.turns):
            for count in counts:  # whole episodes, so that resets weigh the same in each
                each = EPISODE * max(1, options.steps // EPISODE // min(count, 10))
                loads[count].append(asyncio.run(together(ours, pid, count, each)))
        print(
            "sessions of one asyncio client   steps/s  ratio  step latency      p99  processor a step: server, client"
        )
        medians_of = {count: Load(*np.median(np.asarray(found), axis=0)) for count, found in loads.items()}
        for count, load in medians_of.items():
            ratio = np.median([many.rate / one.rate for many, one in zip(loads[count], loads[1], strict=True)])
            print(
                f"{count:30}  {load.rate:8.0f}  {ratio:5.2f}  {load.median_ms:9.2f} ms  {load.p99_ms:4.1f} ms"
                f"  {load.server_us:21.0f} us, {load.client_us:3.0f} us"
            )
        print(f"reset, 200 steps and grader over HTTP: {min(http_episode(ours) for _ in range(3)):.2f} s")
        print(f"resident memory afterwards: {resident_mb(pid):.0f} MB")


if __name__ == "__main__":
    main()
