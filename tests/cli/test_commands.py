"""The command line as a user types it: answers on stdout, errors as one line on stderr, exit codes 0, 1 and 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.cli.app import run


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line and gives (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_tasks_are_those_of_the_library(command: Any):
    code, out, _ = command("tasks", "--json")
    assert code == 0
    assert [(task["id"], task["name"]) for task in json.loads(out)] == [
        (spec.id, spec.name) for spec in ig.task_specs().values()
    ]
    code, out, _ = command("tasks")
    assert code == 0 and all(name in out for name in ig.task_specs())


def test_rollout_prints_what_the_library_computes_and_its_log_verifies(command: Any, tmp_path: Path):
    log = tmp_path / "log.json"
    code, out, _ = command("rollout", "--task", 1, "-p", "batch_size=64", "-n", 4, "--seed", 3, "--log", log, "--json")
    assert code == 0
    printed = json.loads(out)
    env, params = ig.make(1)
    found = ig.evaluate(env, params, ig.policies.static(ig.ServeAction(batch_size=64)), seeds=np.arange(3, 7))
    assert printed["mean_tps"]["mean"] == pytest.approx(float(np.mean(found.mean_tps)), rel=1e-6)
    scores = ig.grader.score_aggregates(1, found)["score"]
    assert printed["score"]["mean"] == pytest.approx(float(np.mean(scores)), rel=1e-6)
    assert printed["score"]["ci95"] == pytest.approx(1.96 * np.std(scores, ddof=1) / 2, rel=1e-5)

    code, out, _ = command("grade", log, "--json")
    graded = json.loads(out)
    assert code == 0 and graded["verified"] is True
    assert graded["score"] == pytest.approx(float(scores[0]), rel=1e-5)

    forged = json.loads(log.read_text())
    forged["episode_log"][17]["metrics"]["tokens_per_sec"] *= 2
    log.write_text(json.dumps(forged))
    code, out, _ = command("grade", log)
    assert code == 1 and "step 17" in out

    log.write_text(json.dumps(forged["episode_log"]))
    code, out, _ = command("grade", log, "--task", 1, "--json")
    assert code == 0 and json.loads(out)["verified"] is None


def test_compare_pairs_the_seeds(command: Any):
    code, out, _ = command("compare", "-t", 1, "-p", "baseline batch_size=128", "-n", 4, "--json")
    assert code == 0
    policies = json.loads(out)["policies"]
    assert list(policies) == ["baseline", "batch_size=128"]
    gain = policies["batch_size=128"]["score"]["mean"] - policies["baseline"]["score"]["mean"]
    assert policies["batch_size=128"]["score_gain"]["mean"] == pytest.approx(gain, abs=1e-9)
    assert gain > 0.2
    assert policies["baseline"]["score_gain"] == {"mean": 0.0, "ci95": 0.0}


def test_compare_says_how_many_seconds_were_out_of_memory(command: Any):
    code, out, _ = command("compare", "-t", 3, "-p", "batch_size=512 batch_size=1,kv_budget=0.1", "-n", 2)
    row = next(line for line in out.splitlines() if line.startswith("seconds out of memory (share)"))
    assert code == 0 and row.split()[5:] == ["1.00", "±", "0", "0", "±", "0"]
    assert "requests late (share)" in out and "requests rejected (share)" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rollout", "--task", "9"], "no such task"),
        (["rollout", "--policy", "batch_size=1000"], "from 1 to 512"),
        (["rollout", "--policy", "batch=1"], "unknown knob 'batch'"),
        (["rollout", "--policy", "clever"], "must be one of"),
        (["rollout", "--config", "gamma=nan"], "must be a finite number"),
        (["rollout", "--config", "slo=1"], "allowed are"),
        (["rollout", "--table", "/nowhere.parquet"], "no such file"),
        (["rollout", "--episodes", "0"], "greater than or equal to 1"),
        (["rollout", "--seed", str(2**32 - 1)], "must be at most"),
        (["grade", "/nowhere.json"], "no such file"),
        (["table", "check", "/nowhere.csv"], "no such file"),
        (["table", "build", "/nowhere"], "no such folder"),
        (["compare", "--policies", " "], "names none"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(command: Any, arguments: list[str], said: str):
    code, out, err = command(*arguments)
    assert code == 2 and not out
    assert said in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_a_log_that_is_none_is_refused(command: Any, tmp_path: Path):
    for text, said in (("{", "not JSON"), ("7", "must be a list"), ("[]", "names no task")):
        path = tmp_path / "log.json"
        path.write_text(text)
        code, _, err = command("grade", path)
        assert code == 2 and said in err


def test_without_typer_the_command_says_what_to_install():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("typer", "rich"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("typer", "rich") else found(name, package)
from inferencegym_jax.cli import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code, "tasks"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'inferencegym-jax[cli]'" in done.stderr and "Traceback" not in done.stderr
