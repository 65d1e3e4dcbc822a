"""The leaderboard: rows in ``leaderboard/*.json``, made into ``LEADERBOARD.md``, and each played again by ``check``.

``row -> what it plays -> episodes -> score with interval``. A row names a policy (a name, a file, settings of the
load-following controller) or holds the actions of its episodes; either way the score is what the simulator says now.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.adapters.relative_views import env_and_policy
from inferencegym_jax.fleet.making import fleet_spec_of, is_fleet
from inferencegym_jax.models import KNOBS, ServeAction
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.policies import has_trained
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.names import GENERAL, static_action
from inferencegym_jax.policies.policy_file import GENERAL as GENERAL_FILE
from inferencegym_jax.policies.policy_file import load_network, shipped_file
from inferencegym_jax.table.derived_profile import profile_of
from inferencegym_jax.table.latency_table import data_path
from inferencegym_jax.tasks import calibration, shipped_specs
from training import fleet_leaderboard, lanes, rivals
from training.headroom import PUBLISHED, Played, plain, played, published, tuned_plan

ROOT = Path(__file__).resolve().parent.parent
ROWS, PAGE = ROOT / "leaderboard", ROOT / "LEADERBOARD.md"
OURS = "ours.json"
EPISODES = 24  # of our own rows, at least
TOLERANCE = 1e-3  # of a score: what another machine's rounding may move a mean of episodes by
VERIFIED = 1  # episodes of each row whose actions are simulated again one by one, by ``ig.verify``
NOT_MEASURED: dict[str, float] = {"mean": 0.0, "low": 0.0, "high": 0.0}
SPLIT = "held-out"
"""Seeds 0, 53, 106, ...: none is a training run's, and where traffic has days they are of days that training lacks."""

HOW_TO = ROWS / "README.md"  # how to add a row, the end of the page


@dataclass(frozen=True)
class Row:
    """One entry. Exactly one of ``policy``, ``plan`` and ``actions`` says what is played.

    Attributes:
        name: as the page shows it.
        task: name of the task.
        version: ``task_version`` of the task that it was measured on.
        split: which episodes; "held-out".
        episodes: how many of them.
        budget: environment steps that were spent on it, all searches and seeds.
        score: ``{"mean", "low", "high"}``, the mean over episodes and its 95 % interval.
        policy: a policy's name, or the path of its file from the repository's root.
        plan: settings of the load-following controller.
        actions: path of a NumPy archive of the actions, an array (episodes, steps) for each knob.
        link: where the code is.
    """

    name: str
    task: str
    version: str
    split: str
    episodes: int
    budget: int
    score: dict[str, float]
    policy: str | None = None
    plan: dict[str, float] | None = None
    actions: str | None = None
    link: str = ""

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.policy, self.plan, self.actions)) != 1:
            raise ValueError(f"row {self.name!r}: must have exactly one of policy, plan and actions")
        if self.split != SPLIT:
            raise ValueError(f"row {self.name!r}: split = {self.split!r}: must be {SPLIT!r}")
        for name in ("episodes", "budget"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < (name == "episodes"):
                raise ValueError(f"row {self.name!r}: {name} = {value!r}: must be a whole number")
        if set(self.score) != {"mean", "low", "high"}:
            raise ValueError(f"row {self.name!r}: score = {self.score!r}: must have mean, low and high")

    @property
    def plays(self) -> str:
        """What the row plays, in a word."""
        return self.policy or self.actions or "settings of the load-following controller"


def task_version(problem: Problem) -> str:
    """Eight hexadecimal digits of what a task's scores depend on: the task, its table with the engine's profile, its
    normalisers."""
    table = problem.table
    profile = profile_of(table).digest if problem.dynamics == "open_loop" else ""
    if problem.env.draws is not None:
        profile = " ".join(one.digest for one, _ in problem.env.draws.stack.engines)
    content = (problem.spec.digest, table.digest, profile, json.dumps(problem.normalisers, sort_keys=True))
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:8]


def read(folder: Path = ROWS) -> dict[Path, list[Row]]:
    """The rows of every file.

    Raises:
        ValueError: a file that is none, or a row with an unknown or missing field, or one that cannot be; names both.
    """
    rows: dict[Path, list[Row]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            rows[path] = [Row(**entry) for entry in json.loads(path.read_text())["rows"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a file of rows: {error}") from error
    return rows


def write(path: Path, rows: Sequence[Row]) -> None:
    """A file of rows; fields that are not set are left out."""
    entries = [{k: v for k, v in dataclasses.asdict(row).items() if v not in (None, "")} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": entries}, indent=1) + "\n")


def lanes_of(row: Row, problem: Problem, root: Path = ROOT) -> lanes.Lanes | None:
    """The row's episodes as lanes, which all rows of a task share a compiled program in; None of a network and of the
    planned controller.

    Raises:
        ValueError, OSError: its actions or settings cannot be used.
    """
    seeds, steps = rivals.test_seeds(row.episodes), int(problem.params.episode_length)
    if row.plan is not None:
        return lanes.of_plans([LoadPlan(**row.plan)] * row.episodes, steps)
    if row.actions is not None:
        return lanes.of_sequences(_actions(root / row.actions, row, steps))
    if row.policy == "random":
        return lanes.of_sequences(lanes.random_sequences(seeds, steps))
    action = static_action(str(row.policy), problem)
    return None if action is None else lanes.of_sequences(lanes.held(action, row.episodes, steps))


def episodes_of(row: Row, problem: Problem, root: Path = ROOT) -> ig.Trajectory:
    """The row's episodes, played now.

    Raises:
        ValueError, OSError: its policy or actions cannot be used.
    """
    seeds, own = rivals.test_seeds(row.episodes), lanes_of(row, problem, root)
    if own is not None:
        return lanes.episodes_of(problem, own, seeds)
    name = str(row.policy)
    env, policy = env_and_policy(str(root / name) if name.endswith(".npz") else name, problem)
    return ig.rollout(env, problem.params, policy, seeds)


def _actions(path: Path, row: Row, steps: int) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        columns = {name: archive[name] for name in archive.files}
    shape = (row.episodes, steps)
    for name in KNOBS:
        if name not in columns or columns[name].shape != shape:
            raise ValueError(f"{path}: {name}: must be an array {shape}, one number a second of each episode")
    ig.make(row.task)[0].check_action(ServeAction(**{name: columns[name] for name in KNOBS}))
    return columns


def measure(row: Row, root: Path = ROOT) -> tuple[dict[str, float], Played]:
    """(score with its interval, episodes) of a row of a single engine, played now."""
    problem = ig.problem(row.task)
    episodes = played(problem, episodes_of(row, problem, root))
    return mean_interval(episodes.columns["score"]), episodes


def fleet_score(row: Row, root: Path = ROOT) -> dict[str, float]:
    """Score with its interval of a row of a fleet, played now.

    Raises:
        ValueError, FileNotFoundError: its policy cannot be used, or it names none.
    """
    if row.policy is None:
        raise ValueError(f"row {row.name!r}: a fleet's must have a policy")
    name = str(root / row.policy) if row.policy.endswith(".npz") else row.policy
    return fleet_leaderboard.score_of(row.task, name, rivals.test_seeds(row.episodes).tolist())


def _fleet_faults(row: Row, root: Path) -> list[str]:
    version = fleet_leaderboard.version_of(row.task)
    if row.version != version:
        return [f"is of version {row.version} of {row.task}, which is {version} now: measure it again"]
    try:
        return _differ(row, fleet_score(row, root))
    except (ValueError, OSError) as error:
        return [str(error)]


def _differ(row: Row, score: Mapping[str, float]) -> list[str]:
    return [
        f"score {name} = {row.score[name]:.4f}; played again it is {score[name]:.4f}"
        for name in ("mean", "low", "high")
        if not abs(row.score[name] - score[name]) <= TOLERANCE
    ]


def faults_of(rows: Sequence[Row], root: Path = ROOT) -> list[list[str]]:
    """What is not true of rows of one task, in sentences; nothing of a row where all of it is reproduced.

    Its episodes are played again, the score and its interval must come out, and the actions of the first episode,
    simulated one by one by ``ig.verify``, must give that episode's score; of a fleet the score alone is compared. Rows
    without a network are played together: compiling takes longer than playing.

    Raises:
        ValueError: rows of several tasks.
    """
    if len({row.task for row in rows}) > 1:
        raise ValueError(f"rows: of tasks {', '.join(sorted({row.task for row in rows}))}; must be of one")
    said: list[list[str]] = [[] for _ in rows]
    if not rows:
        return said
    if is_fleet(rows[0].task):
        return [_fleet_faults(row, root) for row in rows]
    problem = ig.problem(rows[0].task)
    version = task_version(problem)
    together: dict[int, lanes.Lanes] = {}
    for i, row in enumerate(rows):
        if row.version != version:
            said[i] = [f"is of version {row.version} of {row.task}, which is {version} now: measure it again"]
            continue
        try:
            own = lanes_of(row, problem, root)
            if own is None:
                said[i] = _differences(row, problem, played(problem, episodes_of(row, problem, root)))
            else:
                together[i] = own
        except (ValueError, TypeError, OSError) as error:
            said[i] = [str(error)]
    if together:
        joined: lanes.Lanes = jax.tree.map(lambda *parts: np.concatenate(parts), *together.values())
        seeds = np.concatenate([rivals.test_seeds(rows[i].episodes) for i in together])
        trajectory = jax.tree.map(np.asarray, lanes.episodes_of(problem, joined, seeds))
        start = 0
        for i in together:
            end = start + rows[i].episodes
            part = jax.tree.map(lambda x, a=start, b=end: x[:, a:b], trajectory)
            said[i], start = _differences(rows[i], problem, played(problem, part)), end
    return said


def _differences(row: Row, problem: Problem, episodes: Played) -> list[str]:
    """In what a row differs from its episodes as they were played now."""
    each = episodes.columns["score"]
    said = _differ(row, mean_interval(each))
    for i in range(min(VERIFIED, row.episodes)):
        columns = {name: episodes.sequences[name][i] for name in KNOBS}
        steps = range(problem.spec.episode_length)
        actions = [{name: KNOBS[name].plain(columns[name][t]) for name in KNOBS} for t in steps]
        seed = int(rivals.test_seeds(row.episodes)[i])
        verified = ig.verify(row.task, seed, None, actions)["score"]
        if not abs(verified - each[i]) <= TOLERANCE:
            said.append(f"seed {seed}: scores {each[i]:.4f}; its actions, verified, score {verified:.4f}")
    return said


def our_rows(tasks: Sequence[str] | None = None, episodes: int = EPISODES) -> list[Row]:
    """What we measure every task with: random, baseline, rules as shipped, best static, reactive (as planned, and tuned
    where ``docs/headroom`` holds the settings), trained; not yet measured."""
    rows: list[Row] = []
    for spec in shipped_specs().values():
        if tasks and spec.name not in tasks:
            continue
        problem = ig.problem(spec)
        steps = spec.episode_length

        def add(name: str, budget: int = 0, *, spec: Any = spec, problem: Any = problem, **plays: Any) -> None:
            rows.append(Row(name, spec.name, task_version(problem), SPLIT, episodes, budget, NOT_MEASURED, **plays))

        add("random", policy="random")
        add("baseline: naive vLLM defaults", policy="baseline")
        if problem.dynamics == "open_loop":
            for name, rule in rivals.DEFAULTS.items():
                add(f"{name}, as shipped", plan=plain(rivals.as_shipped(problem, rule)))
        add("best static", static_search_episodes(spec.name) * steps, policy="best_static")
        add("reactive, as planned", policy="reactive")
        if (PUBLISHED / f"task{spec.id}.json").is_file():
            headroom = published(spec.id)
            if "plan" in headroom["tuned"].get("reactive", {}):
                searched = headroom["tuned"]["reactive"]["settings"] * headroom["training_episodes"]
                add("reactive, tuned", searched * steps, plan=plain(tuned_plan(headroom)))
        if has_trained(spec.id):
            _, about = load_network(shipped_file(spec.id))
            add("PPO, the policy that ships", int(about["last_evaluation"]["env_steps"]), policy="trained")
        if problem.dynamics == "open_loop":
            _, about = load_network(data_path(GENERAL_FILE))
            budget = int(about.get("budget", about["last_evaluation"]["env_steps"]))  # of all seeds, where stated
            add("general policy, trained on task 8", budget, policy=GENERAL)
    for task in fleet_leaderboard.titles():
        if not tasks or task in tasks:
            version = fleet_leaderboard.version_of(task)
            for name, policy, budget in fleet_leaderboard.ours(task):
                rows.append(Row(name, task, version, SPLIT, episodes, budget, NOT_MEASURED, policy=policy))
    return rows


def static_search_episodes(task: str) -> int:
    """Episodes that the search of a shipped task's best static action played (``data/calibration.json``)."""
    document = calibration()
    entry = document["tasks"][task]
    rounds = entry.get("rounds") or [[int(document["seeds"].split()[-1]) + 1, 1.0]]
    return round(sum(entry["static_actions_searched"] * share * seeds for seeds, share in rounds))


def update(
    tasks: Sequence[int | str] | None = None, episodes: int = EPISODES, report: Callable[[str], None] = lambda _: None
) -> Path:
    """Measure our own rows, of some tasks or of all, and write them; those of the other tasks stay.

    Returns:
        The file.
    """
    path = ROWS / OURS
    names = [name_of(task) for task in tasks or []]
    kept = [row for row in read().get(path, []) if names and row.task not in names]
    fresh = []
    for row in our_rows(names, episodes):
        score = fleet_score(row) if is_fleet(row.task) else measure(row)[0]
        fresh.append(dataclasses.replace(row, score=score))
        report(f"{row.task}: {row.name}: {score['mean']:.4f}")
    order = {name: i for i, name in enumerate([*shipped_specs(), *fleet_leaderboard.titles()])}
    write(path, sorted([*kept, *fresh], key=lambda row: order.get(row.task, len(order))))
    return path


def markdown(rows: Sequence[Row]) -> str:
    """``LEADERBOARD.md``: a table a task, best first, of the rows of today's versions."""
    lines = [
        "# Leaderboard",
        "",
        "Made from `leaderboard/*.json` by `python -m training leaderboard`; `python -m training leaderboard --check`"
        " plays every row again. Scores are means over held-out episodes with 95 % bootstrap intervals; the budget"
        " counts the environment steps that were spent.",
        "",
    ]
    titles = {spec.name: f"Task {spec.id}, {spec.title}" for spec in ig.task_specs().values()}
    for task, title in {**titles, **fleet_leaderboard.titles()}.items():
        version = fleet_leaderboard.version_of(task) if is_fleet(task) else task_version(ig.problem(task))
        mine = sorted((r for r in rows if (r.task, r.version) == (task, version)), key=lambda r: -r.score["mean"])
        if not mine:
            continue
        lines += [f"## {title} ({task}, version {version})", ""]
        lines += ["| policy | score | budget | episodes | what is played |", "| --- | --- | --- | --- | --- |"]
        for row in mine:
            score = f"{row.score['mean']:.4f} [{row.score['low']:.4f}, {row.score['high']:.4f}]"
            plays = f"[{row.plays}]({row.link})" if row.link else row.plays
            lines.append(f"| {row.name} | {score} | {row.budget:,} | {row.episodes} {row.split} | {plays} |")
        lines.append("")
    return "\n".join([*lines, HOW_TO.read_text()])


def name_of(task: Any) -> str:
    """Name of a task, a fleet's too.

    Raises:
        ValueError: there is none.
    """
    return fleet_spec_of(task).name if is_fleet(task) else ig.get_task(task).name


def every_row(folder: Path = ROWS, task: Any = None) -> list[Row]:
    """The rows of all files, or of one task."""
    name = None if task is None else name_of(task)
    return [row for rows in read(folder).values() for row in rows if name in (None, row.task)]


def add(name: str, task: Any, budget: int, episodes: int = EPISODES, **plays: Any) -> Mapping[str, Any]:
    """Measure a row of somebody's and write ``leaderboard/NAME.json``; its fields."""
    fleet = is_fleet(task)
    version = fleet_leaderboard.version_of(name_of(task)) if fleet else task_version(ig.problem(task))
    row = Row(name, name_of(task), version, SPLIT, episodes, budget, NOT_MEASURED, **plays)
    row = dataclasses.replace(row, score=fleet_score(row) if fleet else measure(row)[0])
    write(ROWS / f"{name}.json", [row])
    return dataclasses.asdict(row)
