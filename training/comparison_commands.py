"""The commands that compare policies: ``python -m training headroom`` and its like; ``cli`` registers them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from inferencegym_jax.cli.options import LogColumns, LogFrom, LogLast, LogTo, LogUnit
from training.cache import use_cache
from training.options import RUNS, AsJson, Table, Task, Trace, console, fail, own_log, task_of
from training.tables import rank_table, screen

TRANSFER_FILE = RUNS / "transfer.json"


def headroom(
    task: Task = "7",
    episodes: Annotated[int, typer.Option(help="Held-out episodes; of traffic by day, windows of days apart.")] = 24,
    settings: Annotated[
        int, typer.Option(help="Settings of a controller drawn, and tried again around the best.")
    ] = 256,
    rounds: Annotated[int, typer.Option(help="Rounds of the oracle's search.")] = 24,
    training_episodes: Annotated[int, typer.Option(help="On which settings are searched.")] = 32,
    policies: Annotated[
        list[str],
        typer.Option("--policy", "-p", help="ROW=FILE, a learned policy; files of one ROW are its training seeds."),
    ] = [],  # noqa: B006
    add: Annotated[
        bool, typer.Option("--add", help="Only play the policies, and add their rows to the table in docs/headroom.")
    ] = False,
    free_switching: Annotated[bool, typer.Option("--free-switching", help="Ablation: switches take no time.")] = False,
    clock: Annotated[float | None, typer.Option(help="Ablation: seconds of the day that pass in a step.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Stem of .json, .csv, .png and .svg; default: runs/headroom-task<N>."),
    ] = None,
    known: Annotated[
        bool, typer.Option("--known", help="Settings that docs/headroom holds of the task join the search.")
    ] = False,
    table: Table = None,
    trace: Trace = None,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
) -> None:
    """What control is worth: the best static action, rivals that react, those told the future, and an oracle that never
    falls below any of them.

    Example: python -m training headroom --task 7
    """
    import inferencegym_jax as ig
    from training import headroom as worth

    use_cache()
    try:
        named = [tuple(item.split("=", 1)) for item in policies]
        if any(len(item) != 2 for item in named):
            raise ValueError(f"--policy {policies[[len(x) for x in named].index(1)]!r}: must be ROW=FILE")
        log = own_log(trace, unit, columns, start, end, last)
        problem = worth.ablated(ig.problem(task_of(task), table=table, trace=log), free_switching, clock)
        learned = [(item[0], item[1]) for item in named]

        def report(text: str) -> None:
            console.print(text, highlight=False)

        if add:
            results = worth.with_learned(worth.published(problem.spec.id), problem, learned, report)
        else:
            results = worth.measure(
                problem,
                episodes,
                training_episodes=training_episodes,
                settings=settings,
                rounds=rounds,
                policies=learned,
                known=worth.published(problem.spec.id) if known else None,
                report=report,
            )
        changed = "-free" * free_switching + ("" if clock is None else f"-clock{clock:g}")
        stem = out or RUNS / f"headroom-task{problem.spec.id}{changed}"
        paths = worth.write(results, stem)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    typer.echo(worth.markdown(results))
    for path in paths:
        console.print(f"wrote {path}", highlight=False)


def transfer(
    policy: Annotated[
        Path | None, typer.Option("--policy", "-p", help="A policy file; default: the general policy that ships.")
    ] = None,
    tasks: Annotated[
        list[str], typer.Option("--task", "-t", help="Tasks; may be repeated. Default without --trace: 4, 5, 6 and 7.")
    ] = [],  # noqa: B006
    traces: Annotated[
        list[Path], typer.Option("--trace", help="Request logs, replayed on --log-task; may be repeated.")
    ] = [],  # noqa: B006
    log_task: Annotated[str, typer.Option(help="Task whose objectives and knobs the logs are replayed under.")] = "4",
    episodes: Annotated[int, typer.Option(help="Held-out episodes of each.")] = 24,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="JSON; rows of other places that stand there stay.")
    ] = TRANSFER_FILE,
    as_json: AsJson = False,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
) -> None:
    """Play a policy where it was never trained, beside the best static action of each task and log.

    Example: python -m training transfer --task 6 --trace data/example_requests.csv
    """
    from training import transfer as elsewhere

    use_cache()
    try:
        task_ids = [task_of(task) for task in tasks] or ([] if traces else list(elsewhere.TASKS))
        places = [elsewhere.Place(task) for task in task_ids]
        logs = (own_log(trace, unit, columns, start, end, last) for trace in traces)
        places += [elsewhere.Place(task_of(log_task), log) for log in logs]
        results = None
        for place in places:  # each is written as soon as it is known
            results = elsewhere.measure([place], policy, episodes, lambda text: console.print(text, highlight=False))
            if out.is_file():
                results = elsewhere.merged(json.loads(out.read_text(encoding="utf-8")), results)
            elsewhere.write(results, out)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    assert results is not None
    typer.echo(json.dumps(results) if as_json else elsewhere.markdown(results))


def conditions(
    task: Annotated[str, typer.Option("--task", "-t", help="A task that is drawn for each episode.")] = "8",
    policy: Annotated[str, typer.Option("--policy", "-p", help="A policy's name or file.")] = "general",
    count: Annotated[int, typer.Option(help="Conditions: a pool, a GPU, objectives.")] = 6,
    tuning: Annotated[int, typer.Option(help="Episodes of each on which settings are searched.")] = 24,
    episodes: Annotated[int, typer.Option(help="Further ones, on which all are measured.")] = 24,
    settings: Annotated[int, typer.Option(help="Settings drawn, and tried again around the best.")] = 64,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON.")] = RUNS / "conditions.json",
) -> None:
    """One policy for all conditions, beside the controller that is tuned for each of them alone.

    Example: python -m training conditions --count 2
    """
    import inferencegym_jax as ig
    from training import conditions as apart

    use_cache()
    try:
        results = apart.measure(
            ig.problem(task_of(task)),
            policy,
            count=count,
            tuning=tuning,
            episodes=episodes,
            settings=settings,
            report=lambda text: console.print(text, highlight=False),
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        raise fail(error) from error
    typer.echo(apart.markdown(results))


def ablations(
    conditions: Annotated[
        list[str], typer.Option("--condition", "-c", help="real clock, switching free, fast clock; may be repeated.")
    ] = [],  # noqa: B006
    memory: Annotated[
        list[int], typer.Option("--memory", "-m", help="A task, trained with and without memory; may be repeated.")
    ] = [],  # noqa: B006
    episodes: Annotated[int, typer.Option(help="Held-out episodes.")] = 24,
    training_episodes: Annotated[int, typer.Option(help="On which settings are searched.")] = 16,
    settings: Annotated[
        int, typer.Option(help="Settings of a controller drawn, and tried again around the best.")
    ] = 48,
    steps: Annotated[int, typer.Option(help="Environment steps of each training run.")] = 2_000_000,
    seed: Annotated[int, typer.Option(help="Of the training runs.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON; what stands there stays.")] = RUNS / "ablations.json",
) -> None:
    """What delays, the clock, a forecast and memory are worth, with intervals; without --condition and --memory the
    table of what the file holds.

    Example: python -m training ablations --condition "switching free" --memory 7
    """
    from training import ablations as studies

    use_cache()
    try:
        results = studies.update(
            out,
            conditions,
            memory,
            episodes=episodes,
            training_episodes=training_episodes,
            settings=settings,
            steps=steps,
            seed=seed,
            report=lambda text: console.print(text, highlight=False),
        )
    except (ValueError, OSError) as error:
        raise fail(error) from error
    typer.echo(studies.markdown(results))


def ranks(
    task: Task = "3",
    actions: Annotated[int, typer.Option(help="Static actions, drawn from the grid of the task's knobs.")] = 512,
    episodes: Annotated[int, typer.Option(help="Episodes of each policy, seeds 0, 1, 2, ...")] = 16,
    controllers: Annotated[
        int, typer.Option(help="Settings of the load-following controller besides, on open-loop tasks.")
    ] = 0,
    days_apart: Annotated[
        bool, typer.Option("--days-apart", help="Episodes of traffic by day are windows of days apart.")
    ] = False,
    reward: Annotated[
        str, typer.Option(help="What a return sums: environment, score (the grader's seconds), or whole-score.")
    ] = "environment",
    as_json: AsJson = False,
) -> None:
    """Does the reward rank policies as the grader does? Spearman's correlation of mean return and mean score."""
    from training.ranks import rank_policies

    use_cache()
    try:
        results = rank_policies(task_of(task), actions, episodes, controllers, days_apart, reward)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    if as_json:
        typer.echo(json.dumps(results))
    else:
        screen().print(rank_table(results))


def leaderboard(
    check: Annotated[bool, typer.Option("--check", help="Play every row again; exit 1 where one is not so.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Measure our own rows again.")] = False,
    add: Annotated[
        str | None, typer.Option(help="Measure a row of your own of this name and write leaderboard/NAME.json.")
    ] = None,
    tasks: Annotated[list[str], typer.Option("--task", "-t", help="Tasks; may be repeated. Default: all.")] = [],  # noqa: B006
    episodes: Annotated[int, typer.Option(help="Held-out episodes of rows that are measured.")] = 24,
    policy: Annotated[str | None, typer.Option(help="With --add: a policy file below the repository's root.")] = None,
    actions: Annotated[str | None, typer.Option(help="With --add: an archive of actions there.")] = None,
    budget: Annotated[int | None, typer.Option(help="With --add: environment steps spent on it.")] = None,
) -> None:
    """Write LEADERBOARD.md from leaderboard/*.json; with --check play its rows again.

    Example: python -m training leaderboard --check --task 3
    """
    from training import leaderboard as board

    use_cache()
    task_ids = [task_of(task) for task in tasks] or [None]
    try:
        if add is not None:
            if len(tasks) != 1 or budget is None:
                raise ValueError("--add: needs one --task and --budget")
            row = board.add(add, task_ids[0], budget, episodes, policy=policy, actions=actions)
            console.print(f"{row['task']}: {add}: {row['score']['mean']:.4f}", highlight=False)
        if update:
            board.update([task for task in task_ids if task is not None], episodes, report=console.print)
        if check:
            wrong = 0
            for task in task_ids:
                by_task: dict[str, list[board.Row]] = {}
                for row in board.every_row(task=task):
                    by_task.setdefault(row.task, []).append(row)
                for rows in by_task.values():
                    began = time.perf_counter()
                    for row, said in zip(rows, board.faults_of(rows), strict=True):
                        wrong += bool(said)
                        typer.echo(f"{row.task}: {row.name}: {'; '.join(said) or 'reproduced'}")
                    console.print(f"{len(rows)} rows in {time.perf_counter() - began:.0f} s", highlight=False)
            if wrong:
                raise typer.Exit(1)
            return
        board.PAGE.write_text(board.markdown(board.every_row()))
    except (ValueError, OSError) as error:
        raise fail(error) from error
    console.print(f"wrote {board.PAGE}", highlight=False)


COMPARISONS: Mapping[str, Callable[..., Any]] = {
    one.__name__: one for one in (headroom, transfer, conditions, ablations, ranks, leaderboard)
}
"""By the names that people type."""
