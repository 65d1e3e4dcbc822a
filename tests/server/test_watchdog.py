"""No request stops the server: /healthz is asked beside every bad input of a corpus, and answers within half a second.

That bound, the greatest size of an answer and the resident memory are what the server promises (docs/server.md).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.server import corpus
from tests.server.conftest import LocalServer, raw_websocket, start_server

BOUND_S = 0.5  # of /healthz beside anything
RATIO, FLOOR = 10, 2048  # an error is at most ten times what was sent, or so many bytes
RESIDENT = 900e6  # bytes
CASES = 5000  # of schemathesis
TRIES = 3  # a case that was slow is asked again: the machine may have been busy with something else

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Watchdog:
    """Asks /healthz again and again in a thread; the worst answer since ``begin``."""

    def __init__(self, url: str):
        self.address = urlsplit(url)
        self.worst, self.count, self.begun = 0.0, 0, time.monotonic()
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _ask(self) -> None:
        try:
            while not self._stop.is_set():
                connection = http.client.HTTPConnection(str(self.address.hostname), self.address.port, timeout=60)
                with contextlib.closing(connection):
                    for _ in range(50):
                        start = time.monotonic()
                        connection.request("GET", "/healthz")
                        answer = connection.getresponse()
                        assert answer.status == 200 and json.loads(answer.read()) == {"status": "ok"}
                        self.worst = max(self.worst, time.monotonic() - start)
                        self.count += 1
                        if self._stop.wait(0.004):
                            return
        except BaseException as error:
            self.failure = error

    def beside(self, send: Callable[[], Any], tries: int = TRIES) -> tuple[Any, float]:
        """What ``send`` gives, and the slowest /healthz that was asked meanwhile, its own slowest of some tries."""
        found, slowest = None, 0.0
        for _ in range(tries):
            self.worst, seen = 0.0, self.count
            found = send()
            end = time.monotonic() + 60
            while self.count < seen + 1 and self.failure is None and time.monotonic() < end:
                time.sleep(0.001)
            assert self.failure is None, self.failure
            assert self.count > seen, "/healthz was not answered within a minute"
            slowest = self.worst
            if slowest <= BOUND_S:
                break
        return found, slowest


@pytest.fixture(scope="module")
def asked() -> set[str]:
    """What this process sent to its server: tests are dealt out, and those of memory look at what came before."""
    return set()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server of its own, everything compiled, whose peak memory counts from here on."""
    with start_server(tmp_path_factory.mktemp("watched"), WARM_ROLLOUTS="true", LOG_LEVEL="error") as running:
        with httpx.Client(base_url=running.url, timeout=120) as http:
            for task in (1, 4):
                body = {"task_id": task, "seeds": [0], "policy": "baseline"}
                assert http.post("/rollout", json=body).status_code == 200
        Path(f"/proc/{running.process.pid}/clear_refs").write_text("5")  # the peak so far is the compiler's
        yield running


@pytest.fixture(scope="module")
def dog(watched: LocalServer) -> Iterator[Watchdog]:
    with Watchdog(watched.url) as running:
        yield running


def peak(server: LocalServer) -> float:
    """The greatest resident memory of the server's process since everything was compiled, bytes."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def is_long(answer: int, asked: int) -> bool:
    return answer > max(FLOOR, RATIO * asked)


def test_the_corpus_is_as_large_as_it_says():
    cases = corpus.http_cases()
    assert len(cases) >= 1000 and len({case.name for case in cases}) == len(cases)
    assert min(len(corpus.ws_messages()), len(corpus.mcp_bodies()), len(corpus.raw_inputs())) >= 100


def test_no_http_request_of_the_corpus_stops_the_server(watched: LocalServer, dog: Watchdog):
    wrong = []
    with httpx.Client(base_url=watched.url, timeout=60) as http:

        def send(case: corpus.Case) -> httpx.Response | None:
            try:
                return http.request(case.method, case.path, content=case.body, headers=case.headers)
            except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
                return None  # refused before it was read: the connection was closed while it was being sent

        for case in corpus.http_cases():
            answer, slowest = dog.beside(lambda case=case: send(case))
            if slowest > BOUND_S:
                wrong.append(f"{case.name}: /healthz took {slowest:.2f} s")
            if answer is None:
                if len(case.body) < 60_000:
                    wrong.append(f"{case.name}: no answer")
                continue
            if answer.status_code >= 500:
                wrong.append(f"{case.name}: {answer.status_code} {answer.text[:200]}")
            if answer.status_code >= 400 and is_long(len(answer.content), case.size):
                wrong.append(f"{case.name}: {len(answer.content)} bytes for {case.size}")
            if answer.status_code >= 400 and case.method != "HEAD" and "detail" not in answer.text:
                wrong.append(f"{case.name}: {answer.status_code} without a detail: {answer.text[:200]}")
    assert wrong == [], "\n".join(wrong)


def test_an_accepted_config_gives_finite_rewards(watched: LocalServer):
    """Limits that hold in float64 and not in float32 would give NaN, which is null on the wire."""
    accepted = 0
    with httpx.Client(base_url=watched.url, timeout=60) as http:
        for case in corpus.several_configs():
            if case.path != "/reset":
                continue
            reset = http.post("/reset", content=case.body, headers=case.headers)
            if reset.status_code != 200:
                assert reset.status_code == 422, reset.text
                continue
            accepted += 1
            for action in ({}, {"batch_size": 512}):
                body = {"session_id": reset.json()["session_id"], "action": action}
                step = http.post("/step", json=body)
                assert step.status_code == 200 and -1 <= step.json()["reward"] <= 1, (case.name, step.text)
    assert accepted >= 30


def test_no_websocket_message_of_the_corpus_stops_the_server(watched: LocalServer, dog: Watchdog):
    wrong = []

    def send(message: str | bytes) -> str | bytes:
        socket.send(message)
        return socket.recv(timeout=60)

    with connect(watched.ws, max_size=None, close_timeout=5) as socket:
        for i, message in enumerate(corpus.ws_messages()):
            answer, slowest = dog.beside(lambda message=message: send(message))
            name = f"message {i} {message[:60]!r}"
            if slowest > BOUND_S:
                wrong.append(f"{name}: /healthz took {slowest:.2f} s")
            if json.loads(answer)["type"] == "error" and is_long(len(answer), len(message)):
                wrong.append(f"{name}: {len(answer)} bytes for {len(message)}")
            if "errors.pydantic.dev" in str(answer):
                wrong.append(f"{name}: {answer[:300]!r}")
        assert json.loads(send('{"type":"reset","data":{"seed":1}}'))["type"] == "observation"
        assert json.loads(send('{"type":"step","data":{}}'))["data"]["observation"]["timestep"] == 1
    with connect(f"{watched.ws.removesuffix('/ws')}/mcp", max_size=None, close_timeout=5) as socket:
        for i, message in enumerate(corpus.ws_messages()):
            answer, slowest = dog.beside(lambda message=message: send(message))
            name = f"/mcp message {i} {message[:60]!r}"
            if slowest > BOUND_S or "errors.pydantic.dev" in str(answer) or is_long(len(answer), len(message)):
                wrong.append(f"{name}: /healthz took {slowest:.2f} s, the answer {str(answer)[:300]}")
            assert "error" in json.loads(answer), name
    with connect(watched.ws, max_size=None, close_timeout=5) as socket:  # one that is too long ends its connection
        with pytest.raises(ConnectionClosed):
            socket.send("x" * 4_000_000)
            socket.recv(timeout=60)
    assert wrong == [], "\n".join(wrong)


def test_no_mcp_request_of_the_corpus_stops_the_server(watched: LocalServer, dog: Watchdog):
    wrong = []
    with httpx.Client(base_url=watched.url, timeout=60) as http:
        for i, body in enumerate(corpus.mcp_bodies()):
            post: Any = lambda body=body: http.post("/mcp", content=body, headers=corpus.JSON)  # noqa: E731
            answer, slowest = dog.beside(post)
            name = f"request {i} {body[:100]!r}"
            if slowest > BOUND_S:
                wrong.append(f"{name}: /healthz took {slowest:.2f} s")
            if answer.status_code >= 500 or answer.json().get("jsonrpc", "2.0") != "2.0":
                wrong.append(f"{name}: {answer.status_code} {answer.text[:200]}")
            failed = "error" in answer.json() or answer.json().get("result", {}).get("isError")
            if failed and is_long(len(answer.content), len(body) + 150):
                wrong.append(f"{name}: {len(answer.content)} bytes for {len(body)}")
            if "errors.pydantic.dev" in answer.text:
                wrong.append(f"{name}: {answer.text[:300]}")
    assert wrong == [], "\n".join(wrong)


def test_no_bytes_of_the_corpus_stop_the_server(watched: LocalServer, dog: Watchdog):
    wrong = []
    address = urlsplit(watched.url)

    def send(data: bytes) -> bytes:
        with socket.create_connection((str(address.hostname), address.port), timeout=30) as raw:
            answer = b""
            with contextlib.suppress(ConnectionError):
                raw.sendall(data)
                raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError, TimeoutError):
                while part := raw.recv(65536):
                    answer += part
                    if len(answer) > 1_000_000 or answer.startswith(b"HTTP/1.1 2"):
                        break
            return answer

    for i, data in enumerate(corpus.raw_inputs()):
        answer, slowest = dog.beside(lambda data=data: send(data))
        name = f"bytes {i} {data[:60]!r}"
        if slowest > BOUND_S:
            wrong.append(f"{name}: /healthz took {slowest:.2f} s")
        if answer[:12] in (b"HTTP/1.1 500", b"HTTP/1.1 501", b"HTTP/1.1 502", b"HTTP/1.1 503"):
            wrong.append(f"{name}: {answer[:200]!r}")
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize("path", ["/ws", "/mcp"])
@pytest.mark.parametrize("name", corpus.floods())
def test_no_flood_of_frames_stops_the_server(watched: LocalServer, dog: Watchdog, name: str, path: str):
    """Eight connections that send without reading; each ends, or waits, and none holds more than a few messages."""
    before, address, flood = peak(watched), urlsplit(watched.url), corpus.floods()[name]

    def send(raw: socket.socket) -> None:
        raw.settimeout(1.0)
        with contextlib.suppress(OSError):  # it was ended, or takes no more
            for _ in range(8):
                raw.sendall(flood)

    def all_of_them() -> None:
        with contextlib.ExitStack() as opened:
            raws = [opened.enter_context(raw_websocket(address.port or 0, path)) for _ in range(8)]
            senders = [threading.Thread(target=send, args=(raw,)) for raw in raws]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join(60)

    _, slowest = dog.beside(all_of_them)
    assert slowest <= BOUND_S
    assert peak(watched) - before < 50e6


def test_connections_that_say_nothing_are_ended(watched: LocalServer):
    """Half-open ones, and those whose head comes a byte at a time, do not stay."""
    address = urlsplit(watched.url)
    opened = [socket.create_connection((str(address.hostname), address.port), timeout=40) for _ in range(20)]
    try:
        for raw in opened[10:]:
            raw.sendall(b"GET / HTT")
        end = time.monotonic() + 40
        for raw in opened:
            raw.settimeout(max(0.1, end - time.monotonic()))
            with contextlib.suppress(ConnectionError):
                assert raw.recv(1000) == b""
    finally:
        for raw in opened:
            raw.close()


def test_an_arrow_rollout_takes_the_memory_of_a_block(watched: LocalServer, dog: Watchdog):
    """4,096 episodes are 140 MB; three slow readers at once hold a few pieces, not three copies."""
    before = peak(watched)
    body = {
        "task_id": 1, "seeds": list(range(4096)), "policy": "baseline", "trajectories": True, "format": "arrow"
    }  # fmt: skip
    received: list[int] = []

    def read(pause_s: float) -> None:
        with (
            httpx.Client(base_url=watched.url, timeout=120) as http,
            http.stream("POST", "/rollout", json=body) as part,
        ):
            assert part.status_code == 200
            size = 0
            for chunk in part.iter_raw(chunk_size=4_000_000):
                size += len(chunk)
                time.sleep(pause_s)
            received.append(size)

    def all_three() -> None:
        readers = [threading.Thread(target=read, args=(0.05,)) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(200)

    _, slowest = dog.beside(all_three)
    assert len(received) % 3 == 0 and len(received) >= 3 and min(received) > 100e6
    assert slowest <= BOUND_S
    assert peak(watched) - before < 200e6


def test_memory_stays_within_its_bound_through_the_corpora(watched: LocalServer) -> None:
    """The peak over all that came before in this file."""
    assert peak(watched) < RESIDENT, f"{peak(watched) / 1e6:.0f} MB"


@pytest.mark.timeout(1200)
def test_thousands_of_cases_and_sequences_along_the_links_of_the_openapi(
    watched: LocalServer, dog: Watchdog, tmp_path: Path, asked: set[str]
):
    """Whatever the schema allows and much that it does not; sessions that are stepped, asked and graded in any order.

    By schemathesis' own command: a link is followed or not by chance, so that the same draws need not give the same
    answers, which its runner expects and Hypothesis' own calls flaky.
    """
    pytest.importorskip("schemathesis")
    program = Path(sys.executable).with_name("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = {
        "--include-path-regex": r"^/(reset|step|state|health|healthz|grader|rollout|tasks|info|baseline|metrics)$",
        "--phases": "fuzzing,stateful",
        "--checks": checks,
        "--max-examples": "500",
        "--request-timeout": "240",  # the first rollout of a fleet is compiled
        "--suppress-health-check": "all",
        "--seed": "20",
    }
    command = [str(program), "run", f"{watched.url}/openapi.json", "--no-color"]
    command += [part for option in options.items() for part in option]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "COLUMNS": "120"}, capture_output=True, text=True
        )

    done, slowest = dog.beside(run, tries=1)
    asked.add("everything")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    generated, passed = map(int, re.findall(r"(\d+) generated, (\d+) passed", done.stdout)[-1])
    assert passed == generated >= CASES
    covered, links = map(int, re.findall(r"API Links: +(\d+) covered / (\d+) selected", done.stdout)[-1])
    assert covered == links >= 3
    assert slowest <= BOUND_S


def test_memory_stays_within_its_bound_through_them_too(watched: LocalServer, asked: set[str]) -> None:
    """Every task's and fleet's sessions and rollouts, which schemathesis asks for in any order."""
    if "everything" not in asked:
        pytest.skip("another process sent schemathesis' cases, to a server of its own")
    assert peak(watched) < RESIDENT, f"{peak(watched) / 1e6:.0f} MB"
