"""Rules of two actions, and a search for the best of them: what a policy that exploits a simulator would look like.

A rule plays its first action, and its second while a condition holds: queue, arrival rate or TTFT are above a
threshold, or the clock says so (alternation: some seconds of one, some of the other). Rules are rows of numbers in
[0, 1], so that an evolutionary search can mutate them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS

ALTERNATE, QUEUE, RATE, TTFT = range(4)
LENGTH = 13  # numbers of a row: five of each action, the condition, its threshold or seconds, seconds of the second
LONGEST_TURN = 64.0  # seconds


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
    oom_share: np.ndarray
    total_reward: np.ndarray


def follow(key: jax.Array, observation: ig.ServeObservation, rule: Rules) -> tuple[ig.ServeAction, Rules]:
    """The policy that plays the rule in its carry."""
    del key
    clock = jnp.mod(observation.timestep, rule.threshold + rule.seconds) >= rule.threshold
    options = (clock, observation.queue_depth > rule.threshold, observation.arrival_rate > rule.threshold)
    holds = jnp.select([rule.condition == i for i in range(3)], options, observation.ttft_p50 > rule.threshold)
    return jax.tree.map(lambda a, b: jnp.where(holds, b, a), rule.first, rule.second), rule


def decode(rows: np.ndarray, longest_turn: float = LONGEST_TURN) -> Rules:
    """Rules of rows float[rules, 13] in [0, 1]."""

    def action(part: np.ndarray) -> ig.ServeAction:
        low, high = KNOBS["kv_budget"].low, KNOBS["kv_budget"].high
        most, lengths, tiers = int(KNOBS["batch_size"].high), KNOBS["spec_length"].choices, KNOBS["quant_tier"].choices
        return ig.ServeAction(
            kv_budget=low + (high - low) * part[:, 0] ** 2,
            batch_size=np.clip(np.round(most ** part[:, 1]), 1, most).astype(int),
            spec_length=np.asarray(lengths)[np.minimum((part[:, 2] * len(lengths)).astype(int), len(lengths) - 1)],
            prefill_disagg=part[:, 3] > 0.5,
            quant_tier=np.asarray(tiers)[np.minimum((part[:, 4] * len(tiers)).astype(int), len(tiers) - 1)],
        ).as_arrays()

    condition = np.minimum((rows[:, 10] * 4).astype(int), 3)
    x = rows[:, 11]
    by_condition = [np.round(longest_turn**x), 512.0**x - 1.0, 400.0 * x]
    threshold = np.select([condition == i for i in range(3)], by_condition, 4096.0**x)
    seconds = np.round(longest_turn ** rows[:, 12])
    return Rules(
        action(rows[:, :5]),
        action(rows[:, 5:10]),
        jnp.asarray(condition, jnp.int32),
        jnp.asarray(threshold, jnp.float32),
        jnp.asarray(seconds, jnp.float32),
    )


def play(problem: ig.Problem, rules: Rules, seeds: np.ndarray) -> Results:
    """Every rule on every seed."""
    count = len(rules.condition)
    carry = jax.tree.map(lambda x: jnp.repeat(x, len(seeds), axis=0), rules)
    statistics = ig.evaluate(problem.env, problem.params, follow, np.tile(seeds, count), carry=carry, carry_axis=0)
    columns = (problem.score(statistics), statistics.oom_share, statistics.total_reward)
    return Results(*(np.asarray(x, np.float64).reshape(count, len(seeds)) for x in columns))


def can_run_out(problem: ig.Problem, rules: Rules) -> np.ndarray:
    """bool[rules]: does one of the two actions exceed the GPU's memory at the traffic's longest prompts."""
    longest = float(max(problem.params.short_high, problem.params.long_high))
    limit = float(problem.params.oom_limit_gb)
    exceeds = [
        np.asarray(_memory(problem.env, problem.params, a, longest)) > limit for a in (rules.first, rules.second)
    ]
    return exceeds[0] | exceeds[1]


@functools.partial(jax.jit, static_argnums=0)
def _memory(env: ig.Environment, params: ig.EnvParams, action: ig.ServeAction, prompt: Any) -> jax.Array:
    from inferencegym_jax.environment import effective_action

    action = effective_action(env.table, action, params)
    return env.grid.lookup(action, jnp.full(action.batch_size.shape, prompt, jnp.float32))["gpu_mem_gb"]


def search(
    problem: ig.Problem,
    counts: Callable[[Rules, Results], np.ndarray],
    seeds: np.ndarray,
    population: int = 1024,
    generations: int = 20,
    longest_turn: float = LONGEST_TURN,
    condition: int | None = None,
) -> np.ndarray:
    """Rows of the 32 rules with the highest mean score among those that count, best first: an evolutionary search with
    crossover and mutation.

    Args:
        problem: the task.
        counts: bool[rules] of rules and what they came to: which ones take part.
        seeds: episodes of each rule.
        population, generations: of the search.
        longest_turn: seconds of an alternation's turn, at most.
        condition: the only one allowed; None: all.
    """
    rng = np.random.default_rng(0)
    best, values = np.zeros((0, LENGTH)), np.zeros(0)
    for generation in range(generations):
        rows = rng.random((population, LENGTH))
        if generation and len(best):
            mother, father = (best[rng.integers(len(best), size=population)] for _ in range(2))
            child = np.where(rng.random(rows.shape) < 0.2, father, mother)
            nudged = np.clip(child + 0.05 * rng.normal(size=rows.shape), 0.0, 1.0)
            changed = np.where(rng.random(rows.shape) < 0.3, rows, nudged)
            rows = np.where(rng.random(rows.shape) < 0.25, changed, child)
        if condition is not None:
            rows[:, 10] = (condition + 0.5) / 4
        rules = decode(rows, longest_turn)
        results = play(problem, rules, seeds)
        score = np.where(counts(rules, results), results.score.mean(axis=1), -np.inf)
        rows, score = np.concatenate([best, rows]), np.concatenate([values, score])
        order = np.argsort(-score, kind="stable")[:128]
        order = order[np.isfinite(score[order])]
        best, values = rows[order], score[order]
    return best[:32]
