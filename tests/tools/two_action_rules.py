"""Rules of two actions, and a search for the best of them: what a policy that exploits a simulator would look like.

A rule plays its first action, and its second while a condition holds: queue, arrival rate or TTFT are above a
threshold, or the clock says so (alternation: some seconds of one, some of the other). Rules are rows of numbers in
[0, 1], so that an evolutionary search can mutate them; it starts from the best static action.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.environment import effective_action
from inferencegym_jax.models import KNOBS, Knob

ALTERNATE, QUEUE, RATE, TTFT = CONDITIONS = range(4)
KNOBS_OF_A_ROW = len(KNOBS)
CONDITION, THRESHOLD, SECONDS = range(2 * KNOBS_OF_A_ROW, 2 * KNOBS_OF_A_ROW + 3)
LENGTH = SECONDS + 1
LONGEST_TURN = 64.0  # seconds
POPULATION, SEEDS, KEPT = 256, 32, 32  # KEPT rules on POPULATION * SEEDS / KEPT seeds are as many episodes: one program


class Rules(NamedTuple):
    """Columns of one entry a rule."""

    first: ig.ServeAction
    second: ig.ServeAction
    condition: jax.Array  # int32
    threshold: jax.Array  # float32, or seconds of the first action
    seconds: jax.Array  # float32, of the second action


class Results(NamedTuple):
    """float64[rules, seeds]."""

    score: np.ndarray
    total_reward: np.ndarray
    oom_share: np.ndarray
    rejected_share: np.ndarray  # of the requests that arrived


def follow(key: jax.Array, observation: ig.ServeObservation, rule: Rules) -> tuple[ig.ServeAction, Rules]:
    """The policy that plays the rule in its carry."""
    del key
    clock = jnp.mod(observation.timestep, rule.threshold + rule.seconds) >= rule.threshold
    options = (clock, observation.queue_depth > rule.threshold, observation.arrival_rate > rule.threshold)
    holds = jnp.select([rule.condition == i for i in range(3)], options, observation.ttft_p50 > rule.threshold)
    return jax.tree.map(lambda a, b: jnp.where(holds, b, a), rule.first, rule.second), rule


def place(knob: Knob, value: Any) -> float:
    """Where a knob's value stands in [0, 1]; the middle of its part where it has few."""
    if knob.kind == "float":
        return float((value - knob.low) / (knob.high - knob.low)) ** 0.5
    if knob.kind == "int":
        return float(np.log(value / knob.low) / np.log(knob.high / knob.low))
    return (knob.options.index(value) + 0.5) / len(knob.options)


def values_at(knob: Knob, x: np.ndarray) -> np.ndarray:
    """The values of a knob at places in [0, 1]."""
    if knob.kind == "float":
        return knob.low + (knob.high - knob.low) * x**2
    if knob.kind == "int":
        return np.round(knob.low * (knob.high / knob.low) ** x).astype(int)
    return np.asarray(knob.options)[np.minimum((x * len(knob.options)).astype(int), len(knob.options) - 1)]


def static_row(action: ig.ServeAction) -> np.ndarray:
    """The row of a rule whose two actions are one."""
    knobs = [place(knob, getattr(action, name)) for name, knob in KNOBS.items()]
    return np.asarray([*knobs, *knobs, 0.5 / len(CONDITIONS), 0.3, 0.3])


def decode(rows: np.ndarray, longest_turn: float = LONGEST_TURN) -> Rules:
    """Rules of rows float[rules, LENGTH] in [0, 1]."""

    def action(part: np.ndarray) -> ig.ServeAction:
        knobs = {name: values_at(knob, part[:, i]) for i, (name, knob) in enumerate(KNOBS.items())}
        return ig.ServeAction(**knobs).as_arrays()

    condition = np.minimum((rows[:, CONDITION] * len(CONDITIONS)).astype(int), len(CONDITIONS) - 1)
    x = rows[:, THRESHOLD]
    by_condition = [np.round(longest_turn**x), 512.0**x - 1.0, 400.0**x]
    threshold = np.select([condition == i for i in range(3)], by_condition, 4096.0**x)
    return Rules(
        action(rows[:, :KNOBS_OF_A_ROW]),
        action(rows[:, KNOBS_OF_A_ROW : 2 * KNOBS_OF_A_ROW]),
        jnp.asarray(condition, jnp.int32),
        jnp.asarray(threshold, jnp.float32),
        jnp.asarray(np.round(longest_turn ** rows[:, SECONDS]), jnp.float32),
    )


def in_memory(problem: ig.Problem, rules: Rules) -> Rules:
    """The rules with smaller KV budgets, and batches where that is not enough, so that both actions of each hold the
    traffic's longest prompts in a closed-loop task's GPU."""
    return rules._replace(first=_fitted(problem, rules.first), second=_fitted(problem, rules.second))


def _fitted(problem: ig.Problem, action: ig.ServeAction) -> ig.ServeAction:
    limit = float(problem.params.oom_limit_gb)

    def fits(changed: ig.ServeAction) -> np.ndarray:
        return np.asarray(_memory(problem.env, problem.params, changed)) <= limit

    low = np.full(np.shape(action.kv_budget), KNOBS["kv_budget"].low, np.float32)
    batch = np.asarray(action.batch_size)
    while not (small := fits(action.replace(kv_budget=low, batch_size=batch))).all():
        batch = np.where(small, batch, np.maximum(batch * 0.95, 1).astype(batch.dtype))
    kept, most = low, np.asarray(action.kv_budget)
    kept = np.where(fits(action.replace(batch_size=batch)), most, kept)
    for _ in range(12):
        middle = (kept + most) / 2
        good = fits(action.replace(batch_size=batch, kv_budget=middle))
        kept, most = np.where(good, middle, kept), np.where(good, most, middle)
    return action.replace(batch_size=jnp.asarray(batch), kv_budget=jnp.asarray(kept, jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def _memory(env: ig.Environment, params: ig.EnvParams, action: ig.ServeAction) -> jax.Array:
    longest = jnp.maximum(params.short_high, params.long_high)
    action = effective_action(env.table, action, params)
    return env.grid.lookup(action, jnp.broadcast_to(longest, action.batch_size.shape))["gpu_mem_gb"]


def play(problem: ig.Problem, rules: Rules, seeds: np.ndarray) -> Results:
    """Every rule on every seed."""
    count = len(rules.condition)
    carry = jax.tree.map(lambda x: jnp.repeat(x, len(seeds), axis=0), rules)
    found = ig.evaluate(problem.env, problem.params, follow, np.tile(seeds, count), carry=carry, carry_axis=0)
    rejected = np.asarray(found.rejected) / np.maximum(np.asarray(found.arrivals), 1.0)
    columns = (problem.score(found), found.total_reward, found.oom_share, rejected)
    return Results(*(np.asarray(x, np.float64).reshape(count, len(seeds)) for x in columns))


def search(
    problem: ig.Problem,
    counts: Callable[[Results], np.ndarray] = lambda results: np.ones(len(results.score), bool),
    *,
    prepare: Callable[[ig.Problem, Rules], Rules] = lambda _, rules: rules,
    first_seed: int = 2_000_000,
    generations: int = 16,
    longest_turn: float = LONGEST_TURN,
    conditions: tuple[int, ...] = tuple(CONDITIONS),
    objective: str = "score",
) -> np.ndarray:
    """Rows of the ``KEPT`` rules with the highest mean objective among those that count, best first: an evolutionary
    search with crossover and mutation.

    Args:
        problem: the task.
        counts: bool[rules] of what rules came to: which ones take part; default: all.
        prepare: what is done to rules before they are played: ``in_memory``.
        first_seed: of the episodes of each rule.
        generations: of the search.
        longest_turn: seconds of an alternation's turn, at most.
        conditions: those allowed.
        objective: "score" or "total_reward".
    """
    rng, seeds = np.random.default_rng(0), first_seed + np.arange(SEEDS)
    static = static_row(problem.best_static)
    best, values = np.zeros((0, LENGTH)), np.zeros(0)
    for generation in range(generations):
        drawn = rng.random((POPULATION, LENGTH))
        parents = best if len(best) else static[None]
        mother, father = (parents[rng.integers(len(parents), size=POPULATION)] for _ in range(2))
        child = np.where(rng.random(drawn.shape) < 0.2, father, mother)
        child = np.clip(child + 0.05 * rng.normal(size=drawn.shape) * (rng.random(drawn.shape) < 0.4), 0.0, 1.0)
        child = np.where(rng.random(drawn.shape) < 0.15, drawn, child)
        rows = np.where(rng.random((POPULATION, 1)) < (0.5 if generation == 0 else 0.1), drawn, child)
        rows[0] = static if generation == 0 else rows[0]
        allowed = np.asarray(conditions)[rng.integers(len(conditions), size=POPULATION)]
        now = np.minimum((rows[:, CONDITION] * len(CONDITIONS)).astype(int), len(CONDITIONS) - 1)
        rows[:, CONDITION] = (np.where(np.isin(now, conditions), now, allowed) + 0.5) / len(CONDITIONS)
        results = play(problem, prepare(problem, decode(rows, longest_turn)), seeds)
        value = np.where(counts(results), getattr(results, objective).mean(axis=1), -np.inf)
        rows, value = np.concatenate([best, rows]), np.concatenate([values, value])
        order = np.argsort(-value, kind="stable")[: 2 * KEPT]
        order = order[np.isfinite(value[order])]
        best, values = rows[order], value[order]
    return best[:KEPT]


def judge(
    problem: ig.Problem,
    rows: np.ndarray,
    *,
    prepare: Callable[[ig.Problem, Rules], Rules] = lambda _, rules: rules,
    longest_turn: float = LONGEST_TURN,
    objective: str = "score",
) -> tuple[Results, Rules]:
    """The best of at most ``KEPT`` rows on seeds that no search has seen, and what it plays.

    Raises:
        ValueError: no rows.
    """
    if not len(rows):
        raise ValueError("rows: none; no rule of the search counted")
    filled = np.concatenate([rows, np.repeat(rows[:1], KEPT - len(rows), axis=0)])
    rules = prepare(problem, decode(filled, longest_turn))
    results = play(problem, rules, 3_000_000 + np.arange(POPULATION * SEEDS // KEPT))
    best = int(getattr(results, objective).mean(axis=1).argmax())
    return Results(*(x[best] for x in results)), jax.tree.map(lambda x: x[best], rules)


def static_results(problem: ig.Problem) -> Results:
    """The best static action on the same seeds."""
    return judge(problem, static_row(problem.best_static)[None])[0]
