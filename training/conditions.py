"""A policy of a task that is drawn, beside the controller that is tuned for each condition alone.

``task, conditions (pool, GPU, objectives) -> settings searched on episodes of one condition -> other episodes of it ->
paired differences -> JSON, Markdown``. Load, start, clock, memory and free knobs are drawn anew in each episode; both
sets of episodes are held out, and neither is of ``headroom``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.adapters.relative_views import env_and_policy
from inferencegym_jax.models import check_whole
from inferencegym_jax.numerics.bootstrap import mean_interval
from inferencegym_jax.traffic.days import SEED_STRIDE
from training import lanes, rivals
from training.headroom import plain, published, tuned_plan

CONDITIONS, TUNING, EPISODES, SETTINGS = 6, 24, 24, 64
FIRST_DAY = 4096  # held-out days before it are headroom's
DAYS = 1 << 16  # that are looked through
ALLOWED = 0.02  # of score, below the controller tuned for the condition
HERE, ONCE, POLICY = "tuned here", "tuned once", "policy"


@dataclass(frozen=True)
class Condition:
    """What episodes have in common, and which they are.

    Attributes:
        name: pool, GPU with weight format, TTFT / TPOT objectives (ms).
        unseen: how many of the three training never draws.
        tuning: uint32[episodes], on which settings are searched.
        seeds: uint32[episodes], on which all are measured.
    """

    name: str
    unseen: int
    tuning: np.ndarray
    seeds: np.ndarray


def conditions_of(problem: Problem, count: int, tuning: int, episodes: int) -> list[Condition]:
    """Conditions of a task that is drawn, picked at random (seed 0), each with its held-out episodes.

    Args:
        problem: whose.
        count: of conditions.
        tuning: episodes of each on which settings are searched.
        episodes: further ones of each.

    Raises:
        ValueError: a task that is not drawn for each episode; a count below 1, or more than there are.
    """
    draws = problem.env.draws
    if draws is None:
        raise ValueError(f"task {problem.spec.name!r}: is one condition; must be drawn for each episode, as task 8 is")
    for name, value in (("conditions", count), ("tuning episodes", tuning), ("episodes", episodes)):
        check_whole(name, value)
    entry = draws.entry
    pools = [*entry["pools"], *entry.get("unseen_pools", ())]
    engines = [*entry["engines"], *entry.get("unseen_engines", ())]
    tiers = [*entry["objectives"], *entry.get("unseen_objectives", ())]
    engines = engines if len(draws.stack.engines) == len(engines) else ["a table of one's own"]
    shape = len(pools), len(engines), len(tiers)
    if count > np.prod(shape):
        raise ValueError(f"conditions = {count}: the task has {np.prod(shape)}")
    seeds = (SEED_STRIDE * np.arange(FIRST_DAY, FIRST_DAY + DAYS, dtype=np.uint64)).astype(np.uint32)
    choice = jax.tree.map(np.asarray, jax.jit(jax.vmap(draws.choice))(seeds))
    which = np.ravel_multi_index((choice.pool, choice.engine, choice.objective), shape)
    picked: list[Condition] = []
    for index in np.random.default_rng(0).permutation(np.prod(shape))[:count]:
        own = seeds[which == index]
        if len(own) < tuning + episodes:
            raise ValueError(f"tuning episodes + episodes = {tuning + episodes}: must be at most {len(own)}")
        place = [int(x) for x in np.unravel_index(index, shape)]
        tier = tiers[place[2]]
        name = f"{pools[place[0]]}, {engines[place[1]]}, {_text(tier['ttft_ms'])} / {_text(tier['tpot_ms'])}"
        unseen = sum(at >= seen for at, seen in zip(place, draws.seen, strict=True))
        picked.append(Condition(name, unseen, own[:tuning], own[tuning : tuning + episodes]))
    return picked


def _text(objective: Any) -> str:
    values = objective if isinstance(objective, list | tuple) else [objective]
    return " and ".join(f"{value:,g}" for value in values)


def measure(
    problem: Problem,
    policy: str = "general",
    *,
    count: int = CONDITIONS,
    tuning: int = TUNING,
    episodes: int = EPISODES,
    settings: int = SETTINGS,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that ``python -m training conditions`` prints.

    Args:
        problem: a task that is drawn, with settings in docs/headroom.
        policy: its name or file.
        count, tuning, episodes: see ``conditions_of``.
        settings: of the controller that are drawn for each condition; as many again are tried around the best, and
            those that were tuned once are among them.
        report: told what runs.

    Returns:
        ``{"task", "policy", "episodes", "tuning_episodes", "settings", "allowed", "rows": [{"condition", "unseen",
        "plan", "scores": {who: interval}, "over_here", "over_once"}], "all": {"over_here", "over_once"}, "seconds"}``;
        differences are the policy's, paired by episode, with the worst of them.

    Raises:
        ValueError: see ``conditions_of``; no settings, or an unknown policy.
        FileNotFoundError: docs/headroom has nothing of the task.
    """
    check_whole("settings", settings)
    began = time.perf_counter()
    once, steps = tuned_plan(published(problem.spec.id)), int(problem.params.episode_length)
    picked = conditions_of(problem, count, tuning, episodes)
    report(f"{policy}, {count} conditions of {episodes} episodes")
    env, own = env_and_policy(policy, problem)
    learned = np.asarray(
        problem.score(ig.evaluate(env, problem.params, own, np.concatenate([one.seeds for one in picked]))), np.float64
    ).reshape(count, episodes)
    rows: list[dict[str, Any]] = []
    differences: dict[str, list[np.ndarray]] = {HERE: [], ONCE: []}
    for condition, mine in zip(picked, learned, strict=True):
        report(condition.name)
        plans, tried = rivals.search_plans(problem, condition.tuning, None, settings)
        known = float(rivals.mean_scores(problem, [once], condition.tuning)[0])
        here = plans[0] if tried[0] >= known else once
        lane = lanes.of_plans([plan for plan in (here, once) for _ in condition.seeds], steps)
        both = lanes.scores_of(problem, lane, np.tile(condition.seeds, 2)).reshape(2, episodes)
        scores = {HERE: both[0], ONCE: both[1], POLICY: mine}
        for who, values in differences.items():
            values.append(mine - scores[who])
        rows.append(
            {
                "condition": condition.name,
                "unseen": condition.unseen,
                "plan": plain(here),
                "scores": {who: mean_interval(values) for who, values in scores.items()},
                "over_here": _difference(mine - scores[HERE]),
                "over_once": _difference(mine - scores[ONCE]),
            }
        )
    return {
        "task": problem.spec.id,
        "policy": policy,
        "episodes": episodes,
        "tuning_episodes": tuning,
        "settings": 2 * settings + 1,
        "allowed": ALLOWED,
        "rows": rows,
        "all": {
            "over_here": _difference(np.concatenate(differences[HERE])),
            "over_once": _difference(np.concatenate(differences[ONCE])),
        },
        "seconds": time.perf_counter() - began,
    }


def _difference(values: np.ndarray) -> dict[str, float]:
    return mean_interval(values) | {"median": float(np.median(values)), "worst": float(values.min())}


def markdown(found: Mapping[str, Any]) -> str:
    """The table of a measurement."""
    head = ("condition", "unseen of 3", HERE, ONCE, POLICY, "over tuned here", "worst", "over tuned once")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]

    def span(one: Mapping[str, float]) -> str:
        return f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"

    for row in found["rows"]:
        cells = (row["condition"], str(row["unseen"]), *(f"{row['scores'][who]['mean']:.3f}" for who in head[2:5]))
        ends = (span(row["over_here"]), f"{row['over_here']['worst']:+.3f}", span(row["over_once"]))
        lines.append(f"| {' | '.join((*cells, *ends))} |")
    both = found["all"]
    ends = (span(both["over_here"]), f"{both['over_here']['worst']:+.3f}", span(both["over_once"]))
    lines.append(f"| all | | | | | {' | '.join(ends)} |")
    return "\n".join(lines)
