"""Compiled programs in files: found again by what they were made of, once each, and never half of one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from inferencegym_jax.episodes import kept, portable

TWICE = """
import sys
import jax, jax.numpy as jnp
from inferencegym_jax.episodes import portable
factor = float(sys.argv[1])
lowered = jax.jit(lambda x: factor * x).lower(jax.ShapeDtypeStruct((3,), jnp.float32))
made = portable.compiled(lowered)
print(portable.from_bytes(made)(jnp.arange(3.0)).tolist())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = kept.folder()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    yield tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", before)


def test_what_is_written_is_read_and_equal_bytes_are_one_file(folder: Path) -> None:
    assert kept.read(b"a") is None
    kept.write(b"a", b"program")
    kept.write(b"b", b"program")
    assert kept.read(b"a") == kept.read(b"b") == b"program" and kept.read(b"c") is None
    assert sorted(path.read_bytes() == b"program" for path in folder.iterdir()) == [False, False, True]


def test_half_a_file_or_none_is_nothing(folder: Path) -> None:
    kept.write(b"a", b"program")
    (content,) = (path for path in folder.iterdir() if path.read_bytes() == b"program")
    content.write_bytes(b"prog")
    assert kept.read(b"a") is None
    content.unlink()
    assert kept.read(b"a") is None
    kept.write(b"a", b"program")
    assert kept.read(b"a") == b"program"


def test_what_is_read_is_marked_as_used(folder: Path) -> None:
    kept.write(b"a", b"program")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    kept.read(b"a")
    assert all(path.stat().st_mtime > 1 for path in folder.iterdir())


def test_without_a_folder_nothing_is_kept() -> None:
    before = kept.folder()
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        kept.write(b"a", b"program")
        assert kept.read(b"a") is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_same_program_is_compiled_once_by_all_processes(folder: Path) -> None:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_ENABLE_COMPILATION_CACHE": "false"}

    def run(factor: str) -> tuple[str, set[str]]:
        command = [sys.executable, "-c", TWICE, factor]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip(), {path.name for path in folder.iterdir()}

    first, files = run("2.0")
    assert first == "[0.0, 2.0, 4.0]" and len(files) == 2
    assert run("2.0") == (first, files)
    other, more = run("3.0")
    assert other == "[0.0, 3.0, 6.0]" and files < more


def test_a_folder_that_cannot_be_written_to_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file")
    monkeypatch.setattr(portable, "to_bytes", lambda program: b"program")
    lowered = jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((3,), "float32"))
    with caplog.at_level(logging.WARNING):
        assert portable.compiled(lowered) == b"program"
    assert "cannot be kept" in caplog.text
