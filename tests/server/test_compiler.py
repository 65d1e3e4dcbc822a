"""The child process that compiles for a server: it answers, ends when it is idle, and is replaced when it dies."""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.episodes import kept
from inferencegym_jax.episodes.single_step import SingleStep
from inferencegym_jax.policies.reactive_plans import plan_for
from server import compiler as module
from server import plans
from server.compiler import Compiler, CompilerFailed, Files

pytestmark = pytest.mark.ci


@pytest.fixture
def compiler() -> Iterator[Compiler]:
    """One that keeps nothing in a folder, where the suite's processes keep what they compiled."""
    before = kept.folder()
    jax.config.update("jax_compilation_cache_dir", None)
    made = Compiler()
    yield made
    made.end()
    jax.config.update("jax_compilation_cache_dir", before)


def is_running(compiler: Compiler) -> bool:
    return compiler._child is not None and compiler._child.poll() is None


def wait_ended(compiler: Compiler) -> None:
    end = time.monotonic() + 30
    while is_running(compiler):
        assert time.monotonic() < end, "the child did not end"
        time.sleep(0.05)


def test_it_compiles_ends_when_idle_and_is_there_again(compiler: Compiler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "IDLE_S", 0.2)
    env = SingleStep(*ig.make(1)).env
    first = compiler._ask("step", env)
    wait_ended(compiler)
    assert compiler._ask("step", env) == first and not is_running(compiler)  # kept, and not compiled again
    compiler._files = Files()
    assert compiler._ask("step", env) and is_running(compiler)


def test_so_many_programs_are_kept_and_no_file_stays():
    files = Files(2)
    for name in (b"a", b"b"):
        files.keep(name, 2 * name)
    assert files.read(b"a") == b"aa"
    files.keep(b"c", b"cc")
    assert [files.read(name) for name in (b"a", b"b", b"c", b"d")] == [b"aa", None, b"cc", None]
    assert files.read(b"a") == b"aa"  # more than once


@pytest.mark.parametrize("folder", [False, True])
def test_a_program_that_cannot_be_kept_is_made_all_the_same(
    compiler: Compiler, folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A disk that is full, a system of files that is only read."""
    if folder:
        (tmp_path / "file").touch()
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file" / "folder"))
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setattr(compiler, "_order", lambda order: b"made")
    with caplog.at_level(logging.WARNING, "server"):
        assert [compiler._ask("step", 0) for _ in range(2)] == [b"made"] * 2
    assert "cannot be kept" in caplog.text


def test_an_order_over_which_it_ends_fails_and_the_next_is_answered(compiler: Compiler):
    compiler.start()
    child = compiler._child
    assert child is not None
    env = SingleStep(*ig.make(1)).env
    killer = threading.Timer(0.5, child.kill)  # while it imports what it needs
    killer.start()
    with pytest.raises(CompilerFailed, match="ended with status -9"):
        compiler._ask("step", env)
    with pytest.raises(CompilerFailed, match="Traceback"):  # a new one, that says what is wrong with the order
        compiler._ask("step", 0)
    assert is_running(compiler)


def test_what_it_made_is_kept_and_taken_from_there(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compiler.start()
    assert not is_running(compiler)  # perhaps everything is there
    order = pickle.dumps(("step", pickle.dumps("what")))
    kept.write(module._version() + order, b"made before")
    assert compiler._ask("step", "what") == b"made before" and not is_running(compiler)
    made = iter((b"another", b"not asked for again"))
    monkeypatch.setattr(compiler, "_order", lambda order: next(made))
    assert [compiler._ask("step", "else") for _ in range(2)] == [b"another"] * 2


def test_programs_are_told_apart_by_what_sources_and_data_say_not_by_when_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A fresh clone of the same commit has everything written anew."""
    (tmp_path / "numbers.csv").write_text("1")
    monkeypatch.setattr(module, "data_path", lambda name: tmp_path / name)
    version = module._version.__wrapped__
    first = version()
    os.utime(tmp_path / "numbers.csv", (0, 0))
    assert version() == first
    (tmp_path / "numbers.csv").write_text("2")
    assert version() != first


def test_what_cannot_be_sent_is_left_to_the_server_and_said(compiler: Compiler, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "server"):
        assert compiler._ask("loop", lambda: None) is None
    assert "in the server's own process" in caplog.text and not is_running(compiler)


def test_its_plans_are_the_librarys(compiler: Compiler):
    for problem in (ig.problem(1), ig.problem(4, config={"slo_tpot_ms": 40.0})):
        made, own = compiler.plan(problem), plan_for(problem.table, problem.params)
        assert jax.tree.structure(made) == jax.tree.structure(own)
        for mine, librarys in zip(jax.tree.leaves(made), map(np.asarray, jax.tree.leaves(own)), strict=True):
            assert mine.dtype == librarys.dtype and np.array_equal(mine, librarys)


def test_a_plan_that_there_is_none_of_is_refused_in_words(compiler: Compiler, monkeypatch: pytest.MonkeyPatch):
    def none_fits(*order: object) -> None:
        raise ValueError("reactive: no action fits")

    monkeypatch.setattr(plans, "plan_for", none_fits)
    monkeypatch.setattr(compiler, "_order", lambda order: plans.plan_bytes(pickle.loads(pickle.loads(order)[1])))
    with pytest.raises(ValueError, match="no action fits"):
        compiler.plan(ig.problem(1))


def test_plans_of_configs_do_not_take_the_programs_places(compiler: Compiler, monkeypatch: pytest.MonkeyPatch):
    orders: list[bytes] = []

    def answer(order: bytes) -> bytes:
        orders.append(order)
        return pickle.dumps("none")

    monkeypatch.setattr(compiler, "_order", answer)
    for config, asked in (({}, 1), ({"slo_ttft_ms": 250.0}, 2)):
        problem = ig.problem(1, config=config)
        orders.clear()
        for _ in range(2):
            with pytest.raises(ValueError, match="none"):
                compiler.plan(problem)
        assert len(orders) == asked


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_it_ends_with_its_server(compiler: Compiler):
    compiler.start()
    child = compiler._child
    assert child is not None and child.stdin is not None
    time.sleep(0.1)
    child.stdin.close()  # as when the server is killed
    assert child.wait(60) == 0
