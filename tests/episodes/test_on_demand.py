"""Loaded programs are bounded: what was called least goes first, before more is loaded, and comes again when called."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from inferencegym_jax.episodes import on_demand, portable
from inferencegym_jax.episodes.on_demand import Loaded, Part, keep_within

SIZE = 10  # bytes of a program, 20 in memory and 50 while it is loaded
WAIT_S = 20


class Program:
    """In the place of one of JAX's: gives its bytes."""

    def __init__(self, data: bytes):
        self.data = data

    def __call__(self, more: bytes = b"") -> bytes:
        return self.data + more


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The first letter of whatever was loaded, in order."""
    order: list[str] = []

    def load(data: bytes) -> Program:
        order.append(data.decode()[0])
        return Program(data)

    monkeypatch.setattr(portable, "from_bytes", load)
    monkeypatch.setattr(on_demand, "_in_memory", weakref.WeakSet[Loaded]())
    monkeypatch.setattr(on_demand, "LOADED", 2)
    monkeypatch.setattr(on_demand, "LOADING", 5)
    yield order
    keep_within(None)


def alone(made: bytes) -> list[bytes]:
    return [made]


def program(name: str, size: int = SIZE, read: Callable[[], bytes | None] | None = None) -> Loaded:
    return Loaded(read or (lambda: size * name.encode()), alone)


def there(*programs: Loaded) -> str:
    """Of each whether it is in memory, without being asked, which counts as a call."""
    return "".join("." if one._kept is None else "x" for one in programs)


def test_nothing_goes_where_nothing_was_bounded(loads: list[str]):
    programs = [program(name) for name in "abcdefgh"]
    for one in programs * 2:
        one.get()
    assert there(*programs) == 8 * "x" and "".join(loads) == "abcdefgh"


def test_what_was_called_least_recently_goes_and_comes_again(loads: list[str]):
    keep_within(90)
    a, b, c, d = (program(name) for name in "abcd")
    for one, name in zip((a, b, c, a, d), "abcad", strict=True):  # d needs 50: two others have room beside that
        assert one.get()[0]() == SIZE * name.encode()
    assert there(a, b, c, d) == "x.xx"
    assert b.get()[0]() == SIZE * b"b" and "".join(loads) == "abcdb"
    assert there(a, b, c, d) == "xx.x"  # c, as a was called after it


def test_to_hold_one_is_to_use_it(loads: list[str]):
    keep_within(90)
    a, b, c, d = (program(name) for name in "abcd")
    for one in (a, b, c):
        one.get()
    assert a.hold() and d.hold() is None
    d.get()
    assert there(a, b, c, d) == "x.xx"


def test_what_is_held_is_not_loaded_again_and_goes_when_it_is_held_no_more(loads: list[str]):
    """A server's event loop sees that a program is there, and calls it: a thread that needs room comes between."""
    keep_within(60)
    a, b = program("a"), program("b")
    a.get()
    held = a.hold()
    b.get()
    assert there(a, b) == ".x" and a.get()[0]() == SIZE * b"a" and loads == ["a", "b"]
    assert a.hold() is None  # or it would be held again and again, and take room that was given away
    executable = weakref.ref(a.get()[0])
    del held
    assert executable() is None
    assert a.get()[0]() == SIZE * b"a" and loads == ["a", "b", "a"]


def test_others_go_before_it_is_loaded_and_one_that_is_too_large_is_loaded_alone(
    loads: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Two that are never needed together must not be in memory together, not for a moment."""
    seen: list[str] = []
    keep_within(90, before=lambda: seen.append("before"), after=lambda: seen.append("after"))
    a, b, large = program("a"), program("b"), program("l", 100)
    for one in (a, b):
        one.get()
    assert seen == ["before", "after"] * 2
    executables = [weakref.ref(one.get()[0]) for one in (a, b)]
    load = portable.from_bytes

    def watched(data: bytes) -> object:
        seen.append("".join("." if executable() is None else "x" for executable in executables))
        return load(data)

    monkeypatch.setattr(portable, "from_bytes", watched)
    assert large.get()[0](b"!") == 100 * b"l" + b"!"
    assert seen[4:] == ["before", "..", "after"] and there(a, b, large) == "..x"
    assert a.get()[0]() == SIZE * b"a" and there(a, b, large) == "x.."


def test_programs_that_go_together_come_and_go_together(loads: list[str]):
    keep_within(90)
    both = Loaded(lambda: b"rs", lambda made: [made[:1], made[1:]])
    reset, step = Part(both, 0), Part(both, 1)
    assert step.hold() is None and (reset(b"1"), step(b"2")) == (b"r1", b"s2")
    assert reset.hold() and step.hold() and loads == ["r", "s"]
    program("l", 100).get()
    assert reset.hold() is None and step.hold() is None
    step.load()
    assert reset.hold() and loads == ["r", "s", "l", "r", "s"]


def test_a_call_that_goes_on_when_it_was_let_go_of_ends_and_then_it_is_gone_for_good(loads: list[str]):
    keep_within(60)
    a, b = program("a"), program("b")
    (held,) = a.get()
    b.get()
    assert there(a, b) == ".x" and held(b"!") == SIZE * b"a" + b"!"
    executable = weakref.ref(held)
    del held
    assert executable() is None


def test_two_that_wait_for_the_same_one_have_it_loaded_once(loads: list[str]):
    begun, go = threading.Event(), threading.Event()
    reads: list[int] = []

    def read() -> bytes:
        reads.append(1)
        begun.set()
        assert go.wait(WAIT_S)
        return b"a"

    one, results = program("a", read=read), list[object]()
    threads = [threading.Thread(target=lambda: results.append(one.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(WAIT_S)
    go.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert reads == [1] and loads == ["a"]
    assert len(results) == 4 and all(result is results[0] for result in results)


def test_nobody_waits_while_another_one_is_compiled(loads: list[str]):
    begun, go = threading.Event(), threading.Event()

    def read() -> bytes:
        begun.set()
        assert go.wait(WAIT_S)
        return b"a"

    slow, quick = program("a", read=read), program("b")
    thread = threading.Thread(target=slow.get)
    thread.start()
    assert begun.wait(WAIT_S)
    quick.get()
    assert there(slow, quick) == ".x"
    go.set()
    thread.join(WAIT_S)
    assert there(slow, quick) == "xx"


def test_one_that_could_not_be_had_is_asked_for_again(loads: list[str]):
    answers: list[bytes | None | Exception] = [OSError("gone"), None, b"a"]

    def read() -> bytes | None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    one = program("a", read=read)
    with pytest.raises(OSError, match="gone"):
        one.get()
    with pytest.raises(RuntimeError, match="cannot be had"):
        one.get()
    assert one.get()[0]() == b"a" and answers == []


def test_bytes_that_cannot_be_loaded_are_read_again(loads: list[str], monkeypatch: pytest.MonkeyPatch):
    load = portable.from_bytes

    def only_good(data: bytes) -> object:
        if data == b"broken":
            raise ValueError("broken")
        return load(data)

    monkeypatch.setattr(portable, "from_bytes", only_good)
    keep_within(60)
    one = Loaded(lambda: b"a", alone, b"broken")
    with pytest.raises(ValueError, match="broken"):
        one.get()
    assert there(one) == "." and one.get()[0]() == b"a"


def test_what_nobody_can_call_any_more_takes_no_room(loads: list[str]):
    keep_within(90)
    a, b = program("a"), program("b")
    a.get()
    b.get()
    del b
    c = program("c")
    c.get()
    program("d").get()
    assert there(a, c) == "xx"


def test_a_room_below_one_is_refused():
    with pytest.raises(ValueError, match="room = 0"):
        keep_within(0)
