"""Training commands on one's own request log: the same traffic, normalisers and rivals as ``ig.make(trace=...)``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.policies.policy_file import load_network
from inferencegym_jax.tasks import calibration
from training.cli import app
from training.config import TrainConfig
from training.evaluation import episodes
from training.networks import starting_bias
from training.runner import run
from training.sweep import run_sweep
from training.trainer import network_of


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty minutes at 4 requests/s with a burst of 12 for a minute in every five."""
    draw, rows, second = np.random.default_rng(3), [], 0
    for second in range(1200):
        count = draw.poisson(12 if second % 300 >= 240 else 4)
        rows += [f"{second + t:.3f},{draw.integers(50, 1500)},{draw.integers(20, 400)}" for t in draw.random(count)]
    path = tmp_path_factory.mktemp("log") / "mine.csv"
    path.write_text(
        "\n".join(["time,prompt_tokens,output_tokens", *sorted(rows, key=lambda r: float(r.split(",")[0]))])
    )
    return str(path)


@pytest.mark.slow
def test_evaluate_plays_the_log_with_its_own_normalisers(log: str) -> None:
    words = ["evaluate", "--task", "4", "--policy", "baseline", "--trace", log, "--episodes", "6", "--json"]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    problem = ig.problem(4, trace=log)
    played = ig.evaluate(problem.env, problem.params, ig.policies.baseline, np.arange(6))
    assert found["trace"] == "mine.csv"
    assert found["return"]["mean"] == pytest.approx(float(played.total_reward.mean()), rel=1e-5)
    assert found["score"]["mean"] == pytest.approx(
        ig.grader.score_aggregates(4, played, problem.normalisers)["score"].mean()
    )
    assert problem.normalisers != ig.problem(4).normalisers  # a score by request need not differ for it


@pytest.mark.slow
def test_the_best_static_action_is_searched_on_the_log(log: str) -> None:
    mine, seeds = ig.problem(4, trace=log), np.arange(6)
    scores = {
        name: episodes(mine, policy, seeds)["score"].mean()
        for name, policy in (
            ("own", ig.policies.policy_of("best_static", mine)),
            ("shipped", ig.policies.best_static(4)),
        )
    }
    assert scores["own"] > scores["shipped"]


def test_training_starts_at_the_best_static_action_of_the_log(log: str) -> None:
    config = TrainConfig(task=4, start="best_static")
    own, shipped = (network_of(config.replace(trace=trace)).start for trace in (log, None))
    assert own != shipped
    known = calibration()["tasks"]["azure-conversation"]["best_static"]["action"]
    assert shipped == starting_bias(ig.ServeAction(**known))


@pytest.mark.slow
def test_training_on_a_log_says_so_and_scores_by_it(log: str, tmp_path: Path) -> None:
    config = TrainConfig(
        task=5, trace=log, environments=8, rollout_length=8, minibatches=2, epochs=1, hidden=(8,), total_steps=128,
        evaluate_every=2, evaluation_episodes=4, start="best_static",
    )  # fmt: skip
    result = run(config, tmp_path)
    network, about = load_network(tmp_path / "policy.npz")
    assert about["config"]["trace"] == log and about["task"] == "mooncake-conversation"
    assert {row["env_steps"] for row in result.rows} == {700 + 128}  # 700 stagger the environments
    demand = ig.load_trace(log).rate * ig.load_trace(log).mean_output
    assert 0.1 * demand < result.rows[-1]["mean_tps"] < 1.5 * demand
    (row,) = run_sweep(config, ["entropy=0.001"], [], 1, 1)  # the config's own value: the same run
    assert row["return"] == pytest.approx(result.rows[-1]["return"], rel=1e-3)
    assert row["score"] == pytest.approx(result.rows[-1]["score"], rel=1e-3)


@pytest.mark.slow
def test_what_control_is_worth_on_the_log(log: str, tmp_path: Path) -> None:
    words = ["headroom", "--task", "4", "--trace", log, "--episodes", "2", "--settings", "8", "--rounds", "1"]
    answer = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "worth")])
    assert answer.exit_code == 0, answer.output
    rows = {row["policy"]: row for row in json.loads((tmp_path / "worth.json").read_text())["rows"]}
    best = rows["oracle"]["score"]["mean"]
    assert all(row["score"]["mean"] <= best + 1e-9 for row in rows.values())
    assert rows["best reactive"]["score"]["mean"] > rows["baseline"]["score"]["mean"]


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        (["train"], "time,prompt_tokens,output_tokens\n0,5,6\n1,-5,6\n", "line 3: prompt_tokens is '-5'"),
        (["evaluate", "--policy", "baseline"], "", "the file is empty"),
        (["headroom"], None, "no such file; give a CSV or JSON-lines request log"),
    ],
)
def test_a_log_that_cannot_be_used_is_named(tmp_path: Path, command: list[str], text: str | None, message: str) -> None:
    path = tmp_path / "bad.csv"
    if text is not None:
        path.write_text(text)
    answer = CliRunner().invoke(app, [*command, "--task", "4", "--trace", str(path)])
    assert answer.exit_code == 2 and message in answer.output.replace("\n", " ")
