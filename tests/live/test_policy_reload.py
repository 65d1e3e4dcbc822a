"""Another policy without a restart, for those who have the token; one that does not suit changes nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import inferencegym_jax as ig
from inferencegym_jax.live.proxy.app import ControlSettings, create_app
from inferencegym_jax.live.proxy.policy_source import PolicySource, trained_for
from tests.live.conftest import ROOT, STEP, Fixed, body, controlling, serving, status

POLICIES = ROOT / "data" / "policies"


class Named:
    """A source of fixed policies by their batch size."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load(self, name: str) -> Fixed:
        self.loaded.append(name)
        if not name.isdigit():
            raise ValueError(f"policy = {name!r}: no such name")
        return Fixed(int(name))


def proxy(url: str, source: Any, policy: Any = None, token: str = "secret") -> Any:
    settings = ControlSettings(url, step_seconds=STEP, token=token)
    return serving(create_app(settings, policy or Fixed(8), "8", source))


def post(url: str, token: str | None = "secret", **more: Any) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.post(f"{url}/policy", headers=headers, trust_env=False, timeout=20, **more)


def test_a_policy_is_replaced_for_those_who_show_the_token(engine: Any) -> None:
    source = Named()
    with proxy(engine.url, source) as url:
        assert status(url, controlling)["batch_size"] == 8
        for token in (None, "wrong", "secret2"):
            assert post(url, token, json={"policy": "5"}).status_code == 401
        assert source.loaded == []
        answer = post(url, json={"policy": "5"})
        assert (answer.status_code, answer.json()["policy"]) == (200, "5")
        found = status(url, lambda x: x["batch_size"] == 5)
        assert (found["policy"], found["batch_size"], found["policy_refused"]) == ("5", 5, None)
        assert post(url).status_code == 200 and source.loaded == ["5", "5"]  # no body: the one in force once more
        assert httpx.post(f"{url}/v1/completions", json=body(), trust_env=False).text.endswith("[DONE]\n\n")
        page = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'inferencegym_control_policy_reloads_total{result="loaded"} 2.0' in page


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"json": {"policy": "nobody"}}, "policy = 'nobody': no such name"),
        ({"json": {"policy": 5}}, "policy = '5': must be the name"),
        ({"json": {"policy": " "}}, "must be the name"),
        ({"json": {}}, "the body must be"),
        ({"content": b"{"}, "the body must be"),
        ({"content": b"x" * 20_000}, "the body must be"),
    ],
)
def test_a_policy_that_does_not_suit_changes_nothing(engine: Any, sent: dict[str, Any], said: str) -> None:
    with proxy(engine.url, Named()) as url:
        status(url, controlling)
        answer = post(url, **sent)
        found = status(url)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]
    assert (found["policy"], found["batch_size"], found["mode"]) == ("8", 8, "control")
    assert (found["policy_refused"] is not None) == ("nobody" in said)


def test_without_a_token_or_a_source_nobody_may(engine: Any) -> None:
    with proxy(engine.url, Named(), token="") as url:
        assert post(url, "x", json={"policy": "5"}).status_code == 403
    with proxy(engine.url, None) as url:
        answer = post(url, json={"policy": "5"})
        assert answer.status_code == 400 and "nothing can be loaded" in answer.json()["error"]["message"]


def test_a_policy_that_hangs_does_not_hold_up_the_next(engine: Any) -> None:
    hanging = Fixed()
    hanging.sleep_s = 3.0
    with proxy(engine.url, Named(), hanging) as url:
        assert status(url, lambda x: x["fallback_steps"] > 0)["mode"] == "pass-through"
        begun = time.monotonic()
        post(url, json={"policy": "6"})
        found = status(url, controlling)
        assert found["batch_size"] == 6 and time.monotonic() - begun < 3.0


def test_a_file_that_was_trained_where_the_second_gpu_is_no_replica_is_refused() -> None:
    path = str(POLICIES / "task4.npz")
    assert trained_for(path) == "azure-conversation" and trained_for("baseline") is None
    with pytest.raises(ValueError, match="'azure-conversation': has no replica that can be leased"):
        PolicySource(ig.problem(4), leases=True)
    leasing = PolicySource(ig.problem(7), leases=True)
    with pytest.raises(ValueError, match="trained for task 'azure-conversation', whose second GPU is no replica"):
        leasing.load(path)
    assert leasing.load("prefill_disagg=true").ask(_observation()).prefill_disagg is True


def _observation() -> Any:
    from inferencegym_jax.physics.observation import initial_observation

    return initial_observation()


@pytest.mark.slow  # two starts of the library
def test_a_hangup_reads_the_file_again(engine: Any, tmp_path: Path, wait: Callable[..., Any]) -> None:
    file = tmp_path / "mine.npz"
    shutil.copy(POLICIES / "task4.npz", file)
    command = [sys.executable, "-m", "inferencegym_jax.cli", "control", "--upstream", engine.url]
    command += ["--policy", str(file), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split(" ")[0]

        def count(result: str) -> float:
            page = httpx.get(f"{url}/metrics", trust_env=False, timeout=20).text
            return float(page.split(f'policy_reloads_total{{result="{result}"}} ')[1].split()[0])

        wait(lambda: httpx.get(f"{url}/status", trust_env=False).status_code == 200)
        os.kill(process.pid, signal.SIGHUP)
        wait(lambda: count("loaded") == 1)
        file.write_bytes(b"no policy")
        os.kill(process.pid, signal.SIGHUP)
        wait(lambda: count("refused") == 1)
        found = status(url, controlling)
        assert found["mode"] == "control" and "mine.npz" in found["policy_refused"]
        shutil.copy(POLICIES / "task5.npz", file)
        os.kill(process.pid, signal.SIGHUP)
        wait(lambda: count("loaded") == 2)
        assert status(url)["policy_refused"] is None and process.poll() is None
    finally:
        process.kill()
        process.wait()
