"""Resident memory as an operator meets it: compiled for this server alone, with the compiler's own settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import inferencegym_jax as ig
from inferencegym_jax.fleet.making import fleet_tasks
from tests.server.conftest import LocalServer, start_server
from tests.server.twins import random_actions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc"),
]
AT_START, WITH_ROLLOUTS, BOUND = 700e6, 900e6, 900e6  # bytes
CPU_S = 0.1  # of one second: below, a server is idle


def resident(server: LocalServer, field: str = "VmRSS") -> float:
    """Bytes of memory at present; ``field="VmHWM"``: at most since the start."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def all_children(server: LocalServer) -> str:
    return "".join(path.read_text() for path in Path(f"/proc/{server.process.pid}/task").glob("*/children"))


def wait_idle(server: LocalServer) -> None:
    """Until what it has compiled in the background is done, and the process that did it has ended."""

    def ticks() -> int:
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return int(fields[11]) + int(fields[12])

    end, before = time.monotonic() + 300, ticks()
    while time.monotonic() < end:
        time.sleep(1)
        now = ticks()
        if now - before < 100 * CPU_S and not all_children(server):
            return
        before = now
    raise AssertionError("the server never came to rest")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server without the suite's compiler flags and without what others compiled."""
    folder = tmp_path_factory.mktemp("bare")
    with start_server(
        folder, patience_s=400.0, XLA_FLAGS="", JAX_COMPILATION_CACHE_DIR="", WARM_ROLLOUTS="true"
    ) as running:
        yield running


def test_a_server_that_has_started_holds_less_than_700_mb_and_with_its_rollouts_900(bare: LocalServer) -> None:
    assert resident(bare) < AT_START
    wait_idle(bare)

    assert resident(bare) < WITH_ROLLOUTS


RESIMULATE = """
import json, sys
import inferencegym_jax as ig
logs = [ig.verify(7, seed, None, actions)["episode_log"] for seed, actions in json.load(sys.stdin)]
print(json.dumps([[[step["reward"], step["metrics"]] for step in log] for log in logs]))
"""


def test_its_numbers_are_the_librarys_with_the_compilers_own_settings(bare: LocalServer) -> None:
    """In the suite both are compiled with its own settings, and a difference between theirs would not show."""
    episodes = [(seed, random_actions(seed, 200)) for seed in range(8)]
    body = {"task_id": 7, "seeds": [seed for seed, _ in episodes], "actions": [actions for _, actions in episodes]}
    answer = httpx.post(f"{bare.url}/rollout", json={**body, "trajectories": True}, timeout=300).json()
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    command = [sys.executable, "-c", RESIMULATE]
    done = subprocess.run(command, input=json.dumps(episodes), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for claimed, simulated in zip(answer["trajectories"], json.loads(done.stdout.splitlines()[-1]), strict=True):
        for step, (reward, metrics) in zip(claimed, simulated, strict=True):
            assert step["reward"] == pytest.approx(reward, rel=5e-5, abs=1e-6)
            assert step["metrics"] == pytest.approx(metrics, rel=5e-5, abs=1e-6)


def test_memory_is_bounded_whatever_is_asked_for(bare: LocalServer) -> None:
    """Every task's session and rollouts, of which the programs that were used last are kept; while they are loaded,
    too."""
    with httpx.Client(base_url=bare.url, timeout=300) as http:
        for name in (*(spec.name for spec in ig.task_specs().values()), *fleet_tasks()):
            assert http.post("/reset", json={"task_id": name, "seed": 0}).status_code == 200
            for policy in ("baseline", "trained"):
                body = {"task_id": name, "seeds": [0], "policy": policy}
                answer = http.post("/rollout", json=body)
                assert answer.status_code in (200, 422), answer.text  # 422: the task has no trained policy
            print(f"{name}: {resident(bare) / 1e6:.0f} MB, at most {resident(bare, 'VmHWM') / 1e6:.0f}")
            assert resident(bare) < BOUND and resident(bare, "VmHWM") < BOUND, name
