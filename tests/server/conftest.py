"""Real servers on real sockets: one for the whole session, and a way to start others with settings of their own.

SERVER_URL=http://localhost:7860 puts a server that runs elsewhere, an image for instance, in the place of that one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.server.browser import CHROMIUM, READY, Browser, tied

pytest.importorskip("openenv", reason="OpenEnv is not installed (make install-test installs it)")

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://example.org/inferencegym"
ELSEWHERE = os.environ.get("SERVER_URL", "").rstrip("/")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass
class Running:
    url: str

    @property
    def ws(self) -> str:
        return f"ws{self.url.removeprefix('http')}/ws"


@dataclass
class LocalServer(Running):
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def start_server(
    folder: Path, port: int | None = None, wait: bool = True, patience_s: float = 180.0, **settings: str
) -> Iterator[LocalServer]:
    """``python -m server`` with these settings; healthy when it is handed over (``wait``), ended afterwards."""
    port = port or free_port()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "RATE_LIMIT": "off",
        "LOG_LEVEL": "warning",
        "WARM_ROLLOUTS": "false",
        **settings,
    }
    log = folder / f"server-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            tied(sys.executable, "-m", "server"), cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    running = LocalServer(f"http://127.0.0.1:{port}", process, log)
    try:
        if wait:
            wait_healthy(running, patience_s)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def raw_websocket(port: int, path: str = "/ws") -> Iterator[socket.socket]:
    """A WebSocket connection after its handshake, as a bare socket."""
    with socket.create_connection(("127.0.0.1", port), 20) as raw:
        raw.sendall(
            f"GET {path} HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += raw.recv(1)
        assert b" 101 " in head
        yield raw


@contextmanager
def served_page(arguments: list[str]) -> Iterator[str]:
    """Address of the server that a script's first argument names; without one, of a server of its own."""
    if arguments:
        yield arguments[0].rstrip("/")
        return
    with tempfile.TemporaryDirectory() as folder, start_server(Path(folder)) as running:
        yield running.url


def wait_healthy(running: LocalServer, patience_s: float = 180.0) -> None:
    end = time.monotonic() + patience_s
    while True:
        assert running.process.poll() is None, running.log.read_text()
        try:
            if httpx.get(f"{running.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, f"not healthy after {patience_s} s: {running.log.read_text()}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if ELSEWHERE:
        yield Running(ELSEWHERE)
        return
    with start_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=180) as client:
        yield client


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A redis-server of its own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on the path (Debian: apt-get install redis-server)")
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        tied(program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < end, "redis-server did not start"
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server for the page, with the rate limit that a user meets."""
    if ELSEWHERE:
        yield f"{ELSEWHERE}/"
        return
    with start_server(tmp_path_factory.mktemp("site"), RATE_LIMIT="100/second", REPOSITORY_URL=REPOSITORY) as running:
        yield f"{running.url}/"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no chromium on the path (Debian: chromium)")
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, site: str, tmp_path: Path) -> Iterator[Browser]:
    """A fresh page, driven by hand on task 2. Whatever a test does, it must log no error and ask no other host."""
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.media(prefers_color_scheme="light")
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(f"{site}?task=2&seed=0&policy=manual&rival=baseline")
    browser.js("localStorage.clear()")
    browser.wait(READY)
    yield browser
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith((site, "data:", f"blob:{site}"))] == []
