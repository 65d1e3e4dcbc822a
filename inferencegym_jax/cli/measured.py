"""``inferencegym calibrate`` and ``inferencegym validate``: against measured runs of a real engine.

What reads the measured kernels lives in the repository's ``data/`` folder, so these two
commands run from a checkout (or an editable install) with ``aiconfigurator-core`` beside it; the messages say so.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

RunFile = Annotated[
    Path, typer.Argument(metavar="RUN.csv", help="measured runs: CSV, or the JSON of `vllm bench serve --save-result`")
]
Model = Annotated[str | None, typer.Option(help="model of runs that name none, e.g. llama2-7b; selects where they do")]
System = Annotated[str | None, typer.Option(help="GPU of runs that name none, e.g. h100_sxm; selects where they do")]
PrefixShare = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="share of prompt tokens that the prefix cache held; default: the file's, or 0"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def _fail(message: object) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


def _kernel_tables() -> Any:
    """``data/engine_table.py`` of the checkout that this package runs from."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "data" / "engine_table.py").is_file():
        raise _fail(
            "predicting a run needs the measured kernels and the scripts that read them, which are not in the wheel;"
            " clone the repository and run it there: pip install -e '.[cli,demo]' && pip install --no-deps"
            " aiconfigurator-core==0.12.0"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("data.engine_table")


def _select(tables: Any, path: Path, model: str | None, system: str | None) -> list[Any]:
    """The file's runs of ``model`` on ``system`` that the kernels cover; says on stderr which were left out, and
    why."""
    from inferencegym_jax.fidelity.measured_runs import RunError, read_measured

    try:
        tables.check_names(model, system)
        runs, said = read_measured(path)
    except ValueError as error:
        raise _fail(error) from error
    kept, left, others = [], [], 0
    for run in runs:
        try:
            if not tables.selected(run, model, system):
                others += 1
            else:
                complete, notices = tables.completed(run, model, system)
                tables.table_of(complete, model, system)
                kept.append(complete)
                said += [f"note: {notice}" for notice in notices]
        except ValueError as error:
            left.append(str(error) if isinstance(error, RunError) else f"{run.source}: {error}")
    if others:
        left.append(f"{path.name}: {others} of {len(runs)} runs are of another model or GPU than --model or --system")
    for sentence in (*said, *(f"left out: {reason}" for reason in left)):
        typer.echo(sentence, err=True)
    if not kept:
        raise _fail(f"{path}: no run that could be predicted among {len(runs)}")
    return kept


def _table(rows: list[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for name in (
        "run",
        "rate/s",
        "in",
        "out",
        "n",
        "ITL ms",
        "error",
        "TTFT ms",
        "error",
        "p50",
        "p90",
        "p99",
        "latency",
    ):
        shown.add_column(name, justify="left" if name == "run" else "right", overflow="fold")

    def error(row: dict[str, Any], name: str) -> str:
        value = row.get(f"{name}_error")
        return "" if value is None else f"{100 * value:+.1f} %"

    for row in rows:
        shown.add_row(
            f"{row['model'] or ''} {row['run']}".strip(),
            f"{row['rate_rps']:g}",
            f"{row['mean_prompt_tokens']:g}",
            f"{row['mean_output_tokens']:g}",
            f"{row['concurrency']:.1f}",
            f"{row['itl_mean_predicted_ms']:.2f} / {row['itl_mean_ms']:.2f}",
            error(row, "itl_mean"),
            f"{row['ttft_mean_predicted_ms']:.1f} / {row['ttft_mean_ms']:.1f}",
            error(row, "ttft_mean"),
            *(error(row, f"ttft_{q}") for q in ("p50", "p90", "p99")),
            error(row, "latency_mean"),
        )
    Console(width=None if sys.stdout.isatty() else 170).print(shown)


def _summary(rows: list[dict[str, Any]], what: str) -> str:
    """Median and worst absolute errors of the runs."""
    parts = []
    for name, title in NAMES.items():
        errors = [abs(r[f"{name}_error"]) for r in rows if f"{name}_error" in r]
        if errors:
            parts.append(f"{title} {100 * median(errors):.1f} % (worst {100 * max(errors):.1f} %)")
    return f"median absolute error of {len(rows)} {what} run(s): " + ", ".join(parts)


NAMES = {"itl_mean": "mean ITL", "ttft_mean": "mean TTFT", "ttft_p99": "p99 TTFT", "latency_mean": "mean latency"}


def validate(
    run: RunFile,
    model: Model = None,
    system: System = None,
    overhead: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, help="c, ms an iteration; default: the shipped constant")
    ] = None,
    path: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, help="h, ms a request; default: the shipped constant")
    ] = None,
    prefix_share: PrefixShare = None,
    plot: Annotated[Path | None, typer.Option(help="write a plot of predicted against measured here")] = None,
    out: Annotated[Path | None, typer.Option(help="closed-loop points: write errors by model and GPU here")] = None,
    as_json: Json = False,
) -> None:
    """Play every measured run on the compiled step and compare: ITL, TTFT, latency, predicted / measured.

    Runs that the shipped constants were fitted on are reported apart from those that are predicted. A file of
    closed-loop points (columns system, backend, model_path, isl, osl, batch_size, silicon_tpot_ms; silicon_sample.csv
    is that of aiconfigurator-core) is compared in TPOT, with the tables that `table build` makes.
    """
    from inferencegym_jax.cli.closed_loop import validate_points
    from inferencegym_jax.cli.measured_plot import save
    from inferencegym_jax.cli.pareto_plot import check_ending
    from inferencegym_jax.fidelity.closed_loop_points import is_closed_loop

    if plot is not None:
        try:
            check_ending(plot)
        except ValueError as error:
            raise _fail(error) from error
    if is_closed_loop(run):
        if plot is not None:
            raise _fail("--plot: draws measured runs, not closed-loop points; leave it out")
        validate_points(run, model, system, as_json, out)
        return
    from inferencegym_jax.fidelity.validation import Constants, compare, fitted_constants, is_fitted, predict
    from inferencegym_jax.hardware.constants import fitted_constants as known_constants

    tables = _kernel_tables()
    shipped, fitted = fitted_constants()
    others = [row for entry in known_constants()["vllm"].values() for row in entry["fitted"]]
    runs = _with_share(_select(tables, run, model, system), prefix_share)
    rows: list[dict[str, Any]] = []
    for one in runs:
        try:
            engine = tables.table_of(one, model, system)
            own = engine.constants or shipped
            used = Constants(own.overhead_ms if overhead is None else overhead, own.path_ms if path is None else path)
            row = compare(one, predict(one, engine, used))
        except ValueError as error:
            typer.echo(f"left out: {error}", err=True)
            continue
        known = fitted if engine.constants is None else others
        row["role"] = "fitted" if used == own and is_fitted(one, known) else "predicted"
        rows.append(row | used._asdict())
    if not rows:
        raise _fail(f"{run}: no run that could be predicted among {len(runs)}")
    if plot is not None:
        try:
            save(rows, plot)
        except ValueError as error:
            raise _fail(error) from error
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for role in ("fitted", "predicted"):
        part = [row for row in rows if row["role"] == role]
        pairs = sorted({(row["overhead_ms"], row["path_ms"]) for row in part})
        for c, h in pairs:
            shown = [row for row in part if (row["overhead_ms"], row["path_ms"]) == (c, h)]
            _table(shown, f"{role}: c = {c:g} ms an iteration, h = {h:g} ms a request")
        if part:
            typer.echo(_summary(part, role))
    if plot is not None:
        typer.echo(f"plot: {plot}")


def calibrate(
    run: RunFile,
    model: Model = None,
    system: System = None,
    rows: Annotated[int | None, typer.Option(min=1, help="fit on the first so many runs only")] = None,
    prefix_share: PrefixShare = None,
    out: Annotated[Path | None, typer.Option(help="write the constants and their fit here, as JSON")] = None,
    as_json: Json = False,
) -> None:
    """Fit what kernels do not hold: c, scheduler and sampler time an iteration, and h, time of a request outside it."""
    from inferencegym_jax.fidelity.validation import fit_constants

    tables = _kernel_tables()
    runs = _with_share(_select(tables, run, model, system)[:rows], prefix_share)
    try:
        fit = fit_constants(runs, lambda r: tables.table_of(r, model, system))
    except ValueError as error:
        raise _fail(error) from error
    fit = {
        "overhead_ms": fit["overhead_ms"],
        "path_ms": fit["path_ms"],
        "fitted_on": [
            f"{row['run']}, {row['model']} on {row['gpu']}, {row['rate_rps']:g} requests/s" for row in fit["rows"]
        ],
        "rows": fit["rows"],
    }
    text = json.dumps(fit, indent=2)
    if out is not None:
        out.write_text(text + "\n")
    if as_json:
        typer.echo(text)
        return
    constants = f"c = {fit['overhead_ms']:g} ms an iteration, h = {fit['path_ms']:g} ms a request"
    _table(fit["rows"], f"{constants}, fitted on {len(runs)} run(s)")
    typer.echo(_summary(fit["rows"], "fitted"))
    typer.echo(
        f"use them: validate --overhead {fit['overhead_ms']:g} --path {fit['path_ms']:g}, or overhead_ms and path_ms of"
        " the table's engine profile"
    )


def _with_share(runs: list[Any], prefix_share: float | None) -> list[Any]:
    return runs if prefix_share is None else [dataclasses.replace(run, prefix_share=prefix_share) for run in runs]
