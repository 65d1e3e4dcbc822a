"""Servers on real sockets: the fake engine as a process of its own, the proxy in a thread."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.proxy.app import ControlSettings, create_app
from inferencegym_jax.models import ServeAction
from tests.live.fake_engine import listen

ROOT = Path(__file__).resolve().parents[2]
SPARE_ENGINE = ROOT / "tests" / "live" / "spare_engine.py"


@dataclasses.dataclass
class RunningEngine:
    """A fake engine and how to end it."""

    url: str
    process: subprocess.Popen[str]

    def state(self) -> dict[str, int]:
        return httpx.get(f"{self.url}/fake/state", trust_env=False).json()

    def settled(self, **wanted: int) -> dict[str, int]:
        """Its state, once it has the wanted counts (or what it has after five seconds)."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            state = self.state()
            if all(state[name] == value for name, value in wanted.items()):
                return state
            time.sleep(0.02)
        return self.state()


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., RunningEngine]]:
    """``launch("--a", 5)`` starts a fake engine; all of them end with the session."""
    started: list[subprocess.Popen[str]] = []

    def start(*flags: Any) -> RunningEngine:
        command = [sys.executable, "-m", "tests.live.fake_engine", *map(str, flags)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{url}/health", trust_env=False)
                return RunningEngine(url, process)
            assert time.monotonic() < deadline, "the fake engine did not start"
            time.sleep(0.05)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def engine(launch: Callable[..., RunningEngine]) -> RunningEngine:
    """A healthy engine that several tests share."""
    return launch()


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI app on a free port, in a thread; gives its URL."""
    import uvicorn

    listener = listen(0)
    config = uvicorn.Config(app, log_level="critical", access_log=False, server_header=False, date_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


STEP = 0.2  # seconds between two questions to the policy, and its deadline, which a busy machine must keep


class Fixed:
    """A policy that is what a test sets."""

    def __init__(self, batch_size: Any = 512, kv_budget: float = 1.0):
        self.batch_size, self.kv_budget = batch_size, kv_budget
        self.sleep_s = 0.0
        self.seen: list[Any] = []

    def ask(self, observation: Any) -> ServeAction:
        self.seen.append(observation)
        time.sleep(self.sleep_s)
        if isinstance(self.batch_size, Exception):
            raise self.batch_size
        return ServeAction(batch_size=self.batch_size, kv_budget=self.kv_budget)


def proxy(url: str, policy: Any = None, **changes: Any) -> Any:
    settings = ControlSettings(url, step_seconds=STEP, **changes)
    return serving(create_app(settings, policy or Fixed(), "fixed"))


def body(output: int = 5, prompt: int = 4, tag: str = "w", stream: bool = True, **more: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": [7] * prompt, "max_tokens": output, "stream": stream, "user": tag, **more}


def status(url: str, until: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
    """``/status``, once it is as wanted (or what it is after thirty seconds)."""
    deadline = time.monotonic() + 30
    while True:
        found = httpx.get(f"{url}/status", trust_env=False).json()
        if until(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


@pytest.fixture
def wait() -> Callable[..., None]:
    """``wait(condition)``: until it holds; an error of the connection counts as no."""

    def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if condition():
                    return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return until


def controlling(found: dict[str, Any]) -> bool:
    return found["mode"] == "control"


@dataclasses.dataclass
class Setting:
    """An upstream, a spare that does not run yet, and what they write down."""

    upstream: str
    spare: SpareSettings
    journal: Path
    upstream_journal: Path

    def lines(self) -> list[list[str]]:
        """The spare's journal: process, word, and more."""
        return [line.split() for line in self.journal.read_text().splitlines()] if self.journal.exists() else []

    def pid(self) -> int:
        """Of the spare that was started last."""
        return int([line[0] for line in self.lines() if line[1] == "started"][-1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Callable[..., Setting]]:
    processes: list[subprocess.Popen[str]] = []
    journals: list[Path] = []

    def make(plan: str = "ok", **changes: Any) -> Setting:
        (tmp_path / "plan").write_text(plan)
        journal, upstream_journal = tmp_path / "spare.txt", tmp_path / "upstream.txt"
        command = [sys.executable, "-I", "-S", str(SPARE_ENGINE), "0", str(upstream_journal)]
        upstream = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(upstream)
        journals.append(journal)
        assert upstream.stdout is not None
        url, port = f"http://127.0.0.1:{int(upstream.stdout.readline())}", free_port()
        start = f"exec {sys.executable} -I -S {SPARE_ENGINE} {port} {journal} {tmp_path / 'plan'}"
        usual = {
            "start_cmd": start,
            "lease_s": 0.0,
            "health_every_s": 0.05,
            "start_timeout_s": 10.0,
            "stop_timeout_s": 10.0,
            "backoff_s": 0.02,
            "most_backoff_s": 0.2,
        }
        spare = SpareSettings(f"http://127.0.0.1:{port}", **{**usual, **changes})
        return Setting(url, spare, journal, upstream_journal)

    yield make
    for process in processes:
        process.kill()
        process.wait()
    for journal in journals:  # whatever a failed test left
        for line in journal.read_text().splitlines() if journal.exists() else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
