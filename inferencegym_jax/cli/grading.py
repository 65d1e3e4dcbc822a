"""``inferencegym grade``: score an episode log, and prove that it is an episode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from inferencegym_jax import registry, verification
from inferencegym_jax.cli.options import Config, TableFile, config_values, say_doubts, task_of
from inferencegym_jax.cli.output import ANSWER_NO, BAD_INPUT, JSON, answers, fail, headed, print_json, sentences, table
from inferencegym_jax.scoring import grader


def grade(
    log: Annotated[
        Path, typer.Argument(help="JSON: a list of {action, reward, metrics}, or what `rollout --log` writes.")
    ],
    task: Annotated[str | None, typer.Option("--task", "-t", help="Number or name; default: the log's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Verify: simulate this episode again. Default: the log's.")] = None,
    config: Config = None,
    table_file: TableFile = None,
    json_output: Annotated[bool, JSON] = False,
) -> None:
    """Score an episode log; with its seed also verify it. Exit code 1: it is not that episode."""
    with sentences():
        episode = read_log(log)
        task_of_log = episode.get("task") if task is None else task_of(task)
        if task_of_log is None:
            raise ValueError(f"{log}: names no task; pass --task")
        seed = episode.get("seed") if seed is None else seed
        overrides = config_values(config) or episode.get("config")
        entries = episode["episode_log"]
        problem = registry.problem(task_of_log, table=table_file, config=overrides)
        say_doubts(problem.table)
        if seed is None:
            result: dict[str, Any] = grader.grade(task_of_log, entries, problem.normalisers) | {"verified": None}
        else:
            actions = [entry.get("action") if isinstance(entry, dict) else entry for entry in entries]
            result = verification.verify(task_of_log, seed, overrides, actions, entries, table=problem.table)
            result.pop("episode_log")
    if json_output:
        print_json(result)
    else:
        console = answers()
        rows = [(name.replace("_", " "), value) for name, value in result["breakdown"].items()]
        rows += [("GPU-seconds", outcome["gpu_seconds"]) for outcome in [result.get("outcome")] if outcome]
        rows.append(("score", result["score"]))
        console.print(headed(problem.spec.title, table(("component", "value"), rows)))
        console.print(result["feedback"])
        if result["verified"] is None:
            console.print("Not verified: the log names no seed (pass --seed).")
        elif result["verified"]:
            console.print(f"Verified: seed {seed} and these actions give this log.")
    if result["verified"] is False:
        raise typer.Exit(ANSWER_NO)


def read_log(path: Path) -> dict[str, Any]:
    """The file's episode log, with task, seed and config where it names them.

    Raises:
        ValueError: not JSON, or no log.
    """
    if not path.is_file():
        fail(f"{path}: no such file", BAD_INPUT)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if isinstance(content, list):
        return {"episode_log": content}
    if isinstance(content, dict) and isinstance(content.get("episode_log"), list):
        return content
    raise ValueError(f"{path}: must be a list of log entries, or an object with a list `episode_log`")
