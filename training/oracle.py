"""A search over whole sequences of actions that knows what comes: at least what a clairvoyant could reach.

``sequences of all rivals -> the best of each episode -> changed in stretches, kept where the score rises``. What it
starts
from is among its candidates, so it falls below none of them. Draws are counters, so that the same sequence on the same
seed gives the same episode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from inferencegym_jax import Problem
from inferencegym_jax.models import KNOBS, Knob
from training.lanes import Sequences, of_sequences
from training.lanes import scores_of as scores_of_lanes

BATCH_SIZES = (1, 8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 448, 512)
KV_BUDGETS = (0.1, 0.175, 0.25, 0.375, 0.5, 0.75, 1.0)
GRID: dict[str, tuple[float, ...]] = {"batch_size": BATCH_SIZES, "kv_budget": KV_BUDGETS}
CANDIDATES, ROUNDS = 24, 24  # sequences tried of each episode a round; rounds
SHORTEST = 5  # seconds of a changed stretch, at least


def scores_of(problem: Problem, sequences: Sequences, seeds: np.ndarray) -> np.ndarray:
    """float64[episodes]: the score of each episode under its sequence."""
    return scores_of_lanes(problem, of_sequences(sequences), seeds)


def search(
    problem: Problem,
    seeds: np.ndarray,
    starts: list[Sequences],
    *,
    candidates: int = CANDIDATES,
    rounds: int = ROUNDS,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Sequences, np.ndarray]:
    """The best sequence found of each episode.

    Args:
        problem: a task on its table and traffic.
        seeds: episodes.
        starts: sequences of all rivals on them, at least one.
        candidates: changed sequences that a round tries of each episode.
        rounds: how many.
        report: told of each round.

    Returns:
        (sequences, their scores float64[episodes]); no score is below that of any start.

    Raises:
        ValueError: no starts, or candidates or rounds below 1.
    """
    if not starts or candidates < 1 or rounds < 0:
        raise ValueError(
            f"oracle: {len(starts)} starts, candidates = {candidates}, rounds = {rounds}: must be at least 1, 1 and 0"
        )
    rng = np.random.default_rng(0)
    joined = {name: np.concatenate([start[name] for start in starts]) for name in KNOBS}
    values = scores_of(problem, joined, np.tile(seeds, len(starts))).reshape(len(starts), len(seeds))
    first, index = values.argmax(axis=0), np.arange(len(seeds))
    best = {name: np.stack([start[name] for start in starts])[first, index] for name in KNOBS}
    score = values[first, index]
    own = [name for name in problem.spec.active_knobs if name not in problem.table.locked_knobs]
    tiled = np.repeat(seeds, candidates)
    for turn in range(rounds):
        tries = {name: np.repeat(column, candidates, axis=0) for name, column in best.items()}
        for row in range(len(tiled)):
            for _ in range(1 + rng.integers(3)):
                change(rng, tries, row, row // candidates, starts, own)
        trial_scores = scores_of(problem, tries, tiled).reshape(len(seeds), candidates)
        pick = trial_scores.argmax(axis=1)
        better = trial_scores[index, pick] > score
        rows = index * candidates + pick
        for name in KNOBS:
            best[name] = np.where(better[:, None], tries[name][rows], best[name])
        score = np.where(better, trial_scores[index, pick], score)
        report(f"oracle: round {turn + 1} of {rounds}, mean score {score.mean():.4f}")
    return best, score


def change(
    rng: np.random.Generator, tries: Sequences, row: int, episode: int, starts: list[Sequences], knobs: list[str]
) -> None:
    """Change one stretch of one sequence in place: another value of a knob, the value before or after the stretch, or
    what one of the starts did there."""
    steps = tries[knobs[0]].shape[1]
    longest = max(steps // 2, SHORTEST + 1)
    length = int(np.exp(rng.uniform(np.log(min(SHORTEST, longest - 1)), np.log(longest))))
    begin = int(rng.integers(-length + 1, steps))
    low, high = max(begin, 0), min(begin + length, steps)
    kind = rng.random()
    if kind < 0.25:
        start = starts[rng.integers(len(starts))]
        for name in knobs:
            tries[name][row, low:high] = start[name][episode, low:high]
        return
    name = knobs[rng.integers(len(knobs))]
    if kind < 0.55:  # a switch comes earlier or later
        at = low - 1 if rng.random() < 0.5 else high
        tries[name][row, low:high] = tries[name][row, min(max(at, 0), steps - 1)]
    else:
        tries[name][row, low:high] = another(rng, KNOBS[name], GRID.get(name))


def another(rng: np.random.Generator, knob: Knob, grid: tuple[float, ...] | None) -> Any:
    """A value of a knob: of its grid, or of its options."""
    if knob.kind == "bool":
        return bool(rng.random() < 0.5)
    options = grid or knob.options
    return knob.plain(options[rng.integers(len(options))])
