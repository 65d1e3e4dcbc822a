"""Compiled programs as bytes in the folder where JAX keeps its own (JAX_COMPILATION_CACHE_DIR), by what they were made
of, for every process of this machine and user.

``key -> read -> bytes``; ``key, bytes -> write``. Two kinds of files: what bytes a key has, by their digest, and the
bytes, once however many keys have them, so that a version that changes no program adds no megabytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

log: logging.Logger = logging.getLogger(__name__)
PREFIX = "inferencegym-"


def folder() -> str | None:
    """Where JAX keeps compiled programs; None: nowhere."""
    config: Any = jax.config
    return config.jax_compilation_cache_dir or None


@functools.cache
def surroundings() -> bytes:
    """What decides a program beside what it is compiled of: versions, flags of JAX and XLA, the processor."""
    flags = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_", "PJRT_"))}
    flags.pop("JAX_COMPILATION_CACHE_DIR", None)
    cpu = Path("/proc/cpuinfo")
    features = [line for line in cpu.read_text().splitlines() if line.startswith("flags")][:1] if cpu.exists() else []
    versions = [version(name) for name in ("jax", "jaxlib")]
    return repr((sorted(flags.items()), features, versions, platform.python_version())).encode()


def read(key: bytes) -> bytes | None:
    """What ``write`` kept of a key; None: nothing, or not any more. Marks it as used."""
    path = _names(key)
    if path is None:
        return None
    try:
        content = path.with_name(PREFIX + path.read_text())
        made = content.read_bytes()
    except OSError:
        return None
    if content.name != PREFIX + _digest(made):
        return None
    with contextlib.suppress(OSError):  # a folder that is only read
        os.utime(path)
        os.utime(content)
    return made


def write(key: bytes, made: bytes) -> None:
    """Keep what was made of a key; nothing where there is no folder.

    Raises:
        OSError: the folder cannot be written to, or is full.
    """
    path = _names(key)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = _digest(made)
    content = path.with_name(PREFIX + digest)
    if not content.is_file():
        _write_whole(content, made)
    _write_whole(path, digest.encode())


def read_or_make(
    key: bytes,
    make: Callable[[], bytes],
    read: Callable[[bytes], bytes | None] = read,
    write: Callable[[bytes, bytes], None] = write,
) -> bytes:
    """What is kept of a key, or else made and kept; where it cannot be kept it is there all the same, and is made again
    when it is asked for again, which the log says.

    Args:
        key: of ``read`` and ``write``.
        make: makes it.
        read: where it may be.
        write: keeps it; an ``OSError`` says that it cannot.
    """
    made = read(key)
    if made is None:
        made = make()
        try:
            write(key, made)
        except OSError as error:
            log.warning("a compiled program cannot be kept: %s", error)
    return made


def _names(key: bytes) -> Path | None:
    """The file that says which bytes a key has."""
    where = folder()
    return Path(where) / f"{PREFIX}key-{_digest(key)}" if where else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_whole(path: Path, made: bytes) -> None:
    """Write a file whole, or not at all: others may be reading and writing the same one."""
    part = path.with_name(f"{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        part.write_bytes(made)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
