"""The library's single step for every task and config that is asked for, compiled when told to.

``Programs.program(task, config) -> TaskProgram``; its ``reset(seed)`` and ``step(state, action)`` give ``Outcome``.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

import inferencegym_jax as ig
from inferencegym_jax.episodes.single_step import SingleStep
from inferencegym_jax.models import KNOBS
from inferencegym_jax.policies.reactive_control import ReactivePlan
from inferencegym_jax.policies.reactive_plans import plan_for
from inferencegym_jax.scoring.episode_log import log_entry
from inferencegym_jax.tasks import CONFIG_KEYS, check_config
from server.bad_input import BadInput
from server.memory import let_go
from server.settings import Settings

PARAMS_KEPT = 256  # (task, config) pairs whose params stay on the device


class TaskProgram(SingleStep):
    """The compiled reset and step of one task with one config."""

    def __init__(self, problem: ig.Problem):
        super().__init__(problem.env, problem.params)
        self.problem: ig.Problem = problem

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
        return plan_for(self.problem.table, self.problem.params)


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
        self._programs: OrderedDict[tuple[Any, ...], TaskProgram] = OrderedDict()
        self._lock = threading.Lock()

    def program(self, task: int | str, config: Mapping[str, Any] | None = None) -> TaskProgram:
        """The program of a task (id or name) and a config.

        Raises:
            BadInput: see ``inferencegym_jax.make``.
        """
        spec = ig.get_task(task)
        overrides = check_config(config)
        key = (spec.id, *(overrides.get(name) for name in CONFIG_KEYS))
        with self._lock:
            program = self._programs.get(key)
            if program is None:
                try:
                    problem = ig.problem(spec.id, table=self.table, trace=self.trace, config=overrides)
                except ValueError as error:  # an override that this task cannot have
                    raise BadInput(str(error)) from error
                program = self._programs[key] = TaskProgram(problem)
                while len(self._programs) > PARAMS_KEPT:
                    self._programs.popitem(last=False)
            else:
                self._programs.move_to_end(key)
            return program

    def replay(self, program: TaskProgram, seed: int, actions: Sequence[Mapping[str, Any]]) -> Replay:
        """The log that these actions give, bit for bit a session's.

        Raises:
            ValueError: more actions than the episode has seconds; the server's own latency table lacks a value of a
                knob, the action's index is named.
        """
        if len(actions) > program.spec.episode_length:
            steps = f"an episode of task {program.spec.id} has {program.spec.episode_length} steps"
            raise ValueError(f"actions: {len(actions)} given; {steps}")
        state, log, crashes = program.reset(seed).state, [], 0
        for i, action in enumerate(actions):
            try:
                packed = program.pack_action(action)
            except ValueError as error:
                raise ValueError(f"actions[{i}]: {error}") from error
            outcome = program.step(state, packed)
            state = outcome.state
            knobs, info = {name: action[name] for name in KNOBS}, outcome.info
            log.append(log_entry(program.spec, knobs, outcome.reward, info["metrics"], info.get("outcome", {})))
            crashes += info["oom"]
        return Replay(log, crashes / max(len(log), 1))

    def let_go(self) -> None:
        """Give back what compiling left, see ``memory``; but keep the small programs that another config needs, so that
        the request that brings it does not wait for them."""
        let_go()
        one_each = {spec.dynamics: spec for spec in ig.task_specs().values()}
        for spec in one_each.values():
            problem = ig.problem(
                spec.id, table=self.table, trace=self.trace, config={"alpha": 0.5, "slo_ttft_ms": 250.0}
            )
            TaskProgram(problem).reset(0)

    def warm_up(self) -> None:
        """Compile reset and step of every task, so that no request waits for a compiler."""
        programs = [self.program(spec.id) for spec in ig.task_specs().values()]
        distinct = {program.env: program for program in programs}.values()
        action = programs[0].pack_action(ig.ServeAction())
        with ThreadPoolExecutor() as pool:  # the compiler runs outside the interpreter's lock
            jobs = [pool.submit(program.reset, 0) for program in distinct]
            jobs += [pool.submit(program.step, bytes(program.state_bytes), action) for program in distinct]
            for job in jobs:
                job.result()
