"""Programs that come into memory when they are called: compiled here, or loaded of what another process compiled.

What is loaded takes a multiple of its bytes (``LOADED``), and more while it is being loaded (``LOADING``). A process
that was told how much all of it may take together (``keep_within``) lets go of what was called least recently before it
loads more, and loads it again when it is called again.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax

from inferencegym_jax.episodes import portable

LOADED, LOADING = 25, 60
"""Times its bytes that a program takes in memory at most: loaded, and while it is being loaded."""
PAUSE_S = 0.01  # after a program was dropped, which stops all of Python's threads for up to 0.15 s: they go on


class Compiled:
    """A function of arrays, compiled for its one shape at the first call.

    As fast as ``jit``; but the program does not go with ``jax.clear_caches()``, so that a long-lived process can let go
    of what tracing left, which is several times as large.
    """

    def __init__(self, function: Callable[..., jax.Array], *shapes: jax.ShapeDtypeStruct):
        self._function, self._shapes = function, shapes
        self._lock = threading.Lock()
        self._program: Any = None

    def __call__(self, *arguments: Any) -> jax.Array:
        """The function's result."""
        return (self._program or self.load())(*arguments)

    def hold(self) -> object | None:
        """The compiled program; None where a call would wait for the compiler."""
        return self._program

    def load(self) -> Any:
        """The compiled program (``jax.stages.Compiled``), made where there is none yet."""
        with self._lock:
            if self._program is None:
                self._program = self.lowered().compile()
        return self._program

    def lowered(self) -> Any:
        """What is compiled (``jax.stages.Lowered``), traced anew."""
        return jax.jit(self._function).lower(*self._shapes)


class Together:
    """Programs that are loaded together, which somebody may hold by it.

    Args:
        programs: each a ``jax.stages.Compiled``.
    """

    __slots__ = ("__weakref__", "programs")

    def __init__(self, programs: tuple[Any, ...]):
        self.programs: tuple[Any, ...] = programs


class Loaded:
    """Programs that another process compiled and that go together, loaded at a call where they are not in memory.

    Args:
        read: gives their bytes, whenever they are loaded again.
        split: of these bytes, ``portable.to_bytes`` of each.
        made: what ``read`` gives, where it was asked already; kept until the first load.
    """

    def __init__(
        self, read: Callable[[], bytes | None], split: Callable[[bytes], Sequence[bytes]], made: bytes | None = None
    ):
        self._read, self._split, self._made = read, split, made
        self._lock = threading.Lock()  # who asks for the same programs waits, and finds them loaded
        self._kept: Together | None = None
        self._last: Callable[[], Together | None] = lambda: None  # those loaded last, while somebody holds them
        self.size: int = 0  # bytes of what was loaded last
        self.used: int = 0  # when they were called last, as a number that rises

    def get(self) -> tuple[Any, ...]:
        """The programs (``jax.stages.Compiled``). Who has them may go on calling them, also when their room was needed
        meanwhile."""
        together = self.hold() or self._last()
        return self.load() if together is None else together.programs

    def hold(self) -> Together | None:
        """What keeps the programs there for ``get`` for as long as somebody has it; None where they are not in memory,
        or are on their way out of it. To ask is to use them: others go before them."""
        self.used = next(_uses)
        return self._kept

    def let_go(self) -> None:
        """Drop them; the next call loads them again, or where somebody holds them, takes those."""
        with _loading:
            self._kept = None
            _in_memory.discard(self)

    def load(self) -> tuple[Any, ...]:
        """The programs, loaded where they are not in memory."""
        with self._lock:
            if (together := self._kept) is not None:
                return together.programs
            made, self._made = self._made, None
            if made is None:
                made = self._read()  # which may compile: others load theirs meanwhile
            if made is None:
                raise RuntimeError("a program that another process compiled cannot be had from it any more")
            pieces = self._split(made)
            del made
            with _loading:
                self.size = sum(map(len, pieces))
                _let_go_for(self.size)
                _before()
                together = Together(tuple(map(portable.from_bytes, pieces)))
                self._kept, self._last = together, weakref.ref(together)
                _in_memory.add(self)
                _after()
            return together.programs


class Part:
    """One program of several that are loaded together.

    Args:
        whole: all of them.
        index: which.
    """

    def __init__(self, whole: Loaded, index: int):
        self._whole, self._index = whole, index

    def __call__(self, *arguments: Any) -> Any:
        """The program's results, loaded where it is not in memory."""
        return self._whole.get()[self._index](*arguments)

    def hold(self) -> object | None:
        """See ``Loaded.hold``."""
        return self._whole.hold()

    def load(self) -> Any:
        """The program (``jax.stages.Compiled``), loaded where it is not in memory."""
        return self._whole.load()[self._index]


def _nothing() -> None:
    pass


_loading = threading.RLock()  # loading and letting go: a load takes most while it lasts, so there is one at a time
_uses = itertools.count(1)
_in_memory: weakref.WeakSet[Loaded] = weakref.WeakSet()
_room: int | None = None
_before: Callable[[], None] = _nothing
_after: Callable[[], None] = _nothing


def keep_within(room: int | None, before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing) -> None:
    """Bound what loaded programs take together: before one is loaded, those that were called least recently go until it
    fits, or until it is alone.

    Args:
        room: bytes, counted as ``LOADED`` times the bytes of what is loaded and ``LOADING`` times those of what is
            being loaded; None: no bound.
        before: called before every load, when others have gone.
        after: called after every load. Neither may load programs.

    Raises:
        ValueError: a room below 1.
    """
    global _room, _before, _after
    if room is not None and room < 1:
        raise ValueError(f"room = {room}: must be at least 1, or None")
    with _loading:
        _room, _before, _after = room, before, after


def _let_go_for(size: int) -> None:
    """Make room for so many bytes that are to be loaded."""
    if _room is None:
        return
    oldest_first = sorted(_in_memory, key=lambda one: one.used)
    taken = LOADING * size + LOADED * sum(one.size for one in oldest_first)
    for one in oldest_first:
        if taken <= _room:
            return
        taken -= LOADED * one.size
        one.let_go()
        time.sleep(PAUSE_S)
