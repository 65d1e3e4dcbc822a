"""The OpenEnv contract: its own validator and its own client, over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient
from openenv.core.generic_client import GenericEnvClient
from openenv.validation import CheckStatus, Level, ProviderCapability, Verdict, run_validation
from websockets.sync.client import connect

import inferencegym_jax as ig
from inferencegym_jax.models import OBSERVATION
from server.app import create_app
from server.settings import Settings
from tests.server.conftest import ROOT, Running
from tests.server.twins import episodes, random_actions, same


def openenv(*arguments: str) -> str:
    """The `openenv` command as a user types it in the checkout; its output."""
    command = [str(Path(sys.executable).with_name("openenv")), *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.ci
def test_openenv_validates_the_running_server(server: Running):
    report = openenv("validate", "--url", server.url)
    assert report.count("PASS ") >= 6 and "FAIL" not in report and "Verdict: PASS" in report


@pytest.mark.slow
def test_openenv_validates_the_checkout():
    report = openenv("validate", "--level", "static", ".")
    assert "PASS  static.manifest" in report and "Verdict: PASS" in report


class Started:
    """The running server as the subject that OpenEnv's graders start, which is a container elsewhere."""

    name = "local-process"
    capabilities = frozenset({ProviderCapability.IMAGE_BUILD})
    supported_network_modes = frozenset({"public"})

    def __init__(self, url: str):
        self.base_url = url

    def build(self, root: Path, execution: Any) -> str:
        return "sha256:" + "0" * 64

    def start(self, spec: Any) -> Started:
        return self

    def inspect(self) -> dict[str, Any]:
        return {}

    def logs(self, max_bytes: int = 65536) -> str:
        return ""

    def exec(self, argv: list[str], timeout_s: float) -> Any:
        raise NotImplementedError

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("task", [1, 3, 5])
def test_openenvs_runtime_graders_pass(server: Running, tmp_path: Path, task: int):
    """What `openenv validate --level runtime` grades: startup, reward, observation schema, state."""
    declared = yaml.safe_load((ROOT / "openenv.yaml").read_text())
    declared["validation"]["execution"] = {"probe_path": "plan.json"}
    (tmp_path / "openenv.yaml").write_text(yaml.safe_dump(declared))
    plan = {
        "plan_schema_version": "1",
        "reset": {"episode_id": "graded", "seed": 5, "options": {"task_id": task}},
        "actions": random_actions(task, 100),
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    report = run_validation(tmp_path, max_level=Level.RUNTIME, provider=Started(server.url))
    statuses = {result.check_id: result.status for result in report.results}
    names = ("startup", "reward_well_formed", "observation_schema", "state_contract")
    assert {f"runtime.{name}": statuses[f"runtime.{name}"] for name in names} == {
        f"runtime.{name}": CheckStatus.PASS for name in names
    }, report.results
    assert report.verdict is not Verdict.FAIL, report.results


@pytest.mark.ci
@pytest.mark.parametrize("task", [spec.id for spec in ig.task_specs().values() if spec.episode_length <= 600])
def test_openenvs_own_client_plays_the_rollouts_episode(server: Running, task: int):
    steps = ig.get_task(task).episode_length
    actions = random_actions(70 + task, steps)
    twin = episodes(task, [9], [actions])[0]
    with GenericEnvClient(base_url=server.url).sync() as env:
        first = env.reset(seed=9, task_id=task, episode_id="mine")
        assert list(first.observation) == list(OBSERVATION) and first.reward is None and not first.done
        for t, action in enumerate(actions):
            result = env.step(action)
            assert same([result.observation, result.reward], [twin[t]["observation"], twin[t]["reward"]], task)
            assert result.metadata is not None and same(result.metadata["metrics"], twin[t]["metrics"], task)
            assert result.done == (t == steps - 1)
        state = env.state()
    assert (state["step_count"], state["task_id"], state["seed"], state["episode_id"]) == (steps, task, 9, "mine")
    assert state["cumulative_reward"] == pytest.approx(sum(row["reward"] for row in twin))


def ask(socket: Any, message: dict[str, Any] | str | bytes) -> dict[str, Any]:
    socket.send(json.dumps(message) if isinstance(message, dict) else message)
    return json.loads(socket.recv(timeout=30))


def test_bad_messages_are_answered_and_the_session_goes_on(server: Running):
    with connect(server.ws) as socket:
        early = ask(socket, {"type": "step", "data": {}})
        assert early["type"] == "error" and "reset" in early["data"]["message"]
        assert ask(socket, {"type": "reset", "data": {"seed": 3, "task_id": 2}})["type"] == "observation"
        bad: list[dict[str, Any] | str | bytes] = [
            {"type": "step", "data": {"batch_size": 0}},
            {"type": "step", "data": {"batch_size": "64"}},
            {"type": "step", "data": {"kv_budget": 2.0}},
            {"type": "step", "data": {"spec_length": 3}},
            {"type": "step", "data": {"no_such_knob": 1}},
            {"type": "step"},
            '{"type": "step", "data": {"kv_budget": NaN}}',
            '{"type": "step", "data": {"kv_budget": Infinity}}',
            "{not json",
            {"type": "dance"},
            {"type": "reset", "data": {"seed": -1}},
            {"type": "reset", "data": {"task_id": 99}},
            {"type": "reset", "data": {"config": {"alpha": -1}}},
            {"type": "reset", "data": {"unknown": 1}},
            {"type": "reset", "data": {"self": 1}},
            {"type": "step", "data": {"nested": {"a": [{"b": {}}] * 20}}},
            "[]",
            "null",
            "7",
            "[" * 100_000,
            '{"a":' * 900 + "1" + "}" * 900,
            '{"type": "step", "data": {"batch_size": ' + "9" * 5000 + "}}",
            '{"type": "step", "data": {"\\ud800": 1}}',
            '{"type": "step", "data": {"batch_size": "\\ud800"}}',
            b"\x00\xff",
        ]
        for message in bad:
            assert ask(socket, message)["type"] == "error", message
        assert ask(socket, {"type": "state"})["data"]["step_count"] == 0
        good = ask(socket, {"type": "step", "data": {"batch_size": 64}})
        assert good["type"] == "observation" and good["data"]["observation"]["timestep"] == 1
        assert "metadata" not in good["data"]["observation"]


def test_a_step_after_the_last_is_an_error_until_the_next_reset(server: Running):
    with connect(server.ws) as socket:
        ask(socket, {"type": "reset", "data": {"seed": 0}})
        last = [ask(socket, {"type": "step", "data": {}}) for _ in range(200)][-1]
        assert last["data"]["done"]
        assert "over" in ask(socket, {"type": "step", "data": {}})["data"]["message"]
        ask(socket, {"type": "reset", "data": {"seed": 0}})
        assert ask(socket, {"type": "step", "data": {}})["data"]["observation"]["timestep"] == 1


def test_a_socket_beyond_the_limit_is_told_so_and_a_closed_one_makes_room():
    client = TestClient(create_app(Settings(ws_sessions=2)))
    with client.websocket_connect("/ws") as first:
        with client.websocket_connect("/ws") as second, client.websocket_connect("/ws") as third:
            told = third.receive_json()
            assert (told["type"], told["data"]["code"]) == ("error", "CAPACITY_REACHED")
            second.send_json({"type": "state"})
            assert second.receive_json()["type"] == "state"
        with client.websocket_connect("/ws") as fourth:
            for socket in (first, fourth):
                socket.send_json({"type": "state"})
                assert socket.receive_json()["type"] == "state"


def test_metadata_and_schema_are_ours(http: httpx.Client):
    metadata = http.get("/metadata").json()
    assert metadata["name"] == "inferencegym-jax" and "serving knobs" in metadata["description"]
    schema = http.get("/schema").json()
    assert set(OBSERVATION) <= set(schema["observation"]["properties"])
    assert {"task_id", "seed", "cumulative_reward"} <= set(schema["state"]["properties"])
    assert schema["action"]["additionalProperties"] is False
