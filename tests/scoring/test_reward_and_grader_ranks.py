"""`python -m training ranks`: the correlation is scipy's, and what it ranks are the policies' own means."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import inferencegym_jax as ig
from training.cli import app
from training.evaluation import episodes
from training.ranks import correlation, rank_policies, ranks, spearman, told_apart


@pytest.mark.parametrize("values", [7, 200])
def test_spearman_is_scipys_with_and_without_ties(values: int) -> None:
    rng = np.random.default_rng(3)
    first = rng.integers(0, values, 60).astype(float)
    second = first + rng.normal(0, values / 4, 60).round()
    np.testing.assert_array_equal(ranks(first), stats.rankdata(first))
    assert spearman(first, second) == pytest.approx(float(stats.spearmanr(first, second)[0]))  # type: ignore[arg-type]
    found = correlation(first, second)
    assert found["low"] < found["spearman"] < found["high"] < 1
    assert spearman(first, -first) == pytest.approx(-1) and np.isnan(spearman(first, np.ones(60)))


def test_pairs_that_the_episodes_do_not_tell_apart_are_said() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1e-3, (5, 40))
    level = np.asarray([0.5, 0.5, 0.5, 0.6, 0.7])[:, None]
    found = told_apart(10.0 * level + noise, level + noise)
    assert found["pairs"] == 10 and found["apart"] in (7, 8) and found["alike"] >= 7 / 8
    assert found["spread"] == pytest.approx(0.2, abs=1e-3)
    assert told_apart(-level + noise, level + noise)["alike"] <= 1 / 8
    flat = np.zeros((3, 40))
    assert told_apart(noise[:3], flat) == {"pairs": 3, "apart": 0, "alike": None, "spread": 0.0}
    assert told_apart(level[:3] + 0.0, level[2:] + 0.0)["apart"] == 0  # of one episode nothing is known


@pytest.mark.slow
def test_the_command_ranks_policies_by_their_own_means() -> None:
    shown = CliRunner().invoke(app, ["ranks", "--task", "1", "--actions", "12", "--episodes", "2", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["static_actions"] == 12 and found["grid"] > 12
    assert -1 <= found["all"]["spearman"] <= 1 and found["all"]["low"] <= found["all"]["high"]
    rows = {row["policy"]: row for row in found["rows"]}
    mine = episodes(ig.problem(1), ig.policies.policy_of("reactive", ig.problem(1)), np.arange(2))
    assert rows["reactive"]["score"] == pytest.approx(mine["score"].mean())
    assert rows["reactive"]["return"] == pytest.approx(mine["return"].mean())
    assert rows["random"]["oom_share"] == pytest.approx(
        episodes(ig.problem(1), ig.policies.random, np.arange(2))["oom_share"].mean()
    )
    best = [row for name, row in rows.items() if name.startswith(("best score", "best return"))]
    assert len(best) == 2 and all(row["oom_share"] == 0 for row in best)
    by_score = sorted(found["rows"], key=lambda row: -row["score"])
    assert [row["score_rank"] for row in by_score] == sorted(row["score_rank"] for row in by_score)
    assert all(1 <= row["score_rank"] <= found["policies"] for row in by_score)


NEARLY = pytest.mark.xfail(strict=True, reason="open: 0.888 (0.76 to 0.95) on task 4, asked are 0.9")


@pytest.mark.slow
@pytest.mark.parametrize("task", (pytest.param(4, marks=NEARLY), 5))
def test_the_reward_ranks_the_best_quarter_of_policies_as_the_score_does(task: int) -> None:
    found = rank_policies(task, actions=160, count=16)
    assert found["top"]["spearman"] >= 0.9, found["top"]


@pytest.mark.slow
@pytest.mark.parametrize("task", (6, 7))
@pytest.mark.xfail(
    strict=True, reason="open: 0.864 on task 6; -0.48 on task 7, where two GPUs score alike at any setting"
)
def test_the_reward_ranks_the_best_quarter_of_the_scenarios_policies_as_the_score_does(task: int) -> None:
    found = rank_policies(task, actions=120, count=8)
    assert found["top"]["spearman"] >= 0.9, found["top"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--actions", "2"], "actions = 2"),
        (["--task", "9"], "9"),
        (["--task", "3", "--controllers", "8"], "controllers = 8: must be 0, or at least 4 on an open-loop task"),
        (["--task", "7", "--controllers", "-1"], "controllers = -1"),
        (["--task", "7", "--reward", "mine"], "reward = 'mine': must be one of environment, score, whole-score"),
    ],
)
def test_bad_input_of_ranks_is_said(arguments: list[str], said: str) -> None:
    shown = CliRunner().invoke(app, ["ranks", *arguments])
    assert shown.exit_code == 2 and said in shown.output
