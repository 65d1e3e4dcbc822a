"""Options that several commands take, the console of what is not an answer, and how their text becomes a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from inferencegym_jax.policies.knob_text import numbers
from inferencegym_jax.traffic.request_log import RequestLog, load_trace
from training.config import TrainConfig, from_mapping, load_config, task_config
from training.tables import screen

RUNS = Path("runs")

TASK_HELP = "Number or name of a task; `inferencegym tasks` lists them."
Task = Annotated[str, typer.Option("--task", "-t", help=TASK_HELP)]
Table = Annotated[Path | None, typer.Option(help="A latency table of your own (parquet or CSV).")]
Trace = Annotated[
    Path | None,
    typer.Option(
        help="A request log of your own (docs/request_logs.md), replayed open-loop in "
        "place of the task's traffic; objectives, knobs and reward stay the task's."
    ),
]
Settings = Annotated[
    list[str], typer.Option("--set", "-s", help="key=value of any config field (training/config.py); may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

console = screen(stderr=True)


def task_of(text: str) -> int | str:
    """A task's number or name from the command line."""
    return int(text) if text.isdigit() else text


def own_files(
    table: Path | None,
    trace: Path | None,
    unit: str | None = None,
    columns: str | None = None,
    start: str | None = None,
    end: str | None = None,
    last: str | None = None,
) -> dict[str, str | None]:
    """One's own table and log, and how to read it, as a config names them.

    Raises:
        ValueError: the log is a pipe, which can be read once only.
    """
    if trace is not None and trace.exists() and not trace.is_file():
        raise ValueError(f"trace = {str(trace)!r}: training reads its log several times; write the pipe into a file")
    reading = {"unit": unit, "columns": columns, "start": start, "end": end, "last": last}
    files = {name: None if path is None else str(path) for name, path in (("table", table), ("trace", trace))}
    return files | {f"trace_{name}": value for name, value in reading.items()}


def own_log(
    trace: Path | None,
    unit: str | None,
    columns: str | None,
    start: str | None,
    end: str | None,
    last: str | None,
) -> RequestLog | None:
    """One's own log, read; None where none is given.

    Raises:
        ValueError, FileNotFoundError: see ``load_trace``.
    """
    if trace is None:
        return None
    return load_trace(trace, unit, columns=columns, start=start, end=end, last=last)


def fail(error: Exception) -> typer.Exit:
    """Say what is wrong, without a traceback."""
    console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


def set_entries(settings: list[str], form: str = "key=value") -> dict[str, str]:
    """What ``--set key=value`` says, key by key.

    Raises:
        ValueError: an entry without "="; ``form`` is what it must be.
    """
    entries: dict[str, str] = {}
    for item in settings:
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--set {item!r}: must be {form}")
        entries[key.strip()] = value.strip()
    return entries


def number_entries(settings: list[str]) -> dict[str, float]:
    """What ``--set name=number`` says, name by name.

    Raises:
        ValueError: an entry without "=", or whose value is no number.
    """
    return numbers(set_entries(settings, "name=value"), "--set")


def configured(task: str | None, config: Path | None, settings: list[str], changes: dict[str, Any]) -> TrainConfig:
    """The config of a command: a file's or the task's own, then ``--set key=value``, then options."""
    base = load_config(config) if config else task_config(task_of(task or "1"))
    if config and task is not None:
        base = base.replace(task=task_of(task))
    entries: dict[str, Any] = dict(set_entries(settings))
    entries |= {key: value for key, value in changes.items() if value is not None}
    return from_mapping(entries, base)
