"""Hyperparameter search on one machine: ``vmap`` of the whole training over settings and seeds."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from inferencegym_jax.models import check_whole
from training.config import Hyperparameters, TrainConfig
from training.trainer import make_train

NAMES = tuple(f.name for f in dataclasses.fields(Hyperparameters))


def _entry(text: str, separator: str, option: str) -> tuple[str, list[float]]:
    name, equals, values = text.partition("=")
    if name not in NAMES:
        raise ValueError(f"{option} {text!r}: {name!r} is no hyperparameter; allowed are {', '.join(NAMES)}")
    try:
        numbers = [float(value) for value in values.split(separator)]
    except ValueError:
        numbers = []
    if not equals or not numbers or not np.isfinite(numbers).all():
        raise ValueError(
            f"{option} {text!r}: must be name={'v1,v2,...' if separator == ',' else 'low:high'} with finite numbers"
        )
    return name, numbers


def settings(grid: Sequence[str], search: Sequence[str], samples: int, seed: int = 0) -> list[dict[str, float]]:
    """The members of a sweep: every combination of the grid, with each of ``samples`` log-uniform draws.

    Args:
        grid: "name=v1,v2".
        search: "name=low:high", both above 0.
        samples: number of draws.
        seed: of the draws.

    Raises:
        ValueError: unknown name, not numbers, or an empty sweep.
    """
    check_whole("samples", samples)
    axes = [_entry(text, ",", "--grid") for text in grid]
    ranges = [_entry(text, ":", "--random") for text in search]
    if not axes and not ranges:
        raise ValueError("sweep: nothing to vary; give --grid or --random")
    for name, bounds in ranges:
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"--random {name}: must be low:high with 0 < low <= high")
    generator = np.random.default_rng(seed)
    draws = [
        {name: float(np.exp(generator.uniform(np.log(low), np.log(high)))) for name, (low, high) in ranges}
        for _ in range(samples if ranges else 1)
    ]
    combinations = itertools.product(*(values for _, values in axes))
    return [
        dict(zip((name for name, _ in axes), values, strict=True)) | draw for values in combinations for draw in draws
    ]


def run_sweep(
    config: TrainConfig,
    grid: Sequence[str],
    search: Sequence[str],
    samples: int,
    seeds: int,
    path: str | Path | None = None,
) -> list[dict[str, float]]:
    """Train every member on every seed in one compiled call.

    Returns:
        A row a member, best first: its settings, mean and lowest validation score over seeds, mean return, mean
            share of seconds out of memory.

    Raises:
        ValueError: see ``settings``; a value out of a hyperparameter's range; a table or log that cannot be used.
    """
    check_whole("seeds", seeds)
    members = settings(grid, search, samples)
    checked = [config.replace(**member).hyper for member in members]
    stacked = jax.tree.map(lambda *values: np.asarray(values, np.float32), *checked)
    # a weight that some member uses must be computed for all
    config = config.replace(**{name: float(np.max(getattr(stacked, name))) for name in NAMES})
    train = jax.vmap(jax.vmap(make_train(config), in_axes=(0, None)), in_axes=(None, 0))
    _, _, evaluation = jax.jit(train)(np.arange(seeds, dtype=np.uint32) + np.uint32(config.seed), stacked)
    # members, seeds, episodes of the last evaluation
    evaluation = jax.tree.map(lambda x: np.asarray(x)[:, :, -1], evaluation)
    score = config.problem().score(evaluation).mean(axis=-1)
    rows = [
        {
            **member,
            "score": float(score[i].mean()),
            "lowest_score": float(score[i].min()),
            "return": float(evaluation.total_reward[i].mean()),
            "oom_share": float(evaluation.oom_share[i].mean()),
        }
        for i, member in enumerate(members)
    ]
    rows.sort(key=lambda row: -row["score"])
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return rows
