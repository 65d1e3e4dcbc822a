"""``python -m server.compiling``: the process that compiles for a server (``compiler``). It reads orders from its
standard input, one after the other, and writes what it made to its standard output, each as a pickle; it ends when its
input does."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import Any, BinaryIO

import jax
from jax.experimental.compilation_cache import compilation_cache

from inferencegym_jax.episodes.parallel import loop_bytes
from inferencegym_jax.episodes.single_step import step_bytes
from server.plans import plan_bytes


def plan_with_cache(order: Any) -> bytes:
    """``plan_bytes``; a plan is numbers, so that what computes it may come from JAX's folder of programs."""
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()  # JAX asks once whether there is one
    try:
        return plan_bytes(order)
    finally:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()


MAKERS = {"step": step_bytes, "loop": loop_bytes, "plan": plan_with_cache}


def read(orders: BinaryIO, pending: queue.Queue[tuple[str, bytes]]) -> None:
    """Hand orders on; when there can be no more, the server has ended or wants this process to: end at once."""
    try:
        while True:
            pending.put(pickle.load(orders))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)


def main() -> None:
    """Compile until the input ends. An answer is (True, the program's bytes) or (False, what went wrong)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which the server hears too
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed belongs into the server's log
    pending: queue.Queue[tuple[str, bytes]] = queue.Queue()
    threading.Thread(target=read, args=(sys.stdin.buffer, pending), name="orders", daemon=True).start()
    while True:
        kind, what = pending.get()
        try:
            answer: tuple[bool, Any] = True, MAKERS[kind](pickle.loads(what))
        except Exception:
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
