"""Has the server's programs compiled by a child process, which ends when it has nothing more to do.

Tracing and compiling a step take a gigabyte and leave hundreds of megabytes behind; the program itself is one or two.
So the server loads only what its child (``compiling``) made. Where JAX keeps compiled programs in a folder
(JAX_COMPILATION_CACHE_DIR), what the child made is kept there too, and the next server starts without one. Elsewhere it
is kept in files without a name while the server runs, so that a program that it let go of is only loaded again.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import inferencegym_jax as ig
import server
from inferencegym_jax.episodes import kept, parallel, single_step
from inferencegym_jax.policies.reactive_control import ReactivePlan
from inferencegym_jax.table.latency_table import data_path
from server.plans import plan_of, plan_order, planned_here

log = logging.getLogger("server")
IDLE_S = 2.0  # after so long without an order the child ends, and its memory is the system's again
END_S = 10.0  # how long it may take to end
CHILD = {
    # a program that JAX took from its folder cannot be made bytes of again
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # where in Python an operation was traced stands in the program, and takes memory wherever that is loaded
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
}
FILES_KEPT = 64  # programs of a server without a folder for them, one to four megabytes each


class CompilerFailed(RuntimeError):
    """The child could not compile a program, or ended over it."""


@functools.cache
def _version() -> bytes:
    """What decides a program beside its order: sources and data, and what they are compiled with (``kept``)."""
    state = hashlib.sha256(kept.surroundings())
    data = data_path("calibration.json").parent
    for folder in (*(Path(str(package.__file__)).parent for package in (ig, server)), data):
        for path in sorted(folder.rglob("*")):
            if path.suffix == ".py" or (folder == data and path.is_file()):
                state.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return state.digest()


class Files:
    """Programs in files without a name: the disk holds them, and no longer than this process runs, however it ends.

    Args:
        most: how many; the least recently used goes.
    """

    def __init__(self, most: int = FILES_KEPT):
        self._most = most
        self._files: OrderedDict[bytes, IO[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, order: bytes) -> bytes | None:
        """What was kept of an order; None: nothing."""
        with self._lock:
            file = self._files.get(order)
            if file is None:
                return None
            self._files.move_to_end(order)
            file.seek(0)
            return file.read()

    def keep(self, order: bytes, made: bytes) -> None:
        """Keep what was made of an order.

        Raises:
            OSError: there is no folder for temporary files, or no space.
        """
        file = tempfile.TemporaryFile(prefix="inferencegym-")
        try:
            file.write(made)
            file.flush()
        except OSError:
            file.close()
            raise
        with self._lock:
            self._files[order] = file
            while len(self._files) > self._most:
                self._files.popitem(last=False)[1].close()


class Compiler:
    """The child process, started when it is needed. Orders wait for one another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._end: threading.Timer | None = None
        self._files = Files()

    def install(self) -> None:
        """From now on whatever this process steps and rolls out is compiled by the child."""
        single_step.compile_with(lambda env: self._ask("step", env))
        parallel.compile_with(lambda loop: self._ask("loop", loop))

    def plan(self, problem: ig.Problem) -> ReactivePlan:
        """The reactive controller's plan of a task, made by the child.

        Raises:
            ValueError: see ``reactive_for``.
            CompilerFailed: see ``_ask``.
        """
        # there is no end of configs, and those that clients think of would take the programs' places
        made = self._ask("plan", plan_order(problem), keeps=not problem.config)
        return planned_here(problem) if made is None else plan_of(made)

    def start(self) -> None:
        """Start the child ahead of its first order; where programs are kept only with that order."""
        if kept.folder() is None:
            with self._lock:
                self._running()

    def end(self) -> None:
        """End the child, also over an order, which then fails."""
        child = self._child
        if child is not None:
            child.kill()
            child.wait(END_S)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._child is None or self._child.poll() is not None:
            paths = [str(Path(str(server.__file__)).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._child = subprocess.Popen(
                [sys.executable, "-m", "server.compiling"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **CHILD, "PYTHONPATH": os.pathsep.join(paths)},
            )
        return self._child

    def _ask(self, kind: str, what: Any, keeps: bool = True) -> bytes | None:
        """What the child makes of an order; None of one that cannot be sent to it, a policy of one's own for instance.

        Args:
            kind: of ``compiling.MAKERS``.
            what: the order.
            keeps: keep what it makes, for the next time.

        Raises:
            CompilerFailed: it could not, or ended over it.
        """
        try:
            order = pickle.dumps((kind, pickle.dumps(what)))
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            log.warning("compiled in the server's own process, whose memory that costs: %s", error)
            return None
        if not keeps:
            return self._order(order)
        in_folder = kept.folder() is not None
        key = _version() + order if in_folder else hashlib.sha256(order).digest()
        read, write = (kept.read, kept.write) if in_folder else (self._files.read, self._files.keep)
        return kept.read_or_make(key, lambda: self._order(order), read, write)

    def _order(self, order: bytes) -> bytes:
        with self._lock:
            child = self._running()
            assert child.stdin is not None and child.stdout is not None
            try:
                child.stdin.write(order)
                child.stdin.flush()
                good, made = pickle.load(child.stdout)
            except (EOFError, OSError) as error:
                raise CompilerFailed(f"the compiler's process ended with status {child.wait(END_S)}") from error
            self._end = threading.Timer(IDLE_S, self._end_if_idle, (child,))
            self._end.daemon = True
            self._end.start()
        if not good:
            raise CompilerFailed(made)
        return made

    def _end_if_idle(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._child is child and self._end is not None:
                assert child.stdin is not None
                child.stdin.close()
                child.wait(END_S)
                self._child = self._end = None
