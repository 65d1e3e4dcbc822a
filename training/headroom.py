"""What control is worth on a task: the best static action, rivals that react, those told the future, an oracle.

``task -> rivals tuned on training seeds -> episodes on held-out seeds -> rows -> JSON, CSV, Markdown, PNG, SVG``.
Scores are normalised: 0 is the best static action, 1 the oracle. Differences are paired by episode.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.adapters.relative_views import env_and_policy
from inferencegym_jax.models import KNOBS, check_whole
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies import has_trained
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.scoring.aggregates import aggregate
from inferencegym_jax.tasks.draws import Draws
from training import lanes, oracle, rivals
from training.intervals import interquartile

EPISODES, TRAINING_EPISODES = 24, 32
OPEN_ROWS = ("random", "baseline", *rivals.DEFAULTS, "best static", "best reactive", "best reactive, true rates")
COLUMNS = ("score", "return", "goodput_share", "on_time_share", "gpu_seconds", "switches", "oom_share")
PLANS_IN_HINDSIGHT = 24
PUBLISHED = Path(__file__).resolve().parent.parent / "docs" / "headroom"
HEADER = ("policy", "score", "over best static", "worst episode", "normalised", "return", "G", "S")
HEADER += ("GPU-seconds", "switches", "time, s")


@dataclass(frozen=True)
class Played:
    """One rival's episodes.

    Attributes:
        columns: each of ``COLUMNS`` -> float64[episodes].
        sequences: knob -> (episodes, steps), what it did.
    """

    columns: dict[str, np.ndarray]
    sequences: oracle.Sequences


def switches(problem: Problem, sequences: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64[episodes]: changes of the free knobs that are choices or switches."""
    names = [name for name in problem.spec.active_knobs if KNOBS[name].kind in ("bool", "choice")]
    changes = [(np.diff(sequences[name].astype(np.int64), axis=1) != 0).sum(axis=1) for name in names]
    total = np.zeros(len(sequences["batch_size"]))
    for change in changes:
        total = total + change
    return total


def played(problem: Problem, trajectory: ig.Trajectory) -> Played:
    """What whole episodes came to."""
    kept = {name: jax.tree.map(np.asarray, getattr(trajectory, name)) for name in ("metrics", "action", "outcome")}
    aggregates = aggregate(problem.spec, kept["metrics"], kept["action"], kept["outcome"])
    columns = {
        "score": problem.score(aggregates),
        "return": np.asarray(trajectory.reward, np.float64).sum(axis=0),
        "goodput_share": np.asarray(aggregates.goodput_share, np.float64),
        "on_time_share": np.asarray(aggregates.on_time_share, np.float64),
        "gpu_seconds": np.asarray(aggregates.gpu_seconds, np.float64),
        "oom_share": np.asarray(trajectory.oom, np.float64).mean(axis=0),
    }
    sequences = lanes.sequences_of(kept["action"])
    columns["switches"] = switches(problem, sequences)
    return Played(columns, sequences)


def ablated(problem: Problem, free_switching: bool = False, clock: float | None = None) -> Problem:
    """The problem with switches that take no time, or another clock; normalisers and best static action stay.

    Raises:
        ValueError: a clock that is not above 0, or a task whose traffic has none.
    """
    engine = problem.params.engine
    if free_switching:
        zero = np.float32(0.0)
        engine = engine.replace(start_s=zero, lease_s=zero, restart_s=zero)
    if clock is not None:
        if not problem.spec.has_kinds:
            raise ValueError(f"clock = {clock:g}: task {problem.spec.id}'s traffic has no hours of the day")
        if not clock > 0:
            raise ValueError(f"clock = {clock:g}: must be above 0")
        engine = engine.replace(day=engine.day.replace(clock=np.float32(clock)))
    return dataclasses.replace(problem, params=problem.params.replace(engine=engine))


def measure(
    problem: Problem,
    episodes: int = EPISODES,
    *,
    training_episodes: int = TRAINING_EPISODES,
    settings: int = rivals.SETTINGS,
    candidates: int = oracle.CANDIDATES,
    rounds: int = oracle.ROUNDS,
    policies: Sequence[tuple[str, str]] = (),
    known: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that ``python -m training headroom`` prints.

    Args:
        problem: a task on its table and traffic.
        episodes: held-out ones.
        training_episodes: on which the controllers' settings are searched.
        settings: of a controller that are drawn; as many again are tried around the best.
        candidates, rounds: of the oracle.
        policies: (row, policy file or name); several of one row are training seeds of one method.
        known: an earlier table of the task, whose settings join the search.
        report: told what runs.

    Returns:
        ``{"task", "version", "episodes", "rows": [{"policy", "score": interval, ..., "paired", "worst", "normalised",
        "seconds"}], "plan", "settings", "seconds"}``; intervals are ``{"mean", "low", "high"}``.

    Raises:
        ValueError: no episodes, an unknown policy, or one that was trained for another task.
    """
    for name, value in (("episodes", episodes), ("training episodes", training_episodes), ("settings", settings)):
        check_whole(name, value)
    began = time.perf_counter()
    seeds, training = rivals.test_seeds(episodes), rivals.training_seeds(training_episodes)
    steps = int(problem.params.episode_length)
    runs: dict[str, list[Played]] = {}
    seconds: dict[str, float] = {}

    def add(name: str, trajectory: Callable[[], ig.Trajectory]) -> None:
        report(name)
        start = time.perf_counter()
        runs.setdefault(name, []).append(played(problem, trajectory()))
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    def sequences(actions: lanes.Sequences) -> ig.Trajectory:
        return lanes.episodes_of(problem, lanes.of_sequences(actions), seeds)

    def controlled(plan: LoadPlan, forecast: np.ndarray | None = None) -> ig.Trajectory:
        return lanes.episodes_of(problem, lanes.of_plans([plan] * episodes, steps, forecast), seeds)

    def learned(name: str) -> ig.Trajectory:
        env, policy = env_and_policy(name, problem)
        return ig.rollout(env, problem.params, policy, seeds)

    tuned: dict[str, Any] = {}
    plans: list[LoadPlan] = []
    open_loop = problem.dynamics == "open_loop"

    def react(forecast: bool) -> ig.Trajectory:
        ahead = rivals.true_load(problem, training) if forecast else None
        key = "with true rates" if forecast else "reactive"
        earlier = [] if known is None else rivals.begun_otherwise(LoadPlan(**known["tuned"][key]["plan"]))
        ordered, scores = rivals.search_plans(problem, training, ahead, settings, earlier)
        tuned[key] = {
            "plan": plain(ordered[0]),
            "training_score": float(scores[0]),
            "settings": len(ordered),
        }
        if not forecast:
            plans.extend(ordered[1:PLANS_IN_HINDSIGHT])
        return controlled(ordered[0], rivals.true_load(problem, seeds) if forecast else None)

    def follow() -> ig.Trajectory:
        plan, score = rivals.search_queue_plans(problem, training, settings)
        tuned["reactive"] = {"training_score": score, "settings": settings}
        return ig.rollout(problem.env, problem.params, rivals.follow_planned_queue, seeds, carry=plan)

    add("random", lambda: sequences(lanes.random_sequences(seeds, steps)))
    add("baseline", lambda: sequences(lanes.held(ig.ServeAction(), episodes, steps)))
    add("best static", lambda: sequences(lanes.held(problem.best_static, episodes, steps)))
    if open_loop:
        for name, rule in rivals.DEFAULTS.items():
            shipped = rivals.as_shipped(problem, rule)
            add(name, lambda plan=shipped: controlled(plan))
        add("best reactive", lambda: react(False))
        add("best reactive, true rates", lambda: react(True))
    else:
        add("reactive as planned", lambda: learned("reactive"))
        add("best reactive", follow)
    usual = [("PPO", "trained")] if has_trained(problem.spec.id) else []
    for name, path in policies or usual:
        add(name, lambda path=path: learned(path))

    start = time.perf_counter()
    report("oracle")
    starts = [one.sequences for each in runs.values() for one in each]
    if plans:  # the best of the settings in hindsight
        tiled = lanes.of_plans([plan for plan in plans for _ in range(episodes)], steps)
        values = lanes.scores_of(problem, tiled, np.tile(seeds, len(plans))).reshape(len(plans), episodes)
        best_plans = [plans[i] for i in values.argmax(axis=0)]
        starts.append(lanes.sequences_of(lanes.episodes_of(problem, lanes.of_plans(best_plans, steps), seeds).action))
    best, _ = oracle.search(problem, seeds, starts, candidates=candidates, rounds=rounds, report=report)
    runs["oracle"] = [played(problem, sequences(best))]
    seconds["oracle"] = time.perf_counter() - start

    static = runs["best static"][0].columns
    span = runs["oracle"][0].columns["score"].mean() - static["score"].mean()
    reactive = runs["best reactive"][0].columns
    rows = [row_of(name, each, static, span, seconds[name], reactive) for name, each in in_order(runs)]
    return {
        "task": problem.spec.id,
        "name": problem.spec.name,
        "title": problem.spec.title,
        "version": ig.__version__,
        "task_digest": problem.spec.digest,
        "episodes": episodes,
        "seeds": [int(seed) for seed in seeds],
        "training_episodes": training_episodes,
        "best_static": problem.best_static.to_dict(),
        "tuned": tuned,
        "rows": rows,
        "seconds": time.perf_counter() - began,
    }


def with_learned(
    found: Mapping[str, Any],
    problem: Problem,
    policies: Sequence[tuple[str, str]],
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """A table with rows of learned policies added, or measured again, on its own episodes; nothing is searched anew.

    Args:
        found: of ``measure`` or ``published``.
        problem: the task that it is of.
        policies: (row, policy file or name); several of one row are training seeds of one method.
        report: told what runs.

    Raises:
        ValueError: the table is of another task, or of the task as it was; an unknown policy.
    """
    if found["task_digest"] != problem.spec.digest:
        raise ValueError(f"headroom of task {found['name']!r}: the task is another now; measure it again")
    seeds, steps = np.asarray(found["seeds"], np.uint32), int(problem.params.episode_length)
    held = lanes.of_sequences(lanes.held(problem.best_static, len(seeds), steps))
    static = played(problem, lanes.episodes_of(problem, held, seeds)).columns
    reactive = None
    if "plan" in found["tuned"].get("reactive", {}):
        followed = lanes.of_plans([tuned_plan(found)] * len(seeds), steps)
        reactive = played(problem, lanes.episodes_of(problem, followed, seeds)).columns
    means = {row["policy"]: row["score"]["mean"] for row in found["rows"]}
    span = means["oracle"] - means["best static"]
    fresh: dict[str, list[Played]] = {}
    seconds: dict[str, float] = {}
    for name, path in policies:
        report(name)
        start = time.perf_counter()
        env, policy = env_and_policy(path, problem)
        fresh.setdefault(name, []).append(played(problem, ig.rollout(env, problem.params, policy, seeds)))
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
    added = [row_of(name, each, static, span, seconds[name], reactive) for name, each in fresh.items()]
    if reactive is not None and problem.env.draws is not None:
        for row, each in zip(added, fresh.values(), strict=True):
            over = np.mean([one.columns["score"] for one in each], axis=0) - reactive["score"]
            row["over_reactive_by_draw"] = by_draw(problem.env.draws, seeds, over)
    kept = [row for row in found["rows"] if row["policy"] not in fresh]
    oracle_at = [row["policy"] for row in kept].index("oracle")
    return {**found, "rows": [*kept[:oracle_at], *added, *kept[oracle_at:]]}


def by_draw(draws: Draws, seeds: np.ndarray, differences: np.ndarray) -> dict[str, Any]:
    """Differences of the episodes whose pool, GPU or objectives training never draws, and of those that it may:
    name -> mean with interval, median, worst and the number of episodes."""
    choice = jax.tree.map(np.asarray, jax.jit(jax.vmap(draws.choice))(seeds))
    unseen = {
        f"{name} unseen": getattr(choice, name) >= seen
        for name, seen in zip(("pool", "engine", "objective"), draws.seen, strict=True)
    }
    groups = {**unseen, "any unseen": np.any(list(unseen.values()), axis=0)}
    groups["all seen"] = ~groups["any unseen"]
    groups["second GPU to lease"] = np.asarray(choice.may_lease)
    return {
        name: mean_interval(differences[flag])
        | {
            "median": float(np.median(differences[flag])),
            "worst": float(differences[flag].min()),
            "episodes": int(flag.sum()),
        }
        for name, flag in groups.items()
        if flag.any()
    }


def in_order(found: Mapping[str, list[Played]]) -> list[tuple[str, list[Played]]]:
    """Rows from the weakest kind of rival to the oracle."""
    first = [name for name in (*OPEN_ROWS, "reactive as planned") if name in found]
    rest = [name for name in found if name not in first and name != "oracle"]
    return [(name, found[name]) for name in (*first, *rest, "oracle")]


def row_of(
    name: str,
    found: list[Played],
    static: Mapping[str, np.ndarray],
    span: float,
    seconds: float,
    reactive: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """One row: intervals of every column, what it wins over the best static action and over the tuned controller, its
    worst episode."""
    columns = {key: np.mean([one.columns[key] for one in found], axis=0) for key in COLUMNS}
    difference = columns["score"] - static["score"]
    row: dict[str, Any] = {"policy": name, "runs": len(found)}
    row |= {key: mean_interval(values) for key, values in columns.items()}
    row["paired"] = mean_interval(difference)
    row["worst"] = {"score": float(columns["score"].min()), "paired": float(difference.min())}
    if reactive is not None:
        over = columns["score"] - reactive["score"]
        row["over_reactive"] = mean_interval(over) | {"median": float(np.median(over)), "worst": float(over.min())}
    row["gpu_seconds_saved"] = 1.0 - float(columns["gpu_seconds"].sum() / max(static["gpu_seconds"].sum(), 1e-9))
    row["normalised"] = float(difference.mean() / span) if span > 0 else None  # nothing to win
    if len(found) > 1:
        row["interquartile"] = interquartile(np.stack([one.columns["score"] - static["score"] for one in found]))
    return row | {"seconds": seconds}


def published(task: int) -> dict[str, Any]:
    """What ``python -m training headroom`` found of a task, as it stands in ``docs/headroom``.

    Raises:
        FileNotFoundError: there is nothing of this task.
    """
    return json.loads((PUBLISHED / f"task{task}.json").read_text(encoding="utf-8"))


def tuned_plan(found: Mapping[str, Any]) -> LoadPlan:
    """The controller's settings that a search found, of what ``measure`` returned or ``published`` read."""
    return LoadPlan(**found["tuned"]["reactive"]["plan"])


def plain(plan: Any) -> dict[str, float]:
    """A plan as JSON holds it."""
    return {f.name: float(np.asarray(getattr(plan, f.name))) for f in dataclasses.fields(plan)}


def markdown(found: Mapping[str, Any]) -> str:
    """The table of a task."""
    lines = [
        f"Task {found['task']}, {found['title']}: mean [95 % interval] of {found['episodes']} held-out episodes; 0 is "
        "the best static action, 1 the oracle",
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{' --- |' * len(HEADER)}",
    ]
    for row in found["rows"]:
        score, paired = row["score"], row["paired"]
        cells = (
            f"{score['mean']:.3f}",
            f"{paired['mean']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]",
            f"{row['worst']['paired']:+.3f}",
            "" if row["normalised"] is None else f"{row['normalised']:.2f}",
            f"{row['return']['mean']:.1f}",
            f"{row['goodput_share']['mean']:.3f}",
            f"{row['on_time_share']['mean']:.3f}",
            f"{row['gpu_seconds']['mean']:.0f}",
            f"{row['switches']['mean']:.0f}",
            f"{row['seconds']:.0f}",
        )
        name = row["policy"] if row["policy"] != "oracle" else "oracle, at least"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """JSON, CSV, PNG and SVG of a table; returns the files."""
    from training.plots import draw_headroom

    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(".json"), stem.with_suffix(".csv")]
    paths[0].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [*COLUMNS, "paired"]
        header = [f"{name}_{end}" for name in names for end in ("mean", "low", "high")]
        writer.writerow(["policy", "normalised", "worst_paired", "gpu_seconds_saved", "seconds", *header])
        for row in found["rows"]:
            values = [row[name][end] for name in names for end in ("mean", "low", "high")]
            start = [row["policy"], row["normalised"], row["worst"]["paired"], row["gpu_seconds_saved"], row["seconds"]]
            writer.writerow([*start, *values])
    return paths + draw_headroom(found, stem)
