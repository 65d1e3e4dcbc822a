"""Programs that others had needed the room of are loaded again when they are wanted, beside everything else."""

from __future__ import annotations

import asyncio
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from openenv.core.generic_client import GenericEnvClient

from server.openenv_environment import ServingEnvironment
from server.programs import Programs
from tests.server.conftest import start_server
from tests.server.twins import episodes, random_actions, same, seen

HTTP_TASKS, WS_TASK, STEPS = (1, 4), 2, 3  # tasks 1 and 2 are one program


class Stepped(Exception):
    pass


class Held:
    pass


class Gone:
    """A program that is not in memory until it was loaded so often."""

    kind = SimpleNamespace(knobs_in=lambda action: action)

    def __init__(self, loads: int):
        self.missing = loads
        self.threads: list[int] = []
        self.held: Any = None  # the last that was handed out, for as long as somebody has it

    def hold(self) -> Held | None:
        if self.missing > 0:
            return None
        held = Held()
        self.held = weakref.ref(held)
        return held

    def load(self) -> None:
        self.threads.append(threading.get_ident())
        self.missing -= 1

    def pack_action(self, action: dict[str, Any]) -> bytes:
        return b""

    def step(self, state: bytes, action: bytes) -> None:
        assert self.missing == 0
        raise Stepped


@pytest.mark.parametrize("loads", [0, 1, 3])  # three: others needed the room again before it could be stepped
def test_it_is_loaded_in_a_thread_and_waits_for_no_compiler(loads: int):
    programs, program = Programs(), Gone(loads)

    async def ask() -> int:
        async with programs._one_at_a_time, asyncio.timeout(20):  # somebody else's is being compiled
            assert await programs.in_memory(cast(Any, program)) is program
        return threading.get_ident()

    loop = asyncio.run(ask())
    assert len(program.threads) == loads and loop not in program.threads


def test_it_is_held_until_the_event_loop_turns():
    """Whoever asked for it steps it before: a thread that needs its room must not take it away between."""
    programs, program = Programs(), Gone(0)

    async def ask() -> None:
        await programs.in_memory(cast(Any, program))
        assert program.held() is not None
        for _ in range(2):
            await asyncio.sleep(0)
        assert program.held() is None

    asyncio.run(ask())


def test_a_step_over_the_websocket_waits_until_it_is_loaded():
    program, environment = Gone(1), ServingEnvironment(Programs())
    environment._program = cast(Any, program)
    with pytest.raises(Stepped):
        asyncio.run(environment.step_async({}))
    assert len(program.threads) == 1 and threading.get_ident() not in program.threads


@pytest.mark.slow
def test_sessions_of_several_tasks_where_one_program_has_room_are_their_twins(tmp_path: Path):
    """A step of task 4, or a rollout, lets the program of tasks 1 and 2 go, and they that of task 4."""
    tasks = (*HTTP_TASKS, WS_TASK)
    actions = {task: random_actions(task, STEPS) for task in tasks}
    twins = {task: episodes(task, [task], [actions[task]])[0] for task in tasks}
    with start_server(tmp_path, PROGRAM_MEMORY_MB="1") as running:
        with (
            httpx.Client(base_url=running.url, timeout=120) as http,
            GenericEnvClient(base_url=running.url).sync() as socket,
        ):
            ids = {
                task: http.post("/reset", json={"task_id": task, "seed": task}).json()["session_id"]
                for task in HTTP_TASKS
            }
            socket.reset(seed=WS_TASK, task_id=WS_TASK)
            for t in range(STEPS):
                for task in HTTP_TASKS:
                    body = {"session_id": ids[task], "action": actions[task][t]}
                    assert same(seen(http.post("/step", json=body).json()), twins[task][t], task)
                result = socket.step(actions[WS_TASK][t])
                assert same(result.observation, twins[WS_TASK][t]["observation"], WS_TASK)
            for task in HTTP_TASKS:
                grade = http.post("/grader", json={"session_id": ids[task]}).json()
                assert grade["verified"] and grade["first_difference"] is None
            body = {"task_id": 1, "seeds": [3], "policy": "baseline"}
            first, again = (http.post("/rollout", json=body).json() for _ in range(2))
            assert first["scores"] == again["scores"] and len(first["scores"]) == 1
        assert running.process.poll() is None
