"""The commands as a user types them: errors are one sentence and exit status 2, and the API key is never shown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from inferencegym_jax import registry
from inferencegym_jax.cli.live import app
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.plan_file import save_plan
from inferencegym_jax.table.latency_table import load_table
from tests.live.conftest import ROOT

KEY = "sk-very-secret-1234"

PLAIN = ("--upstream", "http://h:1", "--policy", "baseline")
SPARE = ("--spare", "http://s:1", "--start-cmd", "x")
TRIAL = ("--base-url", "http://h:1", "--model", "m", "--table", "x")
TASK_4 = str(ROOT / "data" / "policies" / "task4.npz")


def call(*arguments: Any, **environment: str) -> Any:
    return CliRunner().invoke(app, [str(x) for x in arguments], env=environment)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["measure", "--base-url", "http://127.0.0.1:9", "--model", "m"], "http://127.0.0.1:9: does not answer"),
        (["measure", "--base-url", "localhost", "--model", "m"], "must be http://HOST:PORT"),
        (
            ["measure", "--base-url", "http://h:1", "--model", "m", "--budget", "soon"],
            "--budget 'soon': must be a time",
        ),
        (["measure", "--base-url", "http://h:1", "--model", "m", "--precision", "2"], "precision = 2.0"),
        (
            ["control", "--upstream", "http://h:1", "--policy", "nobody"],
            "policy = 'nobody': no such name and no such file",
        ),
        (["control", "--upstream", "nowhere", "--policy", "baseline"], "upstream = 'nowhere': must be http://"),
        (["control", "--upstream", "http://h:1", "--policy", "baseline", "--slo-ttft-ms", "0"], "'0' must be"),
        (["control", "--upstream", "http://h:1", "--policy", "baseline", "--queue", "-1"], "--queue -1"),
        (["control", *PLAIN, "--slo-tpot-ms", "0"], "--slo-tpot-ms 0.0: must be a number of milliseconds above 0"),
        (["control", *PLAIN, "--slo-tpot-ms", "nan"], "--slo-tpot-ms nan: must be a number"),
        (
            ["control", *PLAIN, "--start-cmd", "x"],
            "--start-cmd x: says how a spare engine is run; name one with --spare",
        ),
        (["control", *PLAIN, "--lease", "5"], "--lease 5.0: says how a spare"),
        (["control", *PLAIN, "--spare", "http://s:1"], "spare = 'http://s:1': nothing says how it starts"),
        (["control", *PLAIN, "--spare", "http://h:1/v1", "--start-cmd", "x"], "is the upstream 'http://h:1'"),
        (["control", *PLAIN, *SPARE, "--wake-path", "/w", "--sleep-path", "/s"], "contradicts the start and stop"),
        (["control", *PLAIN, "--spare", "http://s:1", "--wake-path", "/w"], "needs sleep-path"),
        (["control", *PLAIN, *SPARE, "--lease", "nan"], "lease = nan: must be a number of seconds"),
        (["control", *PLAIN, *SPARE, "--task", "4"], "task = 'azure-conversation': has no replica that can be leased"),
        (["control", "--upstream", "http://h:1", *SPARE, "--policy", TASK_4], "whose second GPU is no replica"),
        (["trial", *TRIAL, "--stop-cmd", "x"], "--stop-cmd x: says how a spare engine is run"),
        (["trial", *TRIAL, "--spare", "http://h:1", "--start-cmd", "x"], "is the upstream 'http://h:1'"),
        (["trial", "--base-url", "http://h:1", "--model", "m", "--table", "none.parquet"], "no such file"),
        (["trial", *TRIAL, "--scenario", "rush"], "scenario = 'rush': must be one of second-instance, drift"),
        (["trial", *TRIAL, "--scenario", "second-instance"], "needs a second instance; name one with --spare"),
        (["trial", *TRIAL, "--scenario", "drift", *SPARE], "has one instance"),
        (["trial", *TRIAL, "--scenario", "drift", "--load", "0.5"], "--load 0.5: contradicts --scenario"),
        (["trial", *TRIAL, "--scenario", "drift", "--seconds", "5"], "must be more than the warm-up of 10"),
        (["trial", *TRIAL, "--scenario", "drift", "--policies", "open"], "must hold 'best fixed pair'"),
        (["trial", *TRIAL, "--scenario", "drift"], "no such file"),
        (["trial", *TRIAL, "--scenario", "drift", "--calibration-runs", "-1"], "must be at least 0 (0: none)"),
        (["trial", *TRIAL, "--calibration-runs", "1"], "needs --scenario, whose traffic it sends"),
        (["trial", *TRIAL, "--save-policies", "x"], "--save-policies x: needs --scenario second-instance"),
        (
            ["trial", *TRIAL, "--scenario", "second-instance", *SPARE, "--save-policies", "x"],
            "--policies must name 'tuned' or 'fewest instances'",
        ),
        (["trial", "--base-url", "http://h:1", "--model", "m", "--table", "x", "--policies", ","], "none given"),
        (["trial", "--base-url", "http://h:1", "--model", "m", "--table", "x", "--classes", "1,2"], "--classes '1,2'"),
        (["trial", "--base-url", "http://h:1", "--model", "m", "--table", "x", "--classes", "1,1,0"], "add up to 1"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ") and "Traceback" not in result.output


@pytest.mark.slow
def test_measure_writes_a_table_and_says_so_in_json(launch: Callable[..., Any], tmp_path: Path) -> None:
    guarded = launch("--api-key", KEY, "--a", 5)
    out = tmp_path / "t.parquet"
    options = ["--base-url", guarded.url, "--model", "fake", "--out", out, "--budget", "3s", "--output-tokens", "8"]
    options += ["--max-concurrency", "2", "--max-prompt", "128", "--api-key-env", "MY_KEY"]
    refused = call("measure", *options, MY_KEY="sk-wrong-9876")
    assert refused.exit_code == 2 and "refused the API key" in refused.output
    shown = call("measure", *options, MY_KEY=KEY)
    assert (
        shown.exit_code == 0 and "TPOT / median TTFT" in shown.stdout and f"{out}: " in shown.stdout.replace("\n", "")
    )
    result = call("measure", *options, "--json", MY_KEY=KEY)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["batch_sizes"] == [1, 2] and summary["cells"] >= 4
    assert load_table(out).metadata["model"] == "fake"
    written = "".join(path.read_text(errors="replace") for path in tmp_path.iterdir())
    for text in (refused.output, result.output, written):
        assert KEY not in text and "sk-wrong-9876" not in text


@pytest.mark.ci
def test_control_listens_where_it_says_and_refuses_a_port_in_use(engine: Any) -> None:
    command = [sys.executable, "-m", "inferencegym_jax.cli", "control", "--upstream", engine.url]
    command += ["--policy", "batch_size=3", "--port"]
    process = subprocess.Popen([*command, "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split(" ")[0]
        models = httpx.get(f"{url}/v1/models", trust_env=False, timeout=20).json()
        assert models["data"][0]["id"] == "fake"
        taken = url.rpartition(":")[2]
        second = subprocess.run([*command, taken], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2 and "cannot listen there" in second.stderr
    finally:
        process.kill()
        process.wait()


def test_control_tells_the_objectives_to_policies_that_act_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def problem(task: Any, table: Any = None, config: Any = None) -> Any:
        del task, table
        asked.append(config)
        raise ValueError("far enough")

    monkeypatch.setattr(registry, "problem", problem)
    (tmp_path / "reactive").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of a policy's name is not meant
    save_plan(tmp_path / "mine.npz", LoadPlan(), {"task": "second-gpu-fast"})
    both = ("--slo-ttft-ms", "2000", "--slo-tpot-ms", "100")
    for policy in (tmp_path / "mine.npz", "general", "trained", "reactive", TASK_4):
        assert call("control", "--upstream", "http://h:1", "--policy", policy, *SPARE, *both).exit_code == 2
    assert asked == [{"slo_ttft_ms": 2000.0, "slo_tpot_ms": 100.0}] * 4 + [None]  # trained: task 7's
    for task, told in (("2", {"slo_ttft_ms": 2000.0}), ("8", None)):  # closed loop; draws its objectives
        call("control", "--upstream", "http://h:1", "--policy", "reactive", "--task", task, *both)
        assert asked[-1] == told
    call("control", "--upstream", "http://h:1", "--policy", "best_static", *both)
    assert asked[-1] is None
    call("control", "--upstream", "http://h:1", "--policy", "trained", "--task", "4", *both)
    assert asked[-1] is None  # its file reads the observation as it is
    call("control", "--upstream", "http://h:1", "--policy", "general", "--slo-ttft-ms", "none,200")
    assert asked[-1] is None


def test_help_lists_the_three_commands_without_importing_a_server() -> None:
    result = call("--help")
    assert all(name in result.output for name in ("measure", "trial", "control"))
    code = (
        "import sys, inferencegym_jax; sys.exit(any(x in sys.modules for x in ('httpx', 'typer', 'starlette', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
