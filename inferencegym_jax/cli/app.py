"""The typer application: every group of commands under one name."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from inferencegym_jax._version import __version__
from inferencegym_jax.cli import episodes, grading, measured, planning, recommending, serving, tables, tasks
from inferencegym_jax.cli.output import sentences
from inferencegym_jax.registry import register_file

app = typer.Typer(
    name="inferencegym",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LLM inference control: simulate a serving engine, score controllers on it, find the configuration to deploy.",
)
app.command("recommend")(recommending.recommend)
app.command("plan")(planning.plan)
app.command("tasks")(tasks.tasks)
app.command("rollout")(episodes.rollout)
app.command("compare")(episodes.compare)
app.command("grade")(grading.grade)
app.add_typer(tables.app, name="table")
app.command("validate")(measured.validate)
app.command("calibrate")(measured.calibrate)
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serving.serve)

if importlib.util.find_spec("httpx") is not None:  # the extra `live`
    from inferencegym_jax.cli import live

    for _command in (live.measure, live.trial, live.control):
        app.command(_command.__name__)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    tasks_from: Annotated[
        list[Path],
        typer.Option(
            "--tasks-from",
            help="Python or JSON file of tasks of your own, for every command (docs/extend.md); may be repeated.",
        ),
    ] = [],  # noqa: B006
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """LLM inference control: simulate a serving engine, score controllers on it, find the configuration to deploy."""
    with sentences():
        for path in tasks_from:
            register_file(path)
    context.obj = tasks_from


def run(arguments: Sequence[str]) -> int:
    """Run the command line on these arguments and return its exit code (see ``cli.main``)."""
    try:
        app(list(arguments), prog_name="inferencegym")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0
    return 0
