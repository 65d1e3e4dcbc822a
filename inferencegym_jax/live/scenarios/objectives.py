"""Objectives for another engine: as far from its bare times as task 7's are from those of its own GPU.

``table, params, prompt, output -> bare times``; ``table, ... -> objectives``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from inferencegym_jax.models import EngineParams, EnvParams
from inferencegym_jax.physics.capacity import work_within
from inferencegym_jax.physics.open_loop import iterations_of
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params

TASK = "second-gpu"  # whose objectives are carried over
PROMPT_NODES = 24  # prompt lengths at which a request's work is tabulated


@dataclass(frozen=True)
class Bare:
    """A lone request on an idle engine, ms: first token, and time per output token."""

    ttft_ms: float
    tpot_ms: float


def bare_times(table: LatencyTable, engine: EngineParams, prompt: float, output: float) -> Bare:
    """Of a request of ``prompt`` and ``output`` tokens.

    Raises:
        TableError: the table says too little of an engine.
    """
    lengths = (np.asarray([x], np.float32) for x in (prompt, output, np.inf))
    work = work_within(iterations_of(table), engine, *lengths)
    return Bare(float(work.bare_prompt_ms[0]), float(work.bare_tpot_ms[0]))


@functools.cache
def margins() -> tuple[float, float]:
    """Task 7's objectives over the bare times of its mean request on the shipped table: (TTFT, TPOT)."""
    table = load_table()
    params = make_params(get_task(TASK), table, NOT_NORMALISED)
    engine = params.engine
    bare = bare_times(table, engine, float(engine.prompt_mean), float(engine.output_mean))
    ttft, tpot = float(np.asarray(params.slo_ms)[0]), float(np.asarray(engine.slo_tpot_ms)[0])
    return ttft / bare.ttft_ms, tpot / bare.tpot_ms


def objectives(table: LatencyTable, engine: EngineParams, prompt: float, output: float) -> Bare:
    """(TTFT, TPOT) objectives in ms for an engine whose mean request is ``prompt`` and ``output`` tokens."""
    bare, (ttft, tpot) = bare_times(table, engine, prompt, output), margins()
    return Bare(ttft * bare.ttft_ms, tpot * bare.tpot_ms)


def held_to(params: EnvParams, objective: Bare, seconds: int) -> EnvParams:
    """A task's params with one objective for all classes and room for a run of ``seconds``, which is not cut."""
    return params.replace(
        engine=params.engine.replace(slo_tpot_ms=np.full(3, objective.tpot_ms, np.float32)),
        slo_ms=np.full(3, objective.ttft_ms, np.float32),
        episode_length=np.int32(seconds + 1),
    )


class RequestWork:
    """What requests take of one saturated engine, ms, by their prompt; outputs of one length.

    Args:
        table: of the engine.
        engine: its params.
        longest: prompt, tokens.
        output: tokens.
        tpot_ms: objective that the engine keeps on average meanwhile (``physics.capacity.work_within``); none by
            default.
    """

    def __init__(
        self, table: LatencyTable, engine: EngineParams, longest: float, output: float, tpot_ms: float = math.inf
    ):
        self._prompts = np.linspace(1.0, longest, PROMPT_NODES)
        prompts, outputs = self._prompts.astype(np.float32), np.full(PROMPT_NODES, output, np.float32)
        held = np.full(PROMPT_NODES, tpot_ms, np.float32)
        work = work_within(iterations_of(table), engine, prompts, outputs, held)
        self._ms = np.asarray(work.ms, np.float64)

    def of(self, prompt: np.ndarray) -> np.ndarray:
        """float64[...] ms for prompts of float64[...] tokens."""
        return np.interp(prompt, self._prompts, self._ms)
