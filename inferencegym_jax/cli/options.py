"""Arguments that several commands take, and how their text becomes values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferencegym_jax.cli.output import escape, fail, notices
from inferencegym_jax.policies.knob_text import numbers, pairs
from inferencegym_jax.tasks import CONFIG_KEYS, check_config

if TYPE_CHECKING:
    from inferencegym_jax.table import LatencyTable

Task = Annotated[str, typer.Option("--task", "-t", help="Number or name; `inferencegym tasks` lists them.")]
TableFile = Annotated[
    Path | None, typer.Option("--table", help="Latency table (parquet or CSV). Default: the shipped one.")
]
UNIT_HELP = "Unit of the log's times where they state none: s, ms, us or ns."
COLUMNS_HELP = "Columns of the log where their names do not tell: time=NAME,prompt=NAME+NAME,output=NAME."
FROM_HELP = "Read the log from here on: seconds or a duration since its first request (2h, 3d), or a date."
TO_HELP = "Read the log up to here, likewise."
LAST_HELP = "Read the log's last part only: 7d, 12h, seconds."
LogUnit = Annotated[str | None, typer.Option("--unit", help=UNIT_HELP)]
LogColumns = Annotated[str | None, typer.Option("--columns", help=COLUMNS_HELP)]
LogFrom = Annotated[str | None, typer.Option("--from", help=FROM_HELP)]
LogTo = Annotated[str | None, typer.Option("--to", help=TO_HELP)]
LogLast = Annotated[str | None, typer.Option("--last", help=LAST_HELP)]
Config = Annotated[
    str | None, typer.Option("--config", help=f"Overrides among {', '.join(CONFIG_KEYS)}: gamma=0.5,delta=0.2")
]
BaseMemory = Annotated[float, typer.Option(help="memory of weights and runtime, which no server tells")]


def say_doubts(table: LatencyTable) -> None:
    """Say on stderr where tables of this model, GPU and backend are not validated, or were not compared."""
    from inferencegym_jax.hardware.table_metadata import doubts

    for text in doubts(table.metadata, int(table.knob_defaults["quant_tier"])):
        notices().print(f"Note: {escape(text)}.", soft_wrap=True)


def task_of(text: str) -> int | str:
    """A task's number or name."""
    return int(text) if text.strip().isdigit() else text.strip()


def parse_slo(text: str) -> tuple[float, float, float]:
    """TTFT objectives "300", "300,2000" or "200,2000,none" (interactive, batch, best effort) in ms; missing ones are
    none."""
    values = []
    for part in text.split(","):
        word = part.strip().lower()
        try:
            value = math.inf if word in ("none", "inf") else float(word)
        except ValueError:
            value = math.nan
        if not value > 0:
            fail(f"--slo-ttft-ms {text!r}: {part!r} must be a number of milliseconds above 0, or none")
        values.append(value)
    if len(values) > 3:
        fail(f"--slo-ttft-ms {text!r}: at most three classes (interactive, batch, best effort)")
    first, second, third = (values + [math.inf] * 3)[:3]
    return first, second, third


def config_values(text: str | None) -> dict[str, float] | None:
    """``gamma=0.5`` as the overrides of a reset, checked.

    Raises:
        ValueError: see ``check_config``.
    """
    return None if text is None else check_config(numbers(pairs(text, "--config"), "--config"))
