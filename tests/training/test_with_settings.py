"""A network of corrections on other settings of its controller: `python -m training with-settings`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.policies.policy_file import load, load_network
from inferencegym_jax.table.latency_table import data_path
from training import policies
from training.cli import app
from training.config import task_config
from training.forms import base_plan
from training.headroom import published, tuned_plan

TASK7 = data_path("policies/task7.npz")


@pytest.mark.parametrize(
    ("policy", "settings", "said"),
    [
        ("policies/task4.npz", ["first_s=1"], "must correct the load-following controller"),
        ("policies/task3.npz", ["first_s=1"], "must correct the load-following controller"),
        ("policies/task7.npz", ["speed=1"], "setting 'speed' is unknown"),
        ("policies/task7.npz", ["hold_s=nan"], "hold_s = nan"),
        ("policies/task7.npz", ["hold_s=soon"], "hold_s = 'soon': must be a number"),
        ("policies/task7.npz", ["hold_s"], "must be name=value"),
    ],
)
def test_what_cannot_be_set_is_said(policy: str, settings: list[str], said: str, tmp_path: Path) -> None:
    out = tmp_path / "mine.npz"
    words = [word for item in settings for word in ("--set", item)]
    shown = CliRunner().invoke(app, ["with-settings", str(data_path(policy)), *words, "--out", str(out)])
    assert shown.exit_code == 2 and said in " ".join(shown.output.split()) and not out.exists()


def test_the_network_stays_and_the_settings_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "validate", lambda task, network, about: {"score": 0.5})
    path, scores = policies.with_settings(TASK7, {"first_s": 5.0}, tmp_path / "mine.npz")
    assert scores == {"score": 0.5}
    network, about = load_network(path)
    same, before = load_network(TASK7)
    assert about["plan"] == before["plan"] | {"first_s": 5.0}
    assert about["trained_on_plan"] == before.get("trained_on_plan", before["plan"])
    for mine, theirs in zip(network.layers, same.layers, strict=True):
        np.testing.assert_array_equal(np.asarray(mine[0]), np.asarray(theirs[0]))
    problem = ig.problem(7)
    asked = ig.rollout(problem.env, problem.params, load(path, problem=problem), np.arange(1), length=5).action
    assert np.asarray(asked.prefill_disagg).all()


def test_a_policys_settings_are_what_training_corrects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "validate", lambda task, network, about: {"score": 0.5})
    path, _ = policies.with_settings(TASK7, {"first_s": 1.0, "hold_s": 300.0}, tmp_path / "calm.npz")
    plan = base_plan(task_config(7).replace(plan_of=str(path)))
    assert (plan.first_s, plan.hold_s) == (1.0, 300.0)
    assert base_plan(task_config(7)) == tuned_plan(published(7))


@pytest.mark.parametrize(
    ("task", "plan_of", "error", "said"),
    [
        (7, "nowhere.npz", FileNotFoundError, "nowhere.npz"),
        (7, str(data_path("policies/task4.npz")), ValueError, "must correct the load-following controller"),
        ("fleet-elastic", str(TASK7), ValueError, "must be a fleet task"),
    ],
)
def test_settings_that_a_file_cannot_give_are_said(task: int | str, plan_of: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        base_plan(task_config(task).replace(plan_of=plan_of))
