"""The library's single step for every task and config that is asked for, compiled when told to.

``Programs.program(task, config) -> TaskProgram``; its ``reset(seed)`` and ``step(state, action)`` give ``Outcome``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import jax
import numpy as np
from anyio import CapacityLimiter, to_thread

import inferencegym_jax as ig
from inferencegym_jax.episodes.single_step import Outcome, SingleStep
from inferencegym_jax.fleet.grading import grade_fleet
from inferencegym_jax.fleet.making import draw_condition, is_anywhere
from inferencegym_jax.policies.reactive_control import ReactivePlan
from inferencegym_jax.policies.reactive_plans import plan_for
from inferencegym_jax.registry.problems import needs_search
from inferencegym_jax.scoring.episode_log import log_entry
from inferencegym_jax.tasks import CONFIG_KEYS, check_config
from server.bad_input import BadInput
from server.kinds import ENGINE, FLEET, kind_of, spec_of
from server.memory import let_go
from server.settings import Settings

PARAMS_KEPT = 256  # (task, config) pairs whose params stay on the device


class TaskProgram(SingleStep):
    """The compiled reset and step of one engine's task with one config."""

    kind = ENGINE

    def __init__(self, problem: ig.Problem):
        super().__init__(problem.env, problem.params)
        self.problem: ig.Problem = problem

    @property
    def length(self) -> int:
        """Steps of an episode."""
        return self.spec.episode_length

    def grade(self, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The grade of an episode log, see ``ig.grade``."""
        return ig.grade(self.spec.id, log, self.problem.normalisers)

    def log_entry(self, knobs: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """The entry of an episode log of a step."""
        info = outcome.info
        return log_entry(self.spec, knobs, outcome.reward, info["metrics"], info.get("outcome", {}))

    @property
    def spec(self) -> ig.TaskSpec:
        """The task."""
        return self.problem.spec

    @property
    def config(self) -> dict[str, float]:
        """The overrides of its weights and objective."""
        return self.problem.config

    @functools.cached_property
    def reactive_plan(self) -> ReactivePlan:
        """The reactive controller's plan for the task.

        Raises:
            ValueError: see ``reactive_for``.
        """
        plan = plan_for(self.problem.table, self.problem.params)
        let_go()  # of the programs that made it, 90 MB
        return plan


class FleetProgram(SingleStep):
    """The compiled reset and step of one fleet's task; of fleet-anywhere, of one seed's condition."""

    kind = FLEET
    config: ClassVar[dict[str, float]] = {}

    def __init__(self, spec: ig.FleetSpec, env: ig.FleetEnvironment, params: ig.FleetParams):
        super().__init__(env, cast(Any, params))
        self.fleet_params: ig.FleetParams = params
        self.spec: ig.FleetSpec = spec
        self.gpus: int = int(np.asarray(params.gpus))  # that the fleet has

    @property
    def length(self) -> int:
        """Decisions of an episode."""
        return self.spec.decisions

    def grade(self, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The grade of an episode log, see ``grade_fleet``."""
        return grade_fleet(log, self.fleet_params, self.spec.title)

    def log_entry(self, knobs: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """The entry of an episode log of a decision."""
        info = outcome.info
        parts = {name: info[name] for name in ("metrics", "outcome")}
        return {"action": knobs, "reward": outcome.reward, **parts}


AnyProgram = TaskProgram | FleetProgram


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


class Programs:
    """The programs of every task on one latency table and, where there is one, one request log; compiles when told to,
    keeps params of recent configs."""

    def __init__(self, table: str | Path | None = None, trace: str | Path | ig.RequestLog | None = None):
        # A step is shorter than a hop to jax's dispatch thread and back, and its seventy small operations gain nothing
        # from a pool of threads, which cost a third of the processor time. Takes effect if jax has not started yet.
        os.environ.setdefault("PJRT_NPROC", "1")
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.table = ig.load_table(table)
        self.trace = None if trace is None else ig.load_trace(trace)
        self._programs: OrderedDict[tuple[Any, ...], AnyProgram] = OrderedDict()
        self._lock = threading.Lock()
        self._compiled: set[Any] = set()  # environments whose reset and step are
        self._one_at_a_time, self._quick = CapacityLimiter(1), CapacityLimiter(1)

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
        if known is not None and known.env in self._compiled:
            return known
        return await to_thread.run_sync(self._compile, task, config, seed, limiter=self._one_at_a_time)

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
            return TaskProgram(ig.problem(spec.id, table=self.table, trace=self.trace, config=config))
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
