"""Every command of the README runs in a fresh clone, in the clone's own environment, word for word.

One clone for all; each command is what ``page_commands`` reads off the page, so that one that is new and not placed
below fails at once. Takes about half an hour: ``make release``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.openai_server import completion, serve
from tests.tools.page_commands import ROOT, commands

RUN = {  # command -> words of what it prints, or a file that it leaves
    "make install": "Ready.",
    "make demo": "Figure: demo.png",
    "make notebook": "cells in",
    "inferencegym recommend --trace data/example_requests.csv --slo-ttft-ms 500 --memory-gb 40": "--max-num-seqs",
    "inferencegym table build --model meta-llama/Llama-3.1-70B --system H100 --tp 4 --out llama70b.parquet": "llama70b",
    "inferencegym plan --trace data/example_requests.csv --gpus 4 --slo-ttft-ms 2000 --slo-tpot-ms 100": "GPU",
    "python -m training train --task 3": "runs/task3-seed0",
    "make wheel": "dist/*.whl",
    "make docs": "site/index.html",
}
ALONE = {  # each in an environment of its own, as a library's user has
    "pip install .": "inferencegym_jax",
    "pip install '.[cli,gym]'": "inferencegym_jax, typer, gymnasium",
}
APART = {"make serve", "python inference.py", "inferencegym measure --base-url URL --model M"}
ELSEWHERE = {
    "git clone": "is the fixture here: git clone <this repository> inferencegym-jax && cd inferencegym-jax",
    "make test": "is what .ci/run runs in a fresh clone on every push; a quarter of an hour",
}


def said() -> set[str]:
    """The README's commands."""
    return {shlex.join((c.program, *c.words)) for c in commands("README.md") if "<" not in "".join(c.words)}


def test_every_command_of_the_readme_has_its_place() -> None:
    placed = {*RUN, *ALONE, *APART, *(one for one in ELSEWHERE if one != "git clone")}
    assert said() == placed


def environment(**more: str) -> dict[str, str]:
    dropped = ("PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    return {key: value for key, value in os.environ.items() if key not in dropped} | more


def shell(line: str, cwd: Path, timeout: float = 1200, **more: str) -> str:
    """What a reader's shell prints, after ``. .venv/bin/activate`` where there is one."""
    active = ". .venv/bin/activate && " if (cwd / ".venv/bin/activate").exists() else ""
    command = ["bash", "-c", active + line]
    done = subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """README's first line, and its ``make install``."""
    folder = tmp_path_factory.mktemp("reader")
    shell(f"git clone {ROOT} inferencegym-jax && cd inferencegym-jax", folder)
    said = shell("make install", folder / "inferencegym-jax")
    assert RUN["make install"] in said
    return folder / "inferencegym-jax"


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("line", [line for line in RUN if line != "make install"])
def test_it_runs(line: str, clone: Path) -> None:
    printed = shell(line, clone)
    left = RUN[line]
    assert left in printed or list(clone.glob(left)), printed[-2000:]


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("line", ALONE)
def test_the_library_installs(line: str, clone: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "own"], check=True)
    activate = f". {tmp_path}/own/bin/activate && "
    shell(activate + line, clone, PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    shell(activate + f"python -c 'import {ALONE[line]}'", tmp_path)


@contextlib.contextmanager
def running(line: str, cwd: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command that stays, and everything that it started, until the block ends."""
    process = subprocess.Popen(
        ["bash", "-c", ". .venv/bin/activate && exec " + line],
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(900)
def test_make_serve_serves_the_page(clone: Path) -> None:
    """On another port than the page says: that one may be taken here."""
    port = free_port()
    with running("make serve", clone, PORT=str(port)):
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    assert answer.status == 200 and b"InferenceGym" in answer.read()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError("the server did not start")


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_a_language_model_plays_every_task(clone: Path) -> None:
    """``python inference.py`` against an endpoint that always answers the same."""
    answer = completion(arguments={"batch_size": 64})
    with serve(lambda body, before: (200, answer)) as (url, bodies, _):
        printed = shell("python inference.py", clone, OPENAI_BASE_URL=url, MODEL="m", OPENAI_API_KEY="k")
    assert bodies and "static-uniform" in printed


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_measure_leaves_a_table_of_an_engine(clone: Path) -> None:
    """URL and M are the reader's; here those of a small engine that streams."""
    with running("python -m tests.live.fake_engine", clone) as engine:
        assert engine.stdout is not None
        url = f"http://127.0.0.1:{int(engine.stdout.readline())}"
        time.sleep(1)
        (clone / "measured.parquet").unlink(missing_ok=True)
        printed = shell(f"inferencegym measure --base-url {url} --model fake", clone)  # M of that engine
    assert (clone / "measured.parquet").is_file(), printed[-2000:]
