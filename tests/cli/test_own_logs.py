"""Commands that take a request log take its unit, its columns and a part of it, and say what they cannot use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import inferencegym_jax as ig
from inferencegym_jax.cli.app import app
from inferencegym_jax.live.trial.request_log import read_log
from inferencegym_jax.traffic.log_rows import ReadOptions
from server.programs import own_log
from server.settings import Settings
from training.cli import app as training_app
from training.config import TrainConfig, from_mapping

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = "time=when,prompt=a+b,output=c"
READING = {"unit": "ms", "columns": COLUMNS, "start": "100s", "end": "300s"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "mine.csv"
    rows = [f"{i * 500},{200 + i % 90},{i % 7},{20 + i % 30}" for i in range(1200)]  # two a second for ten minutes
    path.write_text("\n".join(["when,a,b,c", *rows]))
    return path


def test_a_training_config_reads_the_log_as_it_says(log: Path) -> None:
    config = from_mapping({f"trace_{name}": value for name, value in READING.items()} | {"trace": str(log), "task": 4})
    assert config.to_dict()["trace_columns"] == COLUMNS and config == from_mapping(config.to_dict())
    with pytest.raises(ValueError, match="columns: 'when' is no role"):
        TrainConfig(task=4, trace=str(log), trace_columns="when=time")


def test_the_server_reads_the_log_as_its_settings_say(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("", str(log)), ("_UNIT", "ms"), ("_COLUMNS", COLUMNS), ("_FROM", "100s"), ("_TO", "300s")):
        monkeypatch.setenv(f"TRACE{name}", value)
    found = own_log(Settings())
    assert found == ig.load_trace(log, **READING) and found is not None and found.requests == 400
    monkeypatch.setenv("TRACE_FROM", "")
    monkeypatch.setenv("TRACE_TO", "")
    monkeypatch.setenv("TRACE_LAST", "1m")
    found = own_log(Settings())
    assert found is not None and found.requests == 120


def test_a_trial_reads_the_log_as_it_is_told(log: Path) -> None:
    traffic = read_log(log, 2.0, 4096, 10, ReadOptions.of("ms", COLUMNS, start="100s"))
    assert len(traffic) == 40  # 20 s of the log in 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recommend", "--trace", "{log}", "--columns", "time=when,prompt=z"], "no column 'z' for prompt; there are"),
        (["recommend", "--trace", "{log}", "--columns", COLUMNS, "--last", "soon"], "last = 'soon': must be seconds"),
        (["recommend", "--trace", "{log}", "--unit", "min"], "unit = 'min': must be one of s, ms, us, ns"),
        (["plan", "--trace", "{log}", "--columns", "time=when,prompt=z"], "no column 'z' for prompt; there are"),
        (["plan", "--trace", "{log}", "--columns", COLUMNS, "--unit", "ms", "--last", "1m"], "s long; a fleet is"),
        (["plan", "--trace", "{log}", "--unit", "min"], "unit = 'min': must be one of s, ms, us, ns"),
    ],
)
def test_recommend_and_plan_take_the_options_and_say_what_is_wrong(log: Path, arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(app, [argument.format(log=log) for argument in arguments])
    assert found.exit_code == 2 and said in " ".join(found.output.split())


@pytest.mark.parametrize("command", ["train", "evaluate", "sweep", "headroom", "transfer"])
def test_training_commands_take_the_options(log: Path, command: str) -> None:
    needed = ["--policy", "baseline"] if command == "evaluate" else []
    given = ["--task", "4", "--trace", str(log), "--unit", "min"]
    found = CliRunner().invoke(training_app, [command, *given, *needed])
    assert found.exit_code == 2 and "unit = 'min': must be one of" in " ".join(found.output.split())


@pytest.mark.parametrize("command", ["recommend", "plan", "serve", "trial"])
def test_every_command_with_a_log_lists_the_options(command: str) -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).output
    assert all(option in shown for option in ("--trace", "--unit", "--columns", "--from", "--to", "--last"))


@pytest.mark.slow
def test_the_server_says_which_part_it_cannot_read(log: Path) -> None:
    environment: dict[str, Any] = {**os.environ, "TRACE": str(log), "TRACE_COLUMNS": "time=nothing"}
    command = [sys.executable, "-m", "server", "--last", "10s", "--port", "0"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and "TRACE: mine.csv: columns: no column 'nothing' for time" in ran.stderr
