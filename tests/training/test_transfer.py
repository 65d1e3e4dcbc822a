"""`python -m training transfer`: a policy beside the best static action where it was never trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from training import transfer
from training.cli import app
from training.transfer import ALLOWED, Place, markdown, measure, merged

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / "data" / "example_requests.csv"
SPAN = {"mean": 0.5, "low": 0.4, "high": 0.6}


def a_row(place: str, over: float) -> dict[str, Any]:
    columns = dict.fromkeys(transfer.SHOWN, SPAN)
    return {
        "place": place,
        "static": columns,
        "policy": columns,
        "over_static": SPAN | {"mean": over, "median": over, "worst": over},
        "holds": over >= -ALLOWED,
    }


def a_table(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"policy": "general.npz", "version": "1", "episodes": 3, "allowed": ALLOWED, "rows": list(rows)} | changes


def test_rows_of_other_places_stay_and_one_measured_again_keeps_its_place() -> None:
    before = a_table(a_row("a", 0.1), a_row("b", 0.2))
    after = merged(before, a_table(a_row("c", 0.3), a_row("a", -0.4)))
    assert [(row["place"], row["over_static"]["mean"]) for row in after["rows"]] == [
        ("a", -0.4),
        ("b", 0.2),
        ("c", 0.3),
    ]
    with pytest.raises(ValueError, match="episodes = 4: the file has 3"):
        merged(before, a_table(a_row("a", 0.1), episodes=4))
    assert "| a | 0.500 | 0.500 | -0.400 [+0.400, +0.600] | -0.400 | -0.400 |" in markdown(after)


def test_a_log_is_named_beside_its_task_and_bad_input_is_said(tmp_path: Path) -> None:
    assert Place(7).name == "7 Second GPU"
    assert Place(4, LOG).name == "example_requests.csv, on task 4"
    for call, said in (
        (lambda: measure([Place(4)], episodes=0), "episodes = 0"),
        (lambda: measure([]), "at least one task or log"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    words = ["transfer", "--trace", str(tmp_path / "nowhere.csv"), "--out", str(tmp_path / "out.json")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 2 and "nowhere.csv" in shown.output and not (tmp_path / "out.json").exists()


def test_the_published_file_is_of_todays_tasks_and_says_what_holds() -> None:
    found = json.loads((ROOT / "docs" / "headroom" / "transfer.json").read_text())
    assert {row["task"] for row in found["rows"] if row["log"] is None} >= set(transfer.TASKS)
    assert sum(row["log"] is not None for row in found["rows"]) >= 3
    for row in found["rows"]:
        assert row["holds"] == (row["over_static"]["mean"] >= -ALLOWED)
        if row["log"] is None:
            assert row["best_static"] == ig.problem(row["task"]).best_static.to_dict()


@pytest.mark.slow
def test_differences_are_those_of_the_policies_own_episodes(tmp_path: Path) -> None:
    words = ["transfer", "--task", "6", "--episodes", "3", "--out", str(tmp_path / "a.json"), "--json"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    (row,) = json.loads(shown.stdout)["rows"]
    problem, seeds = ig.problem(6), transfer.rivals.test_seeds(3)
    policies = (ig.policies.general_for(problem), ig.policies.best_static(6))
    mine, static = (problem.score(ig.evaluate(problem.env, problem.params, one, seeds)) for one in policies)
    assert row["policy"]["score"]["mean"] == pytest.approx(mine.mean(), abs=1e-4)
    assert row["over_static"]["mean"] == pytest.approx(np.mean(mine - static), abs=1e-4)
    assert row["over_static"]["worst"] == pytest.approx(np.min(mine - static), abs=1e-4)
