"""The options of a spare engine, which ``control`` and ``trial`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferencegym_jax.cli.output import fail

if TYPE_CHECKING:
    from inferencegym_jax.live.capacity.settings import SpareSettings

SpareUrl = Annotated[
    str | None, typer.Option(help="root URL of a second engine, which the policy's second-GPU knob starts and stops")
]
StartCmd = Annotated[
    str | None,
    typer.Option(
        help="shell command that starts the spare: it stays in the foreground, or ends with 0 once the start is under "
        "way and --stop-cmd ends it"
    ),
]
StopCmd = Annotated[
    str | None, typer.Option(help="shell command that stops the spare, also where nothing runs; ends with 0")
]
WakePath = Annotated[str | None, typer.Option(help="instead of commands: POST there wakes the spare (vLLM: /wake_up)")]
SleepPath = Annotated[str | None, typer.Option(help="and POST there puts it to sleep (vLLM: /sleep?level=1)")]
HealthPath = Annotated[str | None, typer.Option(help="GET there answers 200 where the spare serves; default: /health")]
BesideSeconds = Annotated[
    float | None,
    typer.Option(
        help="of each of six slices in which it is measured what the two engines cost each other, for the prediction; "
        "default: 5; 0: they share nothing"
    ),
]
CalibrationRuns = Annotated[
    int | None,
    typer.Option(
        help="of a --scenario: peaks of days (second-instance, to both engines) or turns of both kinds (drift) that no "
        "policy is sent, sent before anything is foretold, for how long iterations take then; default: 2; 0: none"
    ),
]
Lease = Annotated[float | None, typer.Option(help="seconds for which the spare is kept at least; default: 60")]
StartTimeout = Annotated[
    float | None, typer.Option(help="seconds from a start to the first healthy answer, at most; default: 600")
]
StopTimeout = Annotated[float | None, typer.Option(help="seconds of a stop, at most; default: 60")]


def spare_of(url: str | None, options: Mapping[str, Any]) -> SpareSettings | None:
    """The spare that the options describe; None where there is none.

    Args:
        url: of ``--spare``.
        options: fields of ``SpareSettings``; None where an option was not given.

    Raises:
        ValueError: options that contradict each other, or a value that cannot be.
    """
    from inferencegym_jax.live.capacity.settings import SpareSettings

    settings = {name: value for name, value in options.items() if value is not None}
    if url is None:
        if settings:
            name = min(settings)
            flag = name.removesuffix("_s").replace("_", "-")
            fail(f"--{flag} {settings[name]}: says how a spare engine is run; name one with --spare")
        return None
    return SpareSettings(url, **settings)
