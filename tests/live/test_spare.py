"""A spare engine that the policy starts and stops: no request lost or answered twice, none sent where nobody serves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.proxy.app import ControlSettings, create_app
from inferencegym_jax.live.proxy.policy_source import PolicySource
from inferencegym_jax.models import ServeAction
from inferencegym_jax.registry import problem
from tests.live.conftest import ROOT, SPARE_ENGINE, Setting, body, serving, status

STEP = 0.06


class Leasing:
    """A policy whose second GPU is what a test sets."""

    def __init__(self, batch_size: int = 64):
        self.wanted, self.batch_size = False, batch_size

    def ask(self, observation: Any) -> ServeAction:
        del observation
        return ServeAction(batch_size=self.batch_size, prefill_disagg=self.wanted)


def proxied(setting: Setting, policy: Any, **changes: Any) -> Any:
    settings = ControlSettings(setting.upstream, step_seconds=STEP, spare=setting.spare, **changes)
    return serving(create_app(settings, policy, "leasing"))


def spare_is(url: str, *states: str, seconds: float = 20.0) -> dict[str, Any]:
    """``/status`` of the spare once it is in one of the states."""
    deadline = time.monotonic() + seconds
    while (found := status(url)["spare"])["state"] not in states:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


class Load:
    """Clients that send one stream after another until they are told to end."""

    def __init__(self, url: str, clients: int):
        self.url, self.clients, self.running = url, clients, True
        self.answers: dict[str, str] = {}  # tag -> whole, or how it ended otherwise

    async def client(self, number: int) -> None:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            count = 0
            while self.running:
                tag, count = f"c{number}n{count}", count + 1
                tokens = 2 + count % 5
                self.answers[tag] = "pending"
                try:
                    answer = await client.post(f"{self.url}/v1/completions", json=body(tokens, tag=tag))
                except httpx.HTTPError as error:
                    self.answers[tag] = type(error).__name__
                    continue
                self.answers[tag] = "whole" if is_whole(answer, tag, tokens) else f"status {answer.status_code}"

    async def run(self) -> None:
        await asyncio.gather(*(self.client(number) for number in range(self.clients)))


def is_whole(answer: httpx.Response, tag: str, tokens: int) -> bool:
    events = [line[6:] for line in answer.text.splitlines() if line]
    if answer.status_code != 200 or not events or events[-1] != "[DONE]":
        return False
    return [json.loads(event)["choices"][0]["text"] for event in events[:-1]] == [f" {tag}-{i}" for i in range(tokens)]


def cycle(url: str, policy: Leasing, times: int) -> None:
    """Ask for the spare, wait until it serves, give it back, wait until it is off."""
    for _ in range(times):
        policy.wanted = True
        spare_is(url, "serving")
        time.sleep(0.05)  # under load
        policy.wanted = False
        spare_is(url, "off")


def under_load(setting: Setting, times: int, clients: int) -> tuple[Load, dict[str, Any]]:
    policy = Leasing()
    with proxied(setting, policy) as url:

        async def run() -> Load:
            load = Load(url, clients)
            sending = asyncio.create_task(load.run())
            try:
                await asyncio.to_thread(cycle, url, policy, times)
            finally:
                load.running = False
                await sending
            return load

        return asyncio.run(run()), status(url)


def check_nobody_was_lost(setting: Setting, load: Load) -> Counter[str]:
    """Every request has one answer and was received once, by one who serves; only a spare that died breaks any off."""
    upstream = [line.split() for line in setting.upstream_journal.read_text().splitlines()]
    lines = setting.lines()
    received = [line for line in upstream + lines if line[1] == "received"]
    at = Counter(line[2] for line in received)
    assert max(at.values()) == 1 and set(at) <= set(load.answers)
    assert {line[3] for line in lines if line[1] == "received"} == {"serving"}
    started = Counter(line[2] for line in lines if line[1] == "started")
    broken = {tag for tag, how in load.answers.items() if how != "whole"}
    assert not broken & {line[2] for line in upstream} and "pending" not in load.answers.values()
    assert len(broken) <= load.clients * started["die"], {load.answers[tag] for tag in broken}
    return started


def test_a_spare_serves_its_share_and_is_empty_before_it_stops(setting: Callable[..., Setting]) -> None:
    place = setting("ok fail ok hang", start_timeout_s=1.2)
    load, found = under_load(place, 3, 8)
    started = check_nobody_was_lost(place, load)
    spare = found["spare"]
    assert started["ok"] >= 1 and spare["failures"]["start"] >= 1
    assert spare["state"] == "off" and spare["running"] == 0
    assert spare["stops"] == 3 and spare["failures"]["died"] == spare["failures"]["stop"] == 0
    requests = found["requests"]
    assert requests["entered"] == requests["finished"] == len(load.answers) and found["running"] == 0


@pytest.mark.slow
def test_fifty_starts_and_stops_with_failures_hangs_and_kills_lose_nobody(setting: Callable[..., Setting]) -> None:
    place = setting("ok ok die ok fail ok hang ok", start_timeout_s=1.2)
    load, found = under_load(place, 50, 12)
    started = check_nobody_was_lost(place, load)
    spare = found["spare"]
    assert spare["starts"] >= 50 and spare["stops"] + spare["failures"]["died"] >= 50
    assert min(started["ok"], started["die"]) >= 5 and spare["failures"]["start"] >= 10
    assert spare["failures"]["stop"] == 0
    requests = found["requests"]
    assert requests["entered"] == requests["finished"] == len(load.answers) > 500


def test_a_spare_that_is_killed_or_frozen_is_started_anew(
    setting: Callable[..., Setting],
) -> None:
    place = setting(stop_timeout_s=1.0)
    policy = Leasing()
    policy.wanted = True
    with proxied(place, policy, first_byte_timeout_s=5.0) as url:
        spare_is(url, "serving")
        os.kill(place.pid(), signal.SIGKILL)
        for number in range(6):  # the first that meets it is refused there, and answered all the same
            answer = httpx.post(f"{url}/v1/completions", json=body(3, tag=f"a{number}"), trust_env=False)
            assert is_whole(answer, f"a{number}", 3)
        deadline = time.monotonic() + 10
        while status(url)["spare"]["starts"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(place.pid(), signal.SIGSTOP)  # accepts connections, and never answers
        deadline = time.monotonic() + 20
        while status(url)["spare"]["starts"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found = status(url)["spare"]
    assert found["failures"]["died"] == 2 and "health checks" in found["last_failure"]
    assert [line[1:] for line in place.lines() if line[1] == "ended"]  # the proxy's own end gave it back


@pytest.mark.ci
def test_requests_are_shared_and_batch_size_is_that_of_each_engine(setting: Callable[..., Setting]) -> None:
    place = setting()
    policy = Leasing(batch_size=3)
    policy.wanted = True

    async def run(url: str) -> dict[str, Any]:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            tasks = [
                asyncio.create_task(client.post(f"{url}/v1/completions", json=body(400, tag=f"r{i}"))) for i in range(8)
            ]
            found = await asyncio.to_thread(status, url, lambda x: (x["limit"], x["running"]) == (6, 6))
            policy.wanted = False
            drained = await asyncio.to_thread(spare_is, url, "draining")
            answers = await asyncio.gather(*tasks)
        assert all(is_whole(answer, f"r{i}", 400) for i, answer in enumerate(answers))
        return {"before": found, "drained": drained}

    with proxied(place, policy) as url:
        spare_is(url, "serving")
        found = asyncio.run(run(url))
        spare_is(url, "off")
    before = found["before"]
    assert (before["limit"], before["batch_size"], before["running"]) == (6, 3, 6)
    assert before["spare"]["running"] == 3 and before["waiting"]["interactive"] == 2
    assert found["drained"]["running"] == 3  # these end there; the two that waited went to the upstream
    assert Counter(line[1] for line in place.lines())["received"] == 3


def test_it_is_paid_from_the_asking_for_the_lease_at_least(setting: Callable[..., Setting]) -> None:
    place = setting(lease_s=3.0)
    policy = Leasing()
    with proxied(place, policy) as url:
        assert status(url)["spare"]["billed_s"] == 0.0
        policy.wanted = True
        asked = time.monotonic()
        spare_is(url, "serving")
        policy.wanted = False
        held = spare_is(url, "draining")
        assert 0.0 < held["lease_left_s"] < 3.0
        found = spare_is(url, "off")
        assert 3.0 <= found["billed_s"] <= time.monotonic() - asked
        time.sleep(0.1)
        assert status(url)["spare"]["billed_s"] == found["billed_s"]
        page = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'inferencegym_control_spare_state{state="off"} 1.0' in page
    assert "inferencegym_control_spare_start_seconds_count 1.0" in page
    billed = float(page.split("\ninferencegym_control_spare_billed_seconds_total ")[1].split()[0])
    assert billed == pytest.approx(found["billed_s"])


def test_asked_for_again_while_it_drains_it_goes_on_without_a_stop(setting: Callable[..., Setting]) -> None:
    place = setting(lease_s=30.0)
    policy = Leasing()
    policy.wanted = True
    with proxied(place, policy) as url:
        spare_is(url, "serving")
        policy.wanted = False
        spare_is(url, "draining")
        policy.wanted = True
        found = spare_is(url, "serving")
    assert (found["starts"], found["stops"]) == (1, 0)


def test_a_spare_that_an_earlier_proxy_left_is_kept_or_given_back(setting: Callable[..., Setting]) -> None:
    place = setting()
    for wanted, state, counts in ((True, "serving", (0, 0)), (False, "off", (0, 1))):
        left = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SPARE_ENGINE), place.spare.url.rpartition(":")[2], str(place.journal)]
        )
        try:
            wait_healthy(place.spare.url)
            stop = f"kill {left.pid}"
            policy = Leasing()
            policy.wanted = wanted
            again = dataclasses.replace(place, spare=dataclasses.replace(place.spare, stop_cmd=stop))
            with proxied(again, policy) as url:
                found = spare_is(url, state)
                deadline = time.monotonic() + 10
                while not wanted and status(url)["spare"]["stops"] == 0:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                found = status(url)["spare"]
            assert (found["starts"], found["stops"]) == counts
        finally:
            left.kill()
            left.wait()


def wait_healthy(url: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stops_failed(url: str, count: int) -> dict[str, Any]:
    """What is said of the spare once as many of its stops have failed."""
    deadline = time.monotonic() + 10
    while (found := status(url)["spare"])["failures"]["stop"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_stop_that_fails_is_reported_and_tried_again(setting: Callable[..., Setting], tmp_path: Path) -> None:
    place = setting()
    flag = tmp_path / "may-stop"
    place = dataclasses.replace(place, spare=dataclasses.replace(place.spare, stop_cmd=f"test -e {flag}"))
    policy = Leasing()
    policy.wanted = True
    with proxied(place, policy) as url:
        spare_is(url, "serving")
        policy.wanted = False
        found = stops_failed(url, 2)
        assert found["state"] == "stopping" and "the stop command ended with status 1" in found["last_failure"]
        flag.touch()
        after = spare_is(url, "off")
    assert after["stops"] == 1 and after["billed_s"] > found["billed_s"]


def test_a_stop_that_hangs_is_ended_and_tried_again(setting: Callable[..., Setting], tmp_path: Path) -> None:
    flag = tmp_path / "may-stop"
    place = setting(stop_cmd=f"test -e {flag} || sleep 1000", stop_timeout_s=0.3)
    policy = Leasing()
    policy.wanted = True
    with proxied(place, policy) as url:
        spare_is(url, "serving")
        policy.wanted = False
        found = stops_failed(url, 1)
        assert "not down within 0.3 s" in found["last_failure"]
        assert httpx.post(f"{url}/v1/completions", json=body(3, tag="a"), trust_env=False).status_code == 200
        flag.touch()
        spare_is(url, "off")


def test_a_wake_that_is_refused_is_reported_and_tried_again(setting: Callable[..., Setting]) -> None:
    place = setting()

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        del receive
        if scope["type"] == "http":
            code = 500 if scope["path"] == "/wake_up" else 404 if scope["path"] == "/health" else 200
            await send({"type": "http.response.start", "status": code, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    policy = Leasing()
    policy.wanted = True
    with serving(broken) as root:
        spare = SpareSettings(
            root, wake_path="/wake_up", sleep_path="/sleep", lease_s=0.0, health_every_s=0.05, backoff_s=0.02
        )
        with proxied(dataclasses.replace(place, spare=spare), policy) as url:
            deadline = time.monotonic() + 10
            while (found := status(url)["spare"])["failures"]["start"] < 3:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert "POST /wake_up: answered 500" in found["last_failure"] and not found["answers"]
            answer = httpx.post(f"{url}/v1/completions", json=body(3, tag="a"), trust_env=False)
            assert is_whole(answer, "a", 3)
            policy.wanted = False
            spare_is(url, "off")


@pytest.mark.slow  # starts the library
def test_the_command_leases_and_gives_back_when_it_is_told_to_end(setting: Callable[..., Setting]) -> None:
    place = setting()
    assert place.spare.start_cmd is not None
    command = [sys.executable, "-m", "inferencegym_jax.cli", "control", "--upstream", place.upstream, "--port", "0"]
    command += ["--spare", place.spare.url, "--start-cmd", place.spare.start_cmd, "--lease", "0"]
    command += ["--policy", "prefill_disagg=true"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert f"-> {place.upstream} and {place.spare.url} under policy prefill_disagg=true" in line
        url = line.split(" ")[0]
        wait_healthy(place.spare.url, 60.0)
        found = spare_is(url, "serving")
        assert found["starts"] == 1 and found["billed_s"] > 0
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert [line[1] for line in place.lines()] == ["started", "ended"]
    finally:
        process.kill()
        process.wait()


def test_an_engine_that_sleeps_is_woken_and_put_to_sleep(setting: Callable[..., Setting]) -> None:
    place = setting()
    asleep = [True]
    calls: list[str] = []

    async def sleeper(scope: Any, receive: Any, send: Any) -> None:
        del receive
        if scope["type"] != "http":
            return
        calls.append(scope["path"] + ("?" + scope["query_string"].decode() if scope["query_string"] else ""))
        if scope["path"] in ("/wake_up", "/sleep"):
            asleep[0] = scope["path"] == "/sleep"
        answer = json.dumps({"is_sleeping": asleep[0]}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    policy = Leasing()
    policy.wanted = True
    with serving(sleeper) as root:
        spare = SpareSettings(root, wake_path="/wake_up", sleep_path="/sleep?level=1", lease_s=0.0, health_every_s=0.05)
        with proxied(dataclasses.replace(place, spare=spare), policy) as url:
            spare_is(url, "serving")
            assert not asleep[0]
            policy.wanted = False
            spare_is(url, "off")
    assert asleep[0] and calls.count("/wake_up") == 1 and calls.count("/sleep?level=1") == 1


def test_in_a_dry_run_nothing_is_started_and_nobody_waits(setting: Callable[..., Setting]) -> None:
    place = setting()
    policy = Leasing(batch_size=1)
    policy.wanted = True

    async def run(url: str) -> tuple[dict[str, Any], str]:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            tasks = [
                asyncio.create_task(client.post(f"{url}/v1/completions", json=body(100, tag=f"r{i}"))) for i in range(4)
            ]
            await asyncio.sleep(0.2)
            found = await asyncio.to_thread(status, url, lambda x: x["action"] is not None)
            page = (await client.get(f"{url}/metrics")).text
            await asyncio.gather(*tasks)
        return found, page

    with proxied(place, policy, observes=True) as url:
        found, page = asyncio.run(run(url))
    assert (found["mode"], found["batch_size"], found["running"], found["spare"]) == ("observe", None, 4, None)
    assert found["would_wait"] == 3 and not place.journal.exists()
    for line in ("observe 1.0", "policy_batch_size 1.0", "policy_second_gpu 1.0", "would_wait_requests 3.0"):
        assert f"inferencegym_control_{line}" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "nothing says how it starts"),
        ({"start_cmd": " "}, "start-cmd = ' ': must not be empty"),
        ({"start_cmd": "x", "wake_path": "/w", "sleep_path": "/s"}, "contradicts the start and stop commands"),
        ({"wake_path": "/w"}, "needs sleep-path"),
        ({"wake_path": "w", "sleep_path": "/s"}, "wake-path = 'w': must begin with /"),
        ({"start_cmd": "x", "lease_s": -1.0}, "lease = -1.0"),
        ({"start_cmd": "x", "lease_s": float("nan")}, "lease = nan"),
        ({"start_cmd": "x", "start_timeout_s": 0.0}, "start-timeout = 0.0"),
        ({"start_cmd": "x", "url": "nowhere"}, "spare = 'nowhere': must be http://"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SpareSettings(**{"url": "http://h:1", **changes})


@pytest.mark.parametrize(
    ("upstream", "spare"),
    [
        ("http://127.0.0.1:8000", "http://localhost:8000/"),
        ("http://h", "http://h:80/v1"),
        ("http://user:secret@H:1", "http://h:1"),
    ],
)
def test_a_spare_that_is_the_upstream_is_refused(upstream: str, spare: str) -> None:
    with pytest.raises(ValueError, match="is the upstream") as error:
        ControlSettings(upstream, spare=SpareSettings(spare, start_cmd="x"))
    assert "secret" not in str(error.value)
    ControlSettings(upstream, spare=SpareSettings("http://other:9", start_cmd="x"))


@pytest.mark.slow  # compiles the policy
def test_the_general_policy_begins_with_the_spare_and_gives_it_back(setting: Callable[..., Setting]) -> None:
    place, runner = setting(), PolicySource(problem(7), leases=True).load("general")
    with proxied(place, runner) as url:
        spare_is(url, "serving")  # before there is a load: task 7's spare takes longer to start than a first token may
        answer = httpx.post(f"{url}/v1/completions", json=body(3, tag="a"), trust_env=False)
        assert is_whole(answer, "a", 3)
        spare_is(url, "off", seconds=60.0)
        found = status(url)
    assert found["mode"] == "control" and found["spare"]["starts"] == 1
