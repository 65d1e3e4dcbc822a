"""``drift``: long prompts with short answers, by turns with short prompts with long answers, on one engine.

``scenario, table -> Setting``; ``fixed pairs of (batch_size, kv_budget) -> switching policy``.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.live.scenarios.described import Drift
from inferencegym_jax.live.scenarios.objectives import RequestWork, held_to, objectives
from inferencegym_jax.live.scenarios.second_instance import Setting
from inferencegym_jax.live.trial.traffic import Traffic, joined, poisson_traffic
from inferencegym_jax.models import ServeAction, ServeObservation
from inferencegym_jax.registry import Problem
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params

LONG, SHORT = 0, 1


def drift(scenario: Drift, table: LatencyTable, seconds: int, kind: int | None = None) -> Setting:
    """The scenario on a measured table.

    Args:
        scenario: as it was written down.
        table: measured.
        seconds: length of a run.
        kind: ``LONG`` or ``SHORT`` alone, for the choice of its pair; default: by turns, long prompts first.

    Raises:
        TableError: the table says too little of an engine.
    """
    spec = get_task(scenario.task)
    params = make_params(spec, table, NOT_NORMALISED)
    longest, output = int(max(table.axes["prompt_len_bucket"])), float(table.output_length)
    lengths = [
        (max(round(one.prompt_share * longest), 1), max(round(one.output_share * output), 2))
        for one in (scenario.long, scenario.short)
    ]
    mean_prompt, mean_output = (float(np.mean(column)) for column in zip(*lengths, strict=True))
    objective = objectives(table, params.engine, mean_prompt, mean_output)
    params = held_to(params, objective, seconds)
    works = [RequestWork(table, params.engine, longest, float(out), objective.tpot_ms) for _, out in lengths]
    rates = [
        1000.0 * scenario.load / float(work.of(np.asarray(float(prompt))))
        for work, (prompt, _) in zip(works, lengths, strict=True)
    ]

    def traffic(seed: int) -> Traffic:
        parts: list[tuple[np.ndarray, ...]] = []
        for number, begin in enumerate(range(0, seconds, scenario.phase_s)):
            now = number % 2 if kind is None else kind
            prompt, out = lengths[now]
            length = min(scenario.phase_s, seconds - begin)
            one = poisson_traffic(rates[now], float(length), prompt, out, seed=(seed << 16) + number)
            parts.append((begin + one.time_s, one.prompt, one.output, one.klass))
        return joined(parts, float(seconds), np.ones(seconds, np.int64))

    def load(sent: Traffic) -> np.ndarray:
        long = sent.prompt > threshold(lengths)
        work = np.where(long, works[LONG].of(sent.prompt), works[SHORT].of(sent.prompt))
        return np.bincount(sent.time_s.astype(int), work, math.ceil(sent.seconds)) / 1000.0

    how = {
        "task": spec.name,
        "phase_s": scenario.phase_s,
        "kinds": [
            {"prompt": prompt, "output": out, "requests_per_s": rate}
            for (prompt, out), rate in zip(lengths, rates, strict=True)
        ],
        "ttft_objective_ms": objective.ttft_ms,
        "tpot_objective_ms": objective.tpot_ms,
        "switch_at_prompt": threshold(lengths),
    }
    problem = Problem(spec, Environment(table, params), params, dict(NOT_NORMALISED), spec.dynamics)
    return Setting(problem, traffic, objective, load, how)


def threshold(lengths: list[tuple[int, int]]) -> float:
    """The prompt length between the two kinds: their geometric mean."""
    return math.sqrt(lengths[LONG][0] * lengths[SHORT][0])


def switching(long: ServeAction, short: ServeAction, at: float) -> Policy:
    """One action while the mean prompt of the last second is above ``at`` tokens, another one while it is not."""
    return Partial(_switch, long.as_arrays(), short.as_arrays(), np.float32(at))


def _switch(
    long: ServeAction, short: ServeAction, at: Any, key: jax.Array, observation: ServeObservation, carry: Any = None
) -> ServeAction:
    del key, carry
    return jax.tree.map(lambda a, b: jnp.where(observation.mean_prompt_len > at, a, b), long, short)
