"""`python -m training conditions`: one policy beside the controller that is tuned for each condition alone."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.tasks.draws import TRAINING
from training import lanes, rivals
from training.cli import app
from training.conditions import conditions_of, markdown
from training.headroom import EPISODES, published, tuned_plan


def test_a_condition_is_one_pool_gpu_and_tier_and_its_episodes_are_held_out_and_apart() -> None:
    problem = ig.problem(8)
    picked = conditions_of(problem, 5, 4, 3)
    draws = problem.env.draws
    assert draws is not None and len({one.name for one in picked}) == 5
    used = set(rivals.test_seeds(max(published(8)["episodes"], EPISODES)).tolist())
    for one in picked:
        assert (len(one.tuning), len(one.seeds)) == (4, 3)
        seeds = np.concatenate([one.tuning, one.seeds])
        choice = jax.tree.map(np.asarray, jax.vmap(draws.choice)(jax.numpy.asarray(seeds)))
        triples = set(zip(*(x.tolist() for x in (choice.pool, choice.engine, choice.objective)), strict=True))
        assert len(triples) == 1 and len(set(choice.load.tolist())) == len(seeds)
        unseen = sum(at >= seen for at, seen in zip(triples.pop(), draws.seen, strict=True))
        assert one.unseen == unseen
        assert seeds.max() < TRAINING and used.isdisjoint(seeds.tolist()) and len(set(seeds.tolist())) == len(seeds)
        used |= set(seeds.tolist())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "7"], "must be drawn for each episode"),
        (["--count", "0"], "conditions = 0"),
        (["--count", "100000"], "conditions = 100000: the task has"),
        (["--tuning", "100000"], "must be at most"),
        (["--settings", "0"], "settings = 0"),
    ],
)
def test_what_cannot_be_measured_is_said(words: list[str], said: str, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["conditions", *words, "--out", str(tmp_path / "out.json")])
    assert shown.exit_code == 2 and said in " ".join(shown.output.split())
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_scores_are_those_of_the_episodes(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["conditions", "--count", "1", "--tuning", "2", "--episodes", "2", "--settings", "2", "--out", str(out)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert row["condition"] in markdown(found) and found["all"]["over_here"] == row["over_here"]
    problem = ig.problem(8)
    (condition,) = conditions_of(problem, 1, 2, 2)
    plan = lanes.of_plans([tuned_plan(published(8))] * 2, int(problem.params.episode_length))
    once = lanes.scores_of(problem, plan, condition.seeds)
    assert row["scores"]["tuned once"]["mean"] == pytest.approx(once.mean(), abs=1e-6)
    difference = row["scores"]["policy"]["mean"] - once.mean()
    assert row["over_once"]["mean"] == pytest.approx(difference, abs=1e-6)
