"""What every reader of a request log shares: errors, a block of rows, options, and how a message quotes a cell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from inferencegym_jax.models import shown

Column: TypeAlias = Any  # a pyarrow array; pyarrow ships no types

UNITS: dict[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
STATED_UNITS = UNITS | {"min": 60.0, "h": 3600.0}  # that a column's name may say
ROLES = ("time", "prompt", "output")
MOST_TOKENS = 1e8
LONGEST_VALUE = 40  # characters of a cell that a message quotes; longer ones may be somebody's prompt
WORD = re.compile(r"[A-Za-z/<>_.-]{0,20}")  # nothing with digits or an @, which may be a key or an address
NUMBER = re.compile(r"[+-]?[\d.,]+(?:[eE][+-]?\d+)?%?")
DATE_LIKE = re.compile(r"[\d\-/.:,+ TZUCGMAP]+")
DURATION = re.compile(r"(\d+(?:\.\d*)?)\s*(s|sec|m|min|h|d|w)")
DURATIONS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class TraceError(ValueError):
    """A request log that cannot be used; the message names file, row, column and what is wanted."""


class Block(NamedTuple):
    """Some consecutive rows of a log."""

    times: np.ndarray  # float64[rows], seconds; of an unfinished reading, in the log's own unit
    prompts: np.ndarray  # float64[rows], tokens
    outputs: np.ndarray  # float64[rows], tokens
    place: Callable[[int], str]  # what a message calls the block's row i: "line 17"


@dataclass(frozen=True)
class ReadOptions:
    """How to read a log where it does not say so itself; hashable.

    Attributes:
        unit: of its times, "s", "ms", "us" or "ns"; None: found.
        columns: (role, the columns that are added up for it) of "time", "prompt", "output"; the others are found.
        start, end: what lies before and from there on is left out: seconds since the log's first request, a duration
            ("2h", "3d"), or a date and time (UTC where it names no zone).
        last: the last so many seconds, or a duration, only.
    """

    unit: str | None = None
    columns: tuple[tuple[str, tuple[str, ...]], ...] = ()
    start: str | float | None = None
    end: str | float | None = None
    last: str | float | None = None

    def __post_init__(self) -> None:
        if self.unit is not None and self.unit not in UNITS:
            raise ValueError(f"unit = {self.unit!r}: must be one of {', '.join(UNITS)}")
        if self.last is not None and (self.start is not None or self.end is not None):
            raise ValueError("last together with start or end (--last with --from or --to): give one or the other")
        bounds = {
            name: moment(name, value, dates=name != "last")
            for name in ("start", "end", "last")
            if (value := getattr(self, name)) is not None
        }
        if bounds.get("last") == (0.0, False):
            raise ValueError(f"last = {self.last!r}: must be above 0, or nothing of the log is left")
        if "start" in bounds and "end" in bounds:
            (first, dated), (behind, also) = bounds["start"], bounds["end"]
            if dated == also and first >= behind:
                raise ValueError(
                    f"start = {self.start!r} is not before end = {self.end!r} (--from, --to): nothing lies between"
                )

    @property
    def windowed(self) -> bool:
        """Whether only a part of the log is wanted."""
        return self.start is not None or self.end is not None or self.last is not None

    @classmethod
    def of(
        cls,
        unit: str | None = None,
        columns: str | Mapping[str, str | Sequence[str]] | None = None,
        start: str | float | None = None,
        end: str | float | None = None,
        last: str | float | None = None,
    ) -> ReadOptions:
        """The options of arguments as people give them; ``columns`` as ``"time=ts,prompt=in+cached,output=out"`` or a
        mapping of roles to a column or several.

        Raises:
            ValueError: unknown unit or role, a role without a column, or a window that is none.
        """
        return cls(unit, columns_of(columns), start, end, last)


def columns_of(
    columns: str | Mapping[str, str | Sequence[str]] | None,
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """``columns`` of ``ReadOptions.of`` as a tuple.

    Raises:
        ValueError: see there.
    """
    if columns is None or columns == "":
        return ()
    if isinstance(columns, str):
        pairs: list[tuple[str, str]] = []
        for part in columns.split(","):
            role, equals, name = part.partition("=")
            if not equals:
                raise ValueError(f"columns: {quoted(part)} is no role=column; give time=...,prompt=...,output=...")
            pairs.append((role, name))
    else:
        pairs = [(role, _joined(role, names)) for role, names in columns.items()]
    result: dict[str, tuple[str, ...]] = {}
    for role, name in pairs:
        role = role.strip().lower()
        if role not in ROLES:
            raise ValueError(f"columns: {quoted(role)} is no role; must be one of {', '.join(ROLES)}")
        names = tuple(part.strip() for part in name.split("+"))
        if not all(names):
            raise ValueError(f"columns: {role} names no column; give {role}=NAME, or {role}=A+B for their sum")
        if role in result:
            raise ValueError(f"columns: {role} is given twice")
        taken = next((n for i, n in enumerate(names) if n in names[:i] or any(n in r for r in result.values())), None)
        if taken is not None:
            raise ValueError(f"columns: {quoted(taken)} is given twice; a column is counted once")
        result[role] = names
    return tuple(result.items())


def _joined(role: str, names: Any) -> str:
    if isinstance(names, str):
        return names
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"columns: {role} is {shown(names)}; must be the name of a column or several names")
    return "+".join(names)


def moment(name: str, value: str | float, dates: bool = True) -> tuple[float, bool]:
    """(seconds, whether they are since 1970) of a bound of a window.

    Raises:
        ValueError: neither a number of seconds, nor a duration, nor (with ``dates``) a date.
    """
    text = str(value).strip()
    match = DURATION.fullmatch(text)
    try:
        seconds = float(match[1]) * DURATIONS[match[2]] if match else float(text)
    except ValueError:
        seconds = None
    if seconds is not None:
        if not 0 <= seconds < np.inf:
            raise ValueError(f"{name} = {value!r}: must be a finite number of seconds of at least 0")
        return seconds, False
    if dates:
        try:
            date = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp(), True
    wanted = "seconds, a duration like 90m, 2h or 3d" + (", or a date like 2026-03-01T10:00" if dates else "")
    raise ValueError(f"{name} = {quoted(value)}: must be {wanted}")


def plain_number(text: str | None) -> bool:
    """Whether a cell is a number."""
    try:
        float(text or "")
    except ValueError:
        return False
    return True


def quoted(value: object) -> str:
    """A cell as a message shows it: never a long text, which may be somebody's prompt."""
    if value is None or value == "":
        return "nothing"
    text = str(value)
    if len(text) > LONGEST_VALUE or not any(form.fullmatch(text.strip()) for form in (WORD, NUMBER, DATE_LIKE)):
        return f"a text of {len(text):,} characters"
    return repr(value)


def named(columns: Iterable[str]) -> str:
    """Names of columns as a message shows them, cut to about 200 characters."""
    shown: list[str] = []
    names = list(columns)
    for name in names:
        short = repr(name if len(name) <= LONGEST_VALUE else name[: LONGEST_VALUE - 3] + "...")
        if sum(map(len, shown)) + len(short) > 160:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(short)
    return ", ".join(shown) or "none"
