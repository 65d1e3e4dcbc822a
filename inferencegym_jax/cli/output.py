"""What the commands share: consoles, errors and exit codes, tables, JSON, progress.

Answers go to stdout, everything else (progress, notices, errors) to stderr, so that ``--json`` can be piped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

ANSWER_NO, BAD_INPUT = 1, 2
WIDTH = 140  # columns of an answer that goes to a file or a pipe

JSON = typer.Option("--json", help="Print JSON instead of tables.")


def answers() -> Console:
    """The console of stdout; wide where it is no terminal, so that nothing is folded in a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def notices() -> Console:
    """The console of stderr."""
    return Console(stderr=True, highlight=False)


def fail(message: object, code: int = BAD_INPUT) -> NoReturn:
    """Say on stderr what is wrong and exit."""
    notices().print(f"[bold red]error[/] {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(code)


def escape(text: str) -> str:
    """Text in which rich finds no markup."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


@contextmanager
def sentences(*more: type[Exception]) -> Iterator[None]:
    """Turn the library's errors about what was given, and ``more``, into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError, LookupError, *more) as error:
        fail(error)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr while something runs; nothing where stderr is no terminal."""
    console = notices()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN and infinity become null."""
    print(json.dumps(jsonable(value), indent=2))


def jsonable(value: Any) -> Any:
    """Python numbers, lists and dicts of any nest of NumPy and JAX values."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    array = np.asarray(value)
    if array.ndim:
        return [jsonable(item) for item in array.tolist()]
    number = array.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number


def headed(title: str, shown: Table) -> Group:
    """A table under a line of its own; rich's titles are folded to the width of the table."""
    return Group(Text(title, style="bold", no_wrap=True, overflow="ignore"), shown)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> Table:
    """A table: the first ``left`` columns to the left, numbers to the right."""
    result = Table(header_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        result.add_row(*(cell if isinstance(cell, str) else number(cell) for cell in row))
    return result


def number(value: Any) -> str:
    """A number with three or four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    value = float(value)
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def spread(mean: float, half_width: float) -> str:
    """A mean and the half-width of its 95 % interval."""
    return number(mean) if not math.isfinite(half_width) else f"{number(mean)} ± {half_width:.2g}"
