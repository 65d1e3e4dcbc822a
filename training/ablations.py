"""Ablations of the second-gpu tasks and of memory: what delays, the clock, a forecast and a recurrent layer are worth.

``task, changed -> rivals tuned anew -> held-out episodes``; ``config -> trained with and without memory -> held-out
episodes``; both ``-> paired differences -> JSON, Markdown``. Budgets are small beside those of ``headroom``, and stand
in the file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.adapters.relative_views import env_and_policy, network_on
from inferencegym_jax.models import check_whole
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies import has_trained
from inferencegym_jax.policies.load_following import LoadPlan
from training import lanes, rivals
from training.config import MEMORIES, task_config
from training.forms import base_plan
from training.headroom import ablated, plain, played, published
from training.runner import metadata, run

EPISODES, TRAINING_EPISODES, SETTINGS, STEPS = 24, 16, 48, 2_000_000
STATIC, REACTIVE, FORECAST, PPO = "best static", "best reactive", "with true rates", "PPO"
PLAN_OF = 7  # whose published settings every condition's search has among its own


@dataclass(frozen=True)
class Condition:
    """A task, as it is or changed."""

    task: int
    free_switching: bool = False

    def problem(self) -> Problem:
        """The task with the change."""
        return ablated(ig.problem(self.task), self.free_switching)


CONDITIONS: dict[str, Condition] = {
    "real clock": Condition(7),
    "switching free": Condition(7, free_switching=True),
    "fast clock": Condition(72),
}


def tuned(
    problem: Problem, published_plan: LoadPlan, training_episodes: int, settings: int, forecast: bool
) -> tuple[LoadPlan, float]:
    """The controller's settings with the best mean score on training seeds, and that score.

    Args:
        problem: where it acts.
        published_plan: settings that are tried besides those that are drawn.
        training_episodes: on which they are compared.
        settings: that are drawn; as many again are tried around the best.
        forecast: whether the controller is told the load to come.
    """
    seeds = rivals.training_seeds(training_episodes)
    ahead = rivals.true_load(problem, seeds) if forecast else None
    plans, scores = rivals.search_plans(problem, seeds, ahead, settings)
    known = float(rivals.mean_scores(problem, [published_plan], seeds, ahead)[0])
    return (plans[0], float(scores[0])) if scores[0] >= known else (published_plan, known)


def measure_condition(
    name: str,
    episodes: int = EPISODES,
    training_episodes: int = TRAINING_EPISODES,
    settings: int = SETTINGS,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """One condition: ``{"task", "episodes", "training_episodes", "settings", "plans", "scores", "gpu_seconds",
    "on_time_share", "seconds"}``; the last but one are rival -> a number an episode.

    Args:
        name: of ``CONDITIONS``.
        episodes: held-out ones.
        training_episodes, settings: see ``tuned``.
        report: told what runs.

    Raises:
        ValueError: no such condition, or no episodes or settings.
    """
    if name not in CONDITIONS:
        raise ValueError(f"condition = {name!r}: must be one of {', '.join(CONDITIONS)}")
    _check(episodes=episodes, training_episodes=training_episodes, settings=settings)
    began, condition = time.perf_counter(), CONDITIONS[name]
    problem, seeds = condition.problem(), rivals.test_seeds(episodes)
    steps, known = int(problem.params.episode_length), published(PLAN_OF)
    runs, plans = {}, {}
    report(f"{name}: {STATIC}")
    held = lanes.held(problem.best_static, episodes, steps)
    runs[STATIC] = played(problem, lanes.episodes_of(problem, lanes.of_sequences(held), seeds))
    for rival, key in ((REACTIVE, "reactive"), (FORECAST, FORECAST)):
        report(f"{name}: {rival}")
        told = rival == FORECAST
        first = LoadPlan(**known["tuned"][key]["plan"])
        plan, score = tuned(problem, first, training_episodes, settings, told)
        ahead = rivals.true_load(problem, seeds) if told else None
        runs[rival] = played(
            problem, lanes.episodes_of(problem, lanes.of_plans([plan] * episodes, steps, ahead), seeds)
        )
        plans[rival] = {"plan": plain(plan), "training_score": score}
    if has_trained(condition.task):
        report(f"{name}: {PPO}")
        env, policy = env_and_policy("trained", problem)
        runs[PPO] = played(problem, ig.rollout(env, problem.params, policy, seeds))
    columns = ("score", "gpu_seconds", "on_time_share")
    by_rival = {column: {rival: one.columns[column].tolist() for rival, one in runs.items()} for column in columns}
    by_rival["scores"] = by_rival.pop("score")
    return {
        "task": condition.task,
        "episodes": episodes,
        "training_episodes": training_episodes,
        "settings": settings,
        "plans": plans,
        **by_rival,
        "seconds": time.perf_counter() - began,
    }


def measure_memory(
    task: int,
    steps: int = STEPS,
    episodes: int = EPISODES,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """A task's config trained twice, without and with a recurrent layer, same seed and steps, and both played.

    Args:
        task: with a config that corrects the tuned controller.
        steps: environment steps of each run.
        episodes: held-out ones.
        seed: of both runs.
        changes: of the config, of both runs.
        report: told what runs.

    Returns:
        ``{"task", "episodes", "seed", "steps": {memory: steps}, "seconds": {memory: seconds}, "scores": {rival: a
        number an episode}}``; rivals are those of ``MEMORIES``, the tuned controller and the best static action.

    Raises:
        ValueError: no steps or episodes, or a config that cannot be.
    """
    _check(episodes=episodes, steps=steps)
    base = task_config(task).replace(total_steps=steps, seed=seed, **(changes or {}))
    problem, seeds = ig.problem(task), rivals.test_seeds(episodes)
    length = int(problem.params.episode_length)
    held = lanes.of_sequences(lanes.held(problem.best_static, episodes, length))
    followed = lanes.of_plans([base_plan(base)] * episodes, length)
    report(f"task {task}: {STATIC}, {REACTIVE}")
    scores = {STATIC: _scores(problem, lanes.episodes_of(problem, held, seeds))}
    scores[REACTIVE] = _scores(problem, lanes.episodes_of(problem, followed, seeds))
    spent, seconds = {}, {}
    for memory in MEMORIES:
        report(f"task {task}: memory {memory}, {steps:,} steps")
        config = base.replace(memory=memory)
        result = run(config)
        about = metadata(config, int(result.state.update), result.rows)
        env, policy = network_on(result.network, about, problem)
        scores[memory] = _scores(problem, ig.rollout(env, problem.params, policy, seeds))
        spent[memory], seconds[memory] = int(result.rows[-1]["env_steps"]), result.seconds
    return {
        "task": task,
        "episodes": episodes,
        "seed": seed,
        "steps": spent,
        "seconds": seconds,
        "scores": {name: values.tolist() for name, values in scores.items()},
    }


def _scores(problem: Problem, trajectory: ig.Trajectory) -> np.ndarray:
    return played(problem, trajectory).columns["score"]


def _check(**counts: int) -> None:
    for name, value in counts.items():
        check_whole(name, value)


Lines = list[tuple[str, str, dict[str, float]]]
"""(what was changed, what is compared, difference in score with interval and worst episode)."""


def differences(found: Mapping[str, Any]) -> Lines:
    """Every comparison that the measurements in a file allow, paired by episode where the episodes are the same.

    Args:
        found: ``{"conditions": {name: measure_condition}, "memory": {task: measure_memory}}``.
    """
    lines: Lines = []
    conditions: Mapping[str, Any] = found["conditions"]
    for name, one in conditions.items():
        scores = {rival: np.asarray(values) for rival, values in one["scores"].items()}
        setting = f"{name} (task {one['task']})"
        for rival in (REACTIVE, PPO):
            if rival in scores:
                lines.append((setting, f"{rival} over {STATIC}", _paired(scores[rival] - scores[STATIC])))
        lines.append((setting, f"{REACTIVE}, {FORECAST}, over without", _paired(scores[FORECAST] - scores[REACTIVE])))
    if {"real clock", "switching free"} <= set(conditions):
        free, real = (conditions[name]["scores"] for name in ("switching free", "real clock"))
        for rival in sorted(set(free) & set(real) - {STATIC, FORECAST}, key=(REACTIVE, PPO).index):
            gains = [np.asarray(one[rival]) - np.asarray(one[STATIC]) for one in (free, real)]
            lines.append(("switching free", f"{rival} over {STATIC}, above what it is", _paired(gains[0] - gains[1])))
    for task, one in found["memory"].items():
        scores = {rival: np.asarray(values) for rival, values in one["scores"].items()}
        setting = f"memory (task {task}, {one['steps'][MEMORIES[0]]:,} steps)"
        for memory, said in zip(MEMORIES, ("without", "with"), strict=True):
            lines.append((setting, f"PPO {said} memory over {REACTIVE}", _paired(scores[memory] - scores[REACTIVE])))
        without, having = (scores[memory] for memory in MEMORIES)
        lines.append((setting, "PPO with memory over without", _paired(having - without)))
        for name, other in conditions.items():  # the controller tuned on the task itself, where it corrected another's
            same = other["task"] == one["task"] and other["episodes"] == one["episodes"]
            if same and not CONDITIONS[name].free_switching:
                there = np.asarray(other["scores"][REACTIVE])
                lines.append((setting, f"PPO with memory over {REACTIVE}, tuned there", _paired(having - there)))
    return lines


def _paired(values: np.ndarray) -> dict[str, float]:
    return mean_interval(values) | {"worst": float(values.min())}


def markdown(found: Mapping[str, Any]) -> str:
    """The table of ``differences``."""
    rows = ["| changed | compared | difference in score | worst episode |", "| --- | --- | --- | --- |"]
    for setting, what, one in differences(found):
        span = f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        rows.append(f"| {setting} | {what} | {span} | {one['worst']:+.3f} |")
    return "\n".join(rows)


def read(path: Path) -> dict[str, Any]:
    """The measurements of a file; none where there is no file."""
    if not path.is_file():
        return {"version": ig.__version__, "conditions": {}, "memory": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def update(
    path: Path,
    conditions: Sequence[str] = (),
    memory: Sequence[int] = (),
    *,
    episodes: int = EPISODES,
    training_episodes: int = TRAINING_EPISODES,
    settings: int = SETTINGS,
    steps: int = STEPS,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure conditions and tasks' memory and write them into a file, each as soon as it is known; the others stay.

    Args:
        path: JSON.
        conditions: of ``CONDITIONS``.
        memory: tasks that are trained with and without.
        episodes, training_episodes, settings: see ``measure_condition``.
        steps, seed, changes: see ``measure_memory``.
        report: told what runs.

    Returns:
        All that the file then holds.

    Raises:
        ValueError: see ``measure_condition`` and ``measure_memory``.
    """
    measurements = read(path)
    for name in conditions:
        measurements["conditions"][name] = measure_condition(name, episodes, training_episodes, settings, report)
        _write(path, measurements)
    for task in memory:
        measurements["memory"][str(task)] = measure_memory(task, steps, episodes, seed, changes, report)
        _write(path, measurements)
    return measurements


def _write(path: Path, measurements: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measurements, indent=1) + "\n", encoding="utf-8")
