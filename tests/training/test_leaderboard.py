"""The leaderboard: rows are played again, and one that was tampered with is found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS
from training import leaderboard as board
from training.cli import app
from training.leaderboard import Row, faults_of, markdown, measure, read, write

EPISODES = 3


def faults(row: Row, root: Path = board.ROOT) -> list[str]:
    """What is not true of one row."""
    return faults_of([row], root)[0]


def measured(row: Row, root: Path = board.ROOT) -> Row:
    return dataclasses.replace(row, score=measure(row, root)[0])


@pytest.fixture(scope="module")
def row() -> Row:
    version = board.task_version(ig.problem(1))
    return measured(
        Row("mine", "static-uniform", version, "held-out", EPISODES, 0, board.NOT_MEASURED, policy="best_static")
    )


def test_a_row_is_reproduced_and_its_score_is_that_of_an_evaluation(row: Row) -> None:
    assert faults(row) == []
    problem = ig.problem(1)
    found = ig.evaluate(problem.env, problem.params, ig.policies.best_static(1), board.rivals.test_seeds(EPISODES))
    assert row.score["mean"] == pytest.approx(problem.score(found).mean(), abs=1e-6)


@pytest.mark.parametrize("part", ["mean", "low", "high"])
def test_a_tampered_score_is_found(row: Row, part: str) -> None:
    better = dataclasses.replace(row, score=row.score | {part: row.score[part] + 0.01})
    (said,) = faults(better)
    assert f"score {part} =" in said and "played again it is" in said


def test_another_policy_or_version_is_found(row: Row) -> None:
    assert "score mean" in faults(dataclasses.replace(row, policy="baseline"))[0]
    (said,) = faults(dataclasses.replace(row, version="00000000"))
    assert "is of version 00000000 of static-uniform" in said and "measure it again" in said
    (said,) = faults(dataclasses.replace(row, policy="leaderboard/nowhere.npz"))
    assert "nowhere.npz" in said


@pytest.mark.slow
def test_rows_that_are_played_together_are_judged_each_by_its_own_episodes(row: Row) -> None:
    longer = measured(dataclasses.replace(row, name="longer", episodes=EPISODES + 2))
    random = measured(dataclasses.replace(row, name="random", policy="random"))
    network = measured(dataclasses.replace(row, name="network", policy="trained"))
    assert faults_of([row, longer, network, random]) == [[], [], [], []]
    wrong = dataclasses.replace(longer, score=row.score | {"mean": row.score["mean"] - 0.1})
    said = faults_of([random, wrong, dataclasses.replace(row, version="00000000"), row])
    assert said[0] == said[3] == [] and "score mean" in said[1][0] and "measure it again" in said[2][0]
    with pytest.raises(ValueError, match="rows: of tasks bursty-sharegpt, static-uniform; must be of one"):
        faults_of([row, dataclasses.replace(row, task="bursty-sharegpt")])
    assert faults_of([]) == []


def test_actions_are_a_row_too_and_are_played(row: Row, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (EPISODES, 200)
    columns = {name: np.full(shape, knob.default) for name, knob in KNOBS.items()}
    columns["batch_size"] = rng.integers(16, 512, shape)
    np.savez(tmp_path / "mine.npz", **columns)  # type: ignore[arg-type]
    mine = measured(dataclasses.replace(row, policy=None, actions="mine.npz"), tmp_path)
    assert faults(mine, tmp_path) == []
    np.savez(tmp_path / "mine.npz", **(columns | {"batch_size": np.full(shape, 1)}))  # type: ignore[arg-type]
    assert "score mean" in faults(mine, tmp_path)[0]
    np.savez(tmp_path / "mine.npz", **{name: x[:1] for name, x in columns.items()})  # type: ignore[arg-type]
    assert "must be an array (3, 200)" in faults(mine, tmp_path)[0]


def test_files_of_rows_are_checked(row: Row, tmp_path: Path) -> None:
    write(tmp_path / "a.json", [row])
    assert read(tmp_path) == {tmp_path / "a.json": [row]}
    entry = json.loads((tmp_path / "a.json").read_text())["rows"][0]
    for change, said in (
        ({"colour": "red"}, "colour"),
        ({"plan": {}}, "exactly one of policy, plan and actions"),
        ({"episodes": 0}, "episodes = 0"),
        ({"split": "training"}, "split = 'training'"),
    ):
        (tmp_path / "a.json").write_text(json.dumps({"rows": [entry | change]}))
        with pytest.raises(ValueError, match=said):
            read(tmp_path)


def test_the_page_lists_rows_of_todays_version_best_first(row: Row) -> None:
    worse = dataclasses.replace(row, name="worse", score=dict.fromkeys(row.score, 0.1), link="https://example.org/code")
    older = dataclasses.replace(row, name="outdated", version="00000000")
    page = markdown([worse, older, row])
    assert page.index("| mine |") < page.index("| worse |") and "outdated" not in page
    assert "[best_static](https://example.org/code)" in page and "## How to add a row" in page


def test_the_page_in_the_repository_is_made_from_its_rows() -> None:
    assert board.PAGE.read_text() == markdown(board.every_row())


def test_check_exits_1_where_a_row_is_wrong(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "every_row", lambda task=None: [row, dataclasses.replace(row, version="00000000")])
    shown = CliRunner().invoke(app, ["leaderboard", "--check", "--task", "1"])
    assert shown.exit_code == 1 and "mine: reproduced" in shown.output and "measure it again" in shown.output


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2, 3])
def test_the_rows_in_the_repository_are_reproduced(task: int) -> None:
    rows = board.every_row(task=task)
    assert rows and [faults(row) for row in rows] == [[]] * len(rows)


@pytest.mark.slow
def test_a_row_of_a_fleet_is_played_again_and_tampering_is_found() -> None:
    version = board.fleet_leaderboard.version_of("fleet-elastic")
    row = Row("seven", "fleet-elastic", version, "held-out", 2, 0, board.NOT_MEASURED, policy="gpus=7")
    row = dataclasses.replace(row, score=board.fleet_score(row))
    assert faults(row) == [] and 0.0 < row.score["mean"] < 1.0 / 8.0
    assert "score mean" in faults(dataclasses.replace(row, score=row.score | {"mean": 0.9}))[0]
    assert "measure it again" in faults(dataclasses.replace(row, version="00000000"))[0]
    assert "nowhere.npz" in faults(dataclasses.replace(row, policy="leaderboard/nowhere.npz"))[0]


def test_fleets_are_measured_with_rules_as_shipped_and_tuned() -> None:
    names = {policy for _, policy, _ in board.fleet_leaderboard.ours("fleet-elastic")}
    assert {"gpus=7", "reactive", "tuned", "hpa-queue", "dynamo-planner"} <= names
    assert "tuned" not in {policy for _, policy, _ in board.fleet_leaderboard.ours("fleet-anywhere")}
    assert board.name_of(801) == "fleet-elastic" and board.name_of(3) == "adversarial-multi-tenant"
