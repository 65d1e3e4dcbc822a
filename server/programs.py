"""The library's single step for every task and config that is asked for, compiled when told to.

``Programs.program(task, config) -> TaskProgram``; its ``reset(seed)`` and ``step(state, action)`` give ``Outcome``. On
the event loop they are called right after ``ready`` or ``in_memory``, and nothing is awaited between: a program that
others had needed the room of is loaded again first, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from anyio import CapacityLimiter, to_thread

import inferencegym_jax as ig
from inferencegym_jax.fleet.making import draw_condition, is_anywhere
from inferencegym_jax.registry.problems import needs_search
from inferencegym_jax.tasks import CONFIG_KEYS, check_config
from server.bad_input import BadInput
from server.kinds import ENGINE, kind_of, spec_of
from server.memory import let_go
from server.plans import Planner, planned_here
from server.settings import Settings
from server.task_programs import AnyProgram, FleetProgram, TaskProgram

PARAMS_KEPT = 256  # (task, config) pairs whose params stay on the device


class Replay(NamedTuple):
    """An episode simulated again."""

    log: list[dict[str, Any]]  # of ``LogEntry``
    oom_share: float  # of its seconds out of memory


def own_log(settings: Settings) -> ig.RequestLog | None:
    """The request log of TRACE, read as TRACE_UNIT and the others say; None where it is unset.

    Raises:
        FileNotFoundError, TraceError, ValueError: see ``ig.load_trace``.
    """
    if settings.trace is None:
        return None
    part = {"start": settings.trace_from, "end": settings.trace_to, "last": settings.trace_last}
    return ig.load_trace(settings.trace, settings.trace_unit, columns=settings.trace_columns, **part)


def _turned(held: object) -> None:
    """Let go of what was held until the event loop turned."""
    del held


class Programs:
    """The programs of every task on one latency table and, where there is one, one request log; compiles when told to,
    keeps params of recent configs.

    Args:
        table: its path; None: the shipped one.
        trace: a request log, or its path.
        plan: makes a reactive controller's plan.
    """

    def __init__(
        self,
        table: str | Path | None = None,
        trace: str | Path | ig.RequestLog | None = None,
        plan: Planner = planned_here,
    ):
        # A step is shorter than a hop to jax's dispatch thread and back, and its seventy small operations gain nothing
        # from a pool of threads, which cost a third of the processor time. Takes effect if jax has not started yet.
        os.environ.setdefault("PJRT_NPROC", "1")
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.table = ig.load_table(table)
        self.trace = None if trace is None else ig.load_trace(trace)
        self._programs: OrderedDict[tuple[Any, ...], AnyProgram] = OrderedDict()
        self._lock = threading.Lock()
        self._compiled: set[Any] = set()  # environments whose reset and step are
        self._plan = plan
        self._one_at_a_time, self._quick, self._loading = CapacityLimiter(1), CapacityLimiter(1), CapacityLimiter(1)

    def program(self, task: int | str, config: Mapping[str, Any] | None = None) -> TaskProgram:
        """The program of an engine's task (id or name) and a config; made where it is new, which may search.

        Raises:
            BadInput: see ``inferencegym_jax.make``.
        """
        program = self.of(task, config)
        assert isinstance(program, TaskProgram)
        return program

    def of(self, task: int | str, config: Mapping[str, Any] | None = None, seed: int = 0) -> AnyProgram:
        """The program of any task and a config; made where it is new. ``ready`` makes it in a thread.

        Args:
            task: id or name.
            config: overrides; a fleet takes none.
            seed: of the episode, which fleet-anywhere's condition is drawn from.

        Raises:
            BadInput: see ``inferencegym_jax.make``.
        """
        key = self._key(task, config, seed)
        known = self._known(key)
        if known is not None:
            return known
        if self._is_quick(task):  # which must not wait for somebody else's search
            return self._kept(key, task, config, seed)
        with self._lock:
            return self._known(key) or self._kept(key, task, config, seed)

    def _kept(self, key: tuple[Any, ...], task: int | str, config: Mapping[str, Any] | None, seed: int) -> AnyProgram:
        try:
            program = self._made(task, check_config(config), seed)
        except ValueError as error:  # an override that this task cannot have
            raise BadInput(str(error)) from error
        self._programs[key] = program
        while len(self._programs) > PARAMS_KEPT:
            with contextlib.suppress(KeyError):  # another thread may have let go of it
                self._programs.popitem(last=False)
        return program

    async def ready(self, task: int | str, config: Mapping[str, Any] | None = None, seed: int = 0) -> AnyProgram:
        """The same, compiled: whatever takes longer than a step is done in a thread, while others are served.

        Raises:
            BadInput: see ``of``.
        """
        known = self._known(self._key(task, config, seed))
        if known is None and self._is_quick(task):  # its params are some dozens of small programs
            known = await to_thread.run_sync(self.of, task, config, limiter=self._quick)
        if known is None or known.env not in self._compiled:
            known = await to_thread.run_sync(self._compile, task, config, seed, limiter=self._one_at_a_time)
        return await self.in_memory(known)

    async def in_memory(self, program: AnyProgram) -> AnyProgram:
        """A program that was ready before, in memory until the event loop turns: where others had needed its room it is
        loaded in a thread, which waits for nobody's compiler."""
        while (held := program.hold()) is None:
            await to_thread.run_sync(program.load, limiter=self._loading)
        asyncio.get_running_loop().call_soon(_turned, held)
        return program

    def is_found(self, task: int | str) -> bool:
        """Whether a program of the task needs no search any more."""
        return self._known(self._key(task, None, 0)) is not None

    def _is_quick(self, task: int | str) -> bool:
        """Whether a program is made in a moment: of another config of an engine's task that is compiled."""
        program = self._known(self._key(task, None, 0)) if kind_of(task) is ENGINE else None
        return program is not None and program.env in self._compiled

    def _compile(self, task: int | str, config: Mapping[str, Any] | None, seed: int) -> AnyProgram:
        program = self.of(task, config, seed)
        if program.env not in self._compiled:
            program.step(program.reset(seed).state, program.pack_action({}))
            self._compiled.add(program.env)
            let_go()
        return program

    def _key(self, task: int | str, config: Mapping[str, Any] | None, seed: int) -> tuple[Any, ...]:
        spec, overrides = spec_of(task), check_config(config)
        drawn = seed if is_anywhere(spec.id) else None
        return (spec.id, drawn, *(overrides.get(name) for name in CONFIG_KEYS))

    def _known(self, key: tuple[Any, ...]) -> AnyProgram | None:
        program = self._programs.get(key)
        if program is not None:
            with contextlib.suppress(KeyError):  # another thread may have let go of it
                self._programs.move_to_end(key)
        return program

    def _made(self, task: int | str, config: dict[str, float], seed: int) -> AnyProgram:
        spec = spec_of(task)
        if isinstance(spec, ig.TaskSpec):
            return TaskProgram(ig.problem(spec.id, table=self.table, trace=self.trace, config=config), self._plan)
        if config:
            raise BadInput(f"config: {spec.name} is a fleet, which takes none")
        if self.trace is not None:
            raise BadInput(
                f"task_id = {spec.name!r}: this server replays a request log (TRACE), fleets have days of their own; "
                "inferencegym plan replays a log on fleets"
            )
        if is_anywhere(spec.id):
            spec = draw_condition(seed)
        env, params = ig.make_fleet(spec, table=self.table)
        return FleetProgram(spec, env, params)

    def replay(self, program: AnyProgram, seed: int, actions: Sequence[Mapping[str, Any]]) -> Replay:
        """The log that these actions give, bit for bit a session's.

        Raises:
            ValueError: more actions than the episode has seconds; the server's own latency table lacks a value of a
                knob, the action's index is named.
        """
        if len(actions) > program.length:
            steps = f"an episode of task {program.spec.id} has {program.length} steps"
            raise ValueError(f"actions: {len(actions)} given; {steps}")
        state, log, crashes = program.reset(seed).state, [], 0
        for i, action in enumerate(actions):
            try:
                packed = program.pack_action(action)
            except ValueError as error:
                raise ValueError(f"actions[{i}]: {error}") from error
            outcome = program.step(state, packed)
            state = outcome.state
            knobs = {name: action[name] for name in program.kind.knobs}
            log.append(program.log_entry(knobs, outcome))
            crashes += outcome.info["oom"]
        return Replay(log, crashes / max(len(log), 1))

    def warm_up(self) -> list[int]:
        """Make every engine's task and compile the first one's reset and step. Tasks that need a search, on a
        table or a log of one's own, wait for their first reset.

        Returns:
            One task of each program that is still to be compiled, for ``ready``.
        """
        specs = [spec for spec in ig.task_specs().values() if not needs_search(spec, self.table, self.trace)]
        distinct: dict[Any, int] = {}
        for spec in specs:
            distinct.setdefault(self.program(spec.id).env, spec.id)
        first, *rest = distinct.values() or (None,)
        if first is not None:
            self._compile(first, None, 0)
        return rest

    def plan_all(self) -> None:
        """Make the reactive plans of all engines' tasks that need no search any more."""
        for spec in ig.task_specs().values():
            if self.is_found(spec.id):
                with contextlib.suppress(ValueError):  # there is none; whoever asks for it is told why
                    _ = self.program(spec.id).reactive_plan
