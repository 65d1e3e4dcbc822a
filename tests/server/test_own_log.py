"""A server that replays a request log: TRACE, the same episodes as ``ig.make(task, trace=...)``."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.tasks import calibration
from server.__main__ import main
from tests.server.conftest import start_server
from tests.server.twins import episodes, random_actions, same, seen


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "mine.csv"
    rows = [f"{i * 0.11:.2f},{200 + 37 * i % 5000},{20 + 13 * i % 300}" for i in range(6000)]
    path.write_text("\n".join(["time,prompt_tokens,output_tokens", *rows]))
    return path


@pytest.mark.slow
def test_every_task_replays_the_log(log: Path, tmp_path: Path) -> None:
    actions = random_actions(3, 12)
    # the start searches the log for its normalisers
    with (
        start_server(tmp_path, patience_s=600.0, TRACE=str(log)) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        about = http.get("/info").json()["trace"]
        assert (about["name"], about["requests"], about["digest"]) == ("mine.csv", 6000, ig.load_trace(log).digest)
        for task in (2, 4):
            session = http.post("/reset", json={"task_id": task, "seed": 1}).json()["session_id"]
            answers = [http.post("/step", json={"session_id": session, "action": a}).json() for a in actions]
            # a log is served open-loop whatever the task, so floats are compared as task 4's are
            assert same([seen(a) for a in answers], episodes(task, [1], [actions], trace=log)[0], task=4)
            assert answers[0]["info"]["workload"]["arrivals"] == ig.load_trace(log).counts[200]
            grade = http.post("/grader", json={"session_id": session}).json()
            scores = http.post("/rollout", json={"task_id": task, "seeds": [1], "actions": [actions]}).json()["scores"]
            assert grade["verified"] and scores[0] == pytest.approx(grade["score"], abs=1e-6)
        best = http.get("/info").json()["best_static"]["azure-conversation"]
        assert best != calibration()["tasks"]["azure-conversation"]["best_static"]["action"]
        search = {"task_id": 4, "seeds": list(range(16))}  # the seeds of the search
        top = http.post("/rollout", json=search | {"policy": "best_static"}).json()["mean_score"]
        for change in ({}, {"batch_size": 1}, {"batch_size": 512}, {"quant_tier": 0}, {"kv_budget": 0.1}):
            other = http.post("/rollout", json=search | {"actions": [[best | change] * 200]}).json()["mean_score"]
            assert other == top if not change else other <= top
        tasks = {entry["task_id"]: entry for entry in http.get("/baseline").json()["tasks"]}
        assert tasks[2]["expected_range"] is None and 0 < tasks[4]["score"] < 1
        assert set(tasks) == {2, 4}  # what nobody asked for was not searched for
        refused = http.post("/reset", json={"task_id": "fleet-elastic"})
        assert refused.status_code == 422 and "inferencegym plan" in refused.json()["detail"]


def test_a_server_without_a_log_says_so(http: httpx.Client) -> None:
    assert http.get("/info").json()["trace"] is None


@pytest.mark.ci
@pytest.mark.parametrize("task", [4, 5])
def test_open_loop_rollouts_are_scored_as_their_sessions_are(http: httpx.Client, task: int) -> None:
    body = {"task_id": task, "seeds": [5], "actions": [random_actions(5, 30)]}
    scored = http.post("/rollout", json=body).json()
    graded = http.post("/grader", json={"task_id": task, "seed": 5, "actions": body["actions"][0]}).json()
    assert scored["scores"][0] == pytest.approx(graded["score"], abs=1e-6)
    for component, value in graded["breakdown"].items():
        assert scored["breakdown"][component][0] == pytest.approx(value, abs=1e-6), component
    assert np.sum(list(graded["breakdown"].values())) > 1


@pytest.mark.parametrize(
    ("setting", "text", "message"),
    [
        ("TRACE", None, "TRACE: trace = '{path}': no such file; give a CSV or JSON-lines request log"),
        ("TRACE", "time,prompt_tokens,output_tokens\n1,2,x\n", "TRACE: bad.csv line 2: output_tokens is 'x'"),
        ("TABLE", None, "TABLE: "),
    ],
)
def test_a_file_that_cannot_be_used_ends_the_start_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    text: str | None,
    message: str,
) -> None:
    path = tmp_path / "bad.csv"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(setting, str(path))
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message.format(path=path)) and "Traceback" not in said
