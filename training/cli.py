"""The command line: ``python -m training --help``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from inferencegym_jax.cli.options import LogColumns, LogFrom, LogLast, LogTo, LogUnit
from inferencegym_jax.policies.names import POLICY_HELP
from inferencegym_jax.registry import register_file
from training.cache import use_cache
from training.comparison_commands import COMPARISONS
from training.fleet_commands import COMMANDS
from training.options import (
    RUNS,
    TASK_HELP,
    AsJson,
    Settings,
    Table,
    Task,
    Trace,
    configured,
    console,
    fail,
    number_entries,
    own_files,
    own_log,
    task_of,
)
from training.tables import evaluation_table, percent, screen, sweep_table

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, evaluate and look at policies for LLM inference control. Everything runs in this process, "
    "on the CPU unless JAX finds more.",
)


@app.callback()
def _main(
    tasks_from: Annotated[
        list[Path],
        typer.Option(
            "--tasks-from",
            help="Python or JSON file of tasks of your own, for every command (docs/extend.md); may be repeated.",
        ),
    ] = [],  # noqa: B006
) -> None:
    """Train, evaluate and look at policies for LLM inference control."""
    try:
        for path in tasks_from:
            register_file(path)
    except (ValueError, OSError) as error:
        raise fail(error) from error


@app.command()
def train(
    task: Annotated[str | None, typer.Option("--task", "-t", help=TASK_HELP)] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML; default: training/configs/task<N>.yaml, or the defaults."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; default: runs/task<N>-seed<S>.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of networks, exploration and training episodes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Environment steps (total_steps).")] = None,
    settings: Settings = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's newest checkpoint.")] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            help="Split environments over this many devices. On a CPU they are virtual ones; default: one a core, "
            "fewer where a minibatch is small."
        ),
    ] = None,
    table: Table = None,
    trace: Trace = None,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events too.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Join the cluster's processes (Slurm, Kubernetes, MPI: found by JAX).")
    ] = False,
    coordinator: Annotated[str | None, typer.Option(help="host:port of process 0, where no cluster tells.")] = None,
    processes: Annotated[int | None, typer.Option(help="Number of processes, with --coordinator.")] = None,
    process_id: Annotated[int | None, typer.Option(help="This process, from 0, with --coordinator.")] = None,
) -> None:
    """Train a policy with PPO and save it: policy.npz, checkpoints, metrics.csv.

    Ctrl-C ends after the running call and saves what was learned. Example: python -m training train --task 3
    --devices 2
    """
    from training import devices as meshes
    from training.progress import training_progress
    from training.runner import NonFiniteLoss, columns_of, run

    try:
        changes = {"seed": seed, "total_steps": steps, **own_files(table, trace, unit, columns, start, end, last)}
        run_config = configured(task, config, settings, changes)
        if distributed or coordinator:
            meshes.join(coordinator, processes, process_id)
        if devices or not (distributed or coordinator):
            meshes.prepare(devices)
        use_cache()
        folder = out or RUNS / f"task{run_config.task_id}-seed{run_config.seed}"
        with training_progress(console, run_config) as report:
            result = run(run_config, folder, resume=resume, devices=devices, tensorboard=tensorboard, report=report)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    except NonFiniteLoss as error:
        raise fail(error) from error
    word = "Interrupted" if result.interrupted else "Done"
    final = result.rows[-1] if result.rows else dict.fromkeys(columns_of(run_config), float("nan"))
    besides = f"out of memory {percent(final['oom_share'])}"
    if run_config.is_fleet:
        besides = f"{percent(final['on_time_share'])} on time at {final['mean_gpus']:.2f} GPUs"
    console.print(
        f"{word} after {result.seconds:.1f} s: score {final['score']:.4f}, return {final['return']:.2f}, "
        f"{besides}. Kept in {folder}/.",
        highlight=False,
    )
    if result.interrupted:
        raise typer.Exit(130)


@app.command()
def evaluate(
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            "-p",
            help=f"{POLICY_HELP}. Of a fleet: reactive, tuned, trained, a rule's name, a file, gpus=4.",
        ),
    ],
    task: Task = "1",
    episodes: Annotated[
        int | None,
        typer.Option(
            help="Held-out episodes: seeds 0, 1, 2, ... that no training run sees; default 1024, of fleets 24."
        ),
    ] = None,
    table: Table = None,
    as_json: AsJson = False,
    trace: Trace = None,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
) -> None:
    """Score a policy on held-out episodes, with 95 % bootstrap intervals and differences paired by seed.

    Example: python -m training evaluate --task 3 --policy trained --json
    """
    from inferencegym_jax.fleet.making import is_fleet
    from training import fleet_evaluation
    from training.evaluation import evaluate as measure

    use_cache()
    try:
        log = own_log(trace, unit, columns, start, end, last)
        if is_fleet(task_of(task)):
            fleet = fleet_evaluation.evaluate(
                task_of(task),
                policy,
                fleet_evaluation.EPISODES if episodes is None else episodes,
                table=table,
                trace=log,
            )
            typer.echo(json.dumps(fleet) if as_json else fleet_evaluation.markdown(fleet))
            return
        scores = measure(
            task_of(task), policy, 1024 if episodes is None else episodes, None if table is None else str(table), log
        )
    except (ValueError, OSError) as error:
        raise fail(error) from error
    if as_json:
        typer.echo(json.dumps(scores))
    else:
        screen().print(evaluation_table(scores))


@app.command()
def plot(
    what: Annotated[str, typer.Argument(help="curves, timeline or pareto.")],
    task: Task = "1",
    runs: Annotated[
        list[Path], typer.Option("--run", "-r", help="Folders of runs (curves); default: runs/task<N>-seed*.")
    ] = [],  # noqa: B006
    policies: Annotated[
        list[str], typer.Option("--policy", "-p", help="Policies (timeline, pareto); may be repeated.")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Episode of the timeline.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Stem of the files; .png and .svg are written.")
    ] = None,
) -> None:
    """Draw learning curves over seeds, an episode's timeline, or p99 TTFT against cost with every static action."""
    from training import plots

    use_cache()
    try:
        made = plots.draw(what, task_of(task), runs, policies, seed, out)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    for path in made:
        console.print(f"wrote {path}", highlight=False)


@app.command()
def sweep(
    task: Task = "1",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML; default: the task's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Environment steps of each member (total_steps).")] = None,
    settings: Settings = [],  # noqa: B006
    grid: Annotated[
        list[str], typer.Option("--grid", "-g", help="name=v1,v2,...: every combination; may be repeated.")
    ] = [],  # noqa: B006
    search: Annotated[
        list[str], typer.Option("--random", "-r", help="name=low:high, drawn log-uniformly; may be repeated.")
    ] = [],  # noqa: B006
    samples: Annotated[int, typer.Option(help="Draws of --random.")] = 8,
    seeds: Annotated[int, typer.Option(help="Training seeds of each member.")] = 2,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV; default: runs/sweep-task<N>.csv.")] = None,
    table: Table = None,
    trace: Trace = None,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
) -> None:
    """Train many settings at once: one compiled call, vmapped over hyperparameters and seeds.

    Example: python -m training sweep --task 1 --grid learning_rate=3e-4,1e-3,3e-3 --grid entropy=0,1e-3
    """
    from training.sweep import run_sweep

    use_cache()
    try:
        changes = {"total_steps": steps, **own_files(table, trace, unit, columns, start, end, last)}
        base_config = configured(task if not config else None, config, settings, changes)
        path = out or RUNS / f"sweep-task{task}.csv"
        rows = run_sweep(base_config, grid, search, samples, seeds, path)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    screen().print(sweep_table(rows))
    console.print(f"wrote {path}", highlight=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File; default: policy.npz in the folder.")] = None,
) -> None:
    """Write the newest checkpoint's policy as a file that ``inferencegym_jax`` loads without flax, optax or orbax."""
    from training.policies import export_run

    try:
        path = export_run(run, out)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    console.print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)", highlight=False)


@app.command("with-settings")
def with_settings(
    policy: Annotated[Path, typer.Argument(help="A policy file that corrects the load-following controller.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    settings: Annotated[
        list[str], typer.Option("--set", "-s", help="name=value of a setting of that controller; may be repeated.")
    ] = [],  # noqa: B006
) -> None:
    """Put a policy's network on other settings of the controller that it corrects, and say what that comes to on
    validation seeds.

    Example: python -m training with-settings data/policies/task7.npz --set first_s=1 --set hold_s=300 --out calm.npz
    """
    from training.policies import with_settings as changed

    use_cache()
    try:
        path, scores = changed(policy, number_entries(settings), out)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    console.print(f"validation score {scores['score']:.4f}; wrote {path}", highlight=False)


@app.command()
def study(
    task: Task = "1",
    seeds: Annotated[int, typer.Option(help="Training seeds 0, 1, 2, ...")] = 10,
    settings: Settings = [],  # noqa: B006
    devices: Annotated[int | None, typer.Option(help="See train.")] = None,
) -> None:
    """Train several seeds and say which beat the best static action and the reactive controller on held-out
    episodes."""
    from training import devices as meshes
    from training import study as studies

    try:
        meshes.prepare(devices)
        use_cache()
        run_config = configured(task, None, settings, {})
        rows = studies.study(
            run_config, seeds, devices, report=lambda text: console.print(text, highlight=False, soft_wrap=True)
        )
    except (ValueError, OSError) as error:
        raise fail(error) from error
    typer.echo(studies.summary(run_config, rows))


@app.command()
def policies(
    seeds: Annotated[int, typer.Option(help="Training seeds a task; the best by validation score ships.")] = 2,
    tasks: Annotated[
        list[str], typer.Option("--task", "-t", help="Tasks; may be repeated. Default: all that ship.")
    ] = [],  # noqa: B006
    devices: Annotated[int | None, typer.Option(help="See train.")] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder that keeps each run; one that was cut off goes on from there.")
    ] = None,
) -> None:
    """Train the policies that ship in data/policies (``make policies``)."""
    from training import devices as meshes
    from training.policies import build

    try:
        meshes.prepare(devices)
        use_cache()
        build(console, seeds, devices, [task_of(task) for task in tasks] or None, runs)
    except (ValueError, OSError) as error:
        raise fail(error) from error


for _name, _command in {**COMPARISONS, **COMMANDS}.items():
    app.command(_name)(_command)
