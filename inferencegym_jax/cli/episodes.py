"""``inferencegym rollout`` and ``compare``: policies on a task, thousands of episodes in one compiled call."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from inferencegym_jax import registry, verification
from inferencegym_jax.adapters.relative_views import env_and_policy
from inferencegym_jax.cli.options import Config, TableFile, Task, config_values, say_doubts, task_of
from inferencegym_jax.cli.output import (
    JSON,
    answers,
    headed,
    jsonable,
    notices,
    print_json,
    sentences,
    spread,
    table,
    working,
)
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.episodes.rollout import evaluate
from inferencegym_jax.episodes.rollout import rollout as roll_out
from inferencegym_jax.models import KNOBS, SEEDS
from inferencegym_jax.policies.names import POLICY_HELP
from inferencegym_jax.registry import Problem
from inferencegym_jax.scoring import grader
from inferencegym_jax.scoring.aggregates import EpisodeStatistics
from inferencegym_jax.scoring.described import SHARES, STATISTICS, failure_shares
from inferencegym_jax.scoring.episode_log import is_scored_by_request
from inferencegym_jax.tasks import TaskSpec

SHOWN = (
    "score",
    *SHARES,
    "total_reward",
    "mean_tps",
    "mean_ttft_p50_ms",
    "mean_ttft_p99_ms",
    "peak_memory_gb",
    "total_cost",
)
SHOWN_OPEN_LOOP = (
    "score",
    "goodput_share",
    "on_time_share",
    "gpu_seconds",
    *SHARES,
    "total_reward",
    "goodput",
    "mean_ttft_p50_ms",
    "mean_ttft_p99_ms",
    "mean_tpot_ms",
    "evictions",
)

Seeds = Annotated[int, typer.Option("--episodes", "-n", min=1, max=1_000_000, help="Episodes, of seeds 0, 1, 2, ...")]


def shown_of(spec: TaskSpec) -> dict[str, str]:
    """Statistics of a task's table and what they are called there, with their units."""
    names = SHOWN_OPEN_LOOP if is_scored_by_request(spec) else SHOWN
    return {name: label(name) for name in names}


def label(name: str) -> str:
    """A statistic as people read it: "time to first token, median (ms)"."""
    said = STATISTICS.get(name)
    return name if said is None else f"{said.title} ({said.unit})" if said.unit else said.title


def interval(values: np.ndarray) -> float:
    """Half-width of the 95 % interval of the mean over independent episodes (normal); NaN of one episode."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def statistics(problem: Problem, episodes: EpisodeStatistics) -> dict[str, np.ndarray]:
    """Every statistic and the score with its components, one number an episode."""
    scores = grader.score_aggregates(problem.spec, episodes, problem.normalisers)
    parts = {f.name: np.asarray(getattr(episodes, f.name), np.float64) for f in dataclasses.fields(episodes)}
    parts |= failure_shares(problem.spec, episodes)
    count = len(parts["total_reward"])
    return parts | {name: np.broadcast_to(np.asarray(value, np.float64), (count,)) for name, value in scores.items()}


def summary(columns: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean and 95 % half-width of every column."""
    return {name: {"mean": float(column.mean()), "ci95": interval(column)} for name, column in columns.items()}


def rollout(
    task: Task = "1",
    policy: Annotated[str, typer.Option("--policy", "-p", help=POLICY_HELP)] = "baseline",
    episodes: Seeds = 256,
    first_seed: Annotated[int, typer.Option("--seed", min=0, max=SEEDS - 1, help="Seed of the first episode.")] = 0,
    table_file: TableFile = None,
    config: Config = None,
    log: Annotated[Path | None, typer.Option(help="Write the first episode's log (JSON) for `grade`.")] = None,
    json_output: Annotated[bool, JSON] = False,
) -> None:
    """Run a policy on a task and print what it came to, with 95 % intervals."""
    with sentences():
        problem = registry.problem(task_of(task), table=table_file, config=config_values(config))
        say_doubts(problem.table)
        spec, (env, acting) = problem.spec, env_and_policy(policy, problem)
        if first_seed + episodes > SEEDS:
            raise ValueError(f"--seed {first_seed}: with {episodes} episodes it must be at most {SEEDS - episodes}")
        seeds = np.arange(first_seed, first_seed + episodes)
        with working(f"{episodes:,} episodes of {spec.name}"):
            columns = statistics(problem, jax.block_until_ready(evaluate(env, problem.params, acting, seeds)))
        if log is not None:
            write_log(log, problem, env, acting, first_seed)
    result = summary(columns)
    if json_output:
        about = {
            "task": spec.name,
            "policy": policy,
            "episodes": episodes,
            "seed": first_seed,
            "config": problem.config,
        }
        print_json(about | result)
        return
    rows = [(label, spread(result[key]["mean"], result[key]["ci95"])) for key, label in shown_of(spec).items()]
    title = f"{spec.title}, policy {policy}, {episodes:,} episodes (mean ± 95 % interval)"
    answers().print(headed(title, table(("", "an episode"), rows)))


def write_log(path: Path, problem: Problem, env: Any, policy: Policy, seed: int) -> None:
    """Write one episode as ``grade`` reads it: its actions, simulated again, with task, seed and config."""
    steps = roll_out(env, problem.params, policy, np.asarray([seed]))
    taken = jax.tree.map(lambda x: np.asarray(x)[:, 0], steps.action)
    actions = [
        dataclasses.replace(taken, **{name: getattr(taken, name)[i] for name in KNOBS}).to_dict()
        for i in range(len(taken.batch_size))
    ]
    spec, config = problem.spec, problem.config
    entries = verification.resimulate(spec.id, seed, config, actions, problem.table)
    document = {"task": spec.name, "seed": seed, "config": config, "episode_log": entries}
    path.write_text(json.dumps(jsonable(document)), encoding="utf-8")
    notices().print(f"wrote {path}")


def compare(
    task: Task = "2",
    policies: Annotated[
        str, typer.Option("--policies", "-p", help="Names separated by spaces or semicolons: " + POLICY_HELP)
    ] = "baseline random reactive best_static",
    episodes: Seeds = 256,
    table_file: TableFile = None,
    config: Config = None,
    json_output: Annotated[bool, JSON] = False,
) -> None:
    """Compare policies on the same episodes; differences to the first are paired, seed by seed."""
    with sentences():
        problem = registry.problem(task_of(task), table=table_file, config=config_values(config))
        say_doubts(problem.table)
        spec = problem.spec
        names = policies.replace(";", " ").split()
        if not names:
            raise ValueError("--policies: names none")
        acting = {name: env_and_policy(name, problem) for name in names}
        seeds = np.arange(episodes)
        results: dict[str, dict[str, np.ndarray]] = {}
        for name, (env, one) in acting.items():
            with working(f"{name}: {episodes:,} episodes of {spec.name}"):
                outcomes = jax.block_until_ready(evaluate(env, problem.params, one, seeds))
                results[name] = statistics(problem, outcomes)
    first = results[names[0]]["score"]
    gains = {name: summary({"gain": columns["score"] - first})["gain"] for name, columns in results.items()}
    if json_output:
        print_json(
            {
                "task": spec.name,
                "episodes": episodes,
                "policies": {name: summary(c) | {"score_gain": gains[name]} for name, c in results.items()},
            }
        )
        return
    rows = [
        (label, *(spread(float(c[key].mean()), interval(c[key])) for c in results.values()))
        for key, label in shown_of(spec).items()
    ]
    if len(names) > 1:
        rows.append((f"score over {names[0]}", "", *(spread(*gains[name].values()) for name in names[1:])))
    title = f"{spec.title}, {episodes:,} episodes (mean ± 95 % interval)"
    answers().print(headed(title, table(("", *names), rows)))
