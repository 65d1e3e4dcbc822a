"""`python -m training ablations`: what is compared, and that each comparison is paired by episode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from training import ablations
from training.ablations import CONDITIONS, FORECAST, PPO, REACTIVE, STATIC, differences, update
from training.cli import app


def a_condition(task: int, **scores: list[float]) -> dict[str, Any]:
    return {"task": task, "episodes": 3, "scores": scores}


FOUND: dict[str, Any] = {
    "conditions": {
        "real clock": a_condition(7, **{STATIC: [0.5, 0.6, 0.7], REACTIVE: [0.6, 0.6, 0.6], FORECAST: [0.7, 0.6, 0.8]}),
        "switching free": a_condition(
            7, **{STATIC: [0.5, 0.6, 0.7], REACTIVE: [0.8, 0.6, 0.7], FORECAST: [0.8, 0.8, 0.8]}
        ),
        "fast clock": a_condition(72, **{STATIC: [0.5] * 3, REACTIVE: [0.6] * 3, FORECAST: [0.7] * 3}),
    },
    "memory": {
        "72": {
            "task": 72,
            "episodes": 3,
            "steps": {"none": 1000, "gru": 1000},
            "scores": {STATIC: [0.5] * 3, REACTIVE: [0.5, 0.6, 0.7], "none": [0.6, 0.6, 0.6], "gru": [0.7, 0.6, 0.8]},
        }
    },
}


def test_every_difference_is_paired_by_episode() -> None:
    found = {(where, what): one for where, what, one in differences(FOUND)}
    real = found["real clock (task 7)", f"{REACTIVE} over {STATIC}"]
    assert real["mean"] == pytest.approx(0.0) and real["worst"] == pytest.approx(-0.1)
    forecast = found["real clock (task 7)", f"{REACTIVE}, {FORECAST}, over without"]
    assert forecast["mean"] == pytest.approx(0.1) and forecast["worst"] == pytest.approx(0.0)
    free = found["switching free", f"{REACTIVE} over {STATIC}, above what it is"]
    assert free["mean"] == pytest.approx(0.1) and free["worst"] == pytest.approx(0.0)
    where = "memory (task 72, 1,000 steps)"
    assert found[where, "PPO with memory over without"]["mean"] == pytest.approx(0.1)
    assert found[where, f"PPO with memory over {REACTIVE}"]["worst"] == pytest.approx(0.0)
    assert found[where, f"PPO with memory over {REACTIVE}, tuned there"]["mean"] == pytest.approx(0.1)
    assert "| fast clock (task 72) | best reactive over best static | +0.100 [+0.100, +0.100] | +0.100 |" in (
        ablations.markdown(FOUND)
    )


def test_a_policy_that_a_condition_lacks_is_left_out() -> None:
    conditions = json.loads(json.dumps(FOUND["conditions"]))
    conditions["real clock"]["scores"][PPO] = [0.9, 0.9, 0.9]
    said = [what for where, what, _ in differences({"conditions": conditions, "memory": {}})]
    assert said.count(f"{PPO} over {STATIC}") == 1 and not any("above" in what and PPO in what for what in said)


def test_measurements_are_written_one_by_one_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "measure_condition", lambda name, *_: {"name": name})
    monkeypatch.setattr(ablations, "measure_memory", lambda task, *_: {"task": task})
    path = tmp_path / "ablations.json"
    update(path, ["fast clock"], [7])
    found = update(path, ["real clock"], [8])
    assert found == json.loads(path.read_text())
    assert list(found["conditions"]) == ["fast clock", "real clock"] and list(found["memory"]) == ["7", "8"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--condition", "slow clock"], "condition = 'slow clock'"),
        (["--condition", "fast clock", "--episodes", "0"], "episodes = 0"),
        (["--memory", "99"], "99"),
        (["--memory", "7", "--steps", "0"], "steps = 0"),
    ],
)
def test_bad_input_is_said(words: list[str], said: str, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["ablations", *words, "--out", str(tmp_path / "out.json")])
    assert shown.exit_code == 2 and said in shown.output and not (tmp_path / "out.json").exists()


def test_free_switching_changes_the_delays_alone() -> None:
    free, real = (CONDITIONS[name].problem() for name in ("switching free", "real clock"))
    assert float(free.params.engine.start_s) == 0.0 < float(real.params.engine.start_s)
    assert free.normalisers == real.normalisers and free.best_static == real.best_static


@pytest.mark.slow
def test_both_memories_are_trained_on_the_same_steps_and_played(tmp_path: Path) -> None:
    changes = {"environments": 16, "rollout_length": 8, "minibatches": 2, "evaluate_every": 1, "evaluation_episodes": 2}
    found = ablations.measure_memory(6, steps=256, episodes=2, changes=changes)
    assert found["steps"] == {"none": 256, "gru": 256}
    assert set(found["scores"]) == {STATIC, REACTIVE, "none", "gru"}
    assert all(len(values) == 2 and 0 < min(values) <= max(values) < 1 for values in found["scores"].values())
