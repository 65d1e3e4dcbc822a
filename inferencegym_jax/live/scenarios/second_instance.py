"""``second-instance``: a stretch of a day's traffic for an engine, and one more that a policy may lease.

``scenario, table, times of the spare -> Setting``: the task's params on this engine, and the traffic of a day.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.live.scenarios.described import SecondInstance
from inferencegym_jax.live.scenarios.objectives import Bare, RequestWork, held_to, objectives
from inferencegym_jax.live.trial.foretold import SpareTimes
from inferencegym_jax.live.trial.traffic import Traffic, day_mix, scaled_params, task_traffic
from inferencegym_jax.models import EnvParams
from inferencegym_jax.registry import Problem
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params
from inferencegym_jax.tasks.pools import DAY_SECONDS

INSTANCES = 2
OUTPUT_CV = 1.0 / math.sqrt(12.0)  # outputs are uniform from half to one and a half of their mean


@dataclass(frozen=True)
class Setting:
    """A scenario on one engine.

    Attributes:
        problem: the task on the engine's table, with the scenario's objectives.
        traffic: of a seed.
        objective: TTFT and TPOT, ms.
        load: of traffic: work that arrives in each of its seconds, as a share of what one instance can serve.
        how: what was scaled and chosen, JSON-ready.
    """

    problem: Problem
    traffic: Callable[[int], Traffic]
    objective: Bare
    load: Callable[[Traffic], np.ndarray]
    how: dict[str, Any]


@dataclass(frozen=True)
class Day:
    """A day of the pool: by what its rates are multiplied, and the second at which the stretch begins."""

    rate_scale: float
    first: int


def second_instance(
    scenario: SecondInstance, table: LatencyTable, times: SpareTimes, seconds: int, seeds: Sequence[int]
) -> Setting:
    """The scenario on a measured table.

    Args:
        scenario: as it was written down.
        table: measured.
        times: that the second instance takes.
        seconds: length of a run.
        seeds: of the repeats, for ``how``.

    Raises:
        ValueError: a run longer than a day.
        TableError: the table says too little of an engine.
    """
    params, longest, output = _on_engine(scenario, table, times)
    day_s = round(DAY_SECONDS / float(params.engine.day.clock))
    if not 1 <= seconds <= day_s:
        raise ValueError(f"seconds = {seconds}: must be from 1 to {day_s}, a day of the scenario")
    prompt = float(params.engine.prompt_mean)
    objective = objectives(table, params.engine, prompt, output)
    params = held_to(params, objective, seconds)
    work = RequestWork(table, params.engine, longest, output, objective.tpot_ms)
    of_two = INSTANCES / times.slowdown  # of one instance that has the host for itself

    def day(seed: int) -> Day:
        rate, mean, cv, _ = day_mix(params, seed, day_s)
        load = rate * work.of(cut_mean(mean, cv, longest)) / 1000.0
        return stretch(load, scenario.peak * of_two, scenario.peak_s, seconds)

    def traffic(seed: int) -> Traffic:
        day_stretch = day(seed)
        scaled = scaled_params(params, day_stretch.rate_scale)
        return task_traffic(scaled, seed, seconds, output, longest, day_stretch.first)

    def load(sent: Traffic) -> np.ndarray:
        return np.bincount(sent.time_s.astype(int), work.of(sent.prompt), math.ceil(sent.seconds)) / 1000.0

    days = [day(seed) for seed in seeds]
    spec = get_task(scenario.task)
    problem = Problem(spec, Environment(table, params), params, dict(NOT_NORMALISED), spec.dynamics)
    how = {
        "task": spec.name,
        "longest_prompt": longest,
        "mean_prompt": prompt,
        "output_tokens": output,
        "requests_per_s_of_one": 1000.0 / float(work.of(np.asarray(prompt))),
        "peak_of_one": scenario.peak * of_two,
        "ttft_objective_ms": objective.ttft_ms,
        "tpot_objective_ms": objective.tpot_ms,
        "stretches": [{"day": seed, **dataclasses.asdict(one)} for seed, one in zip(seeds, days, strict=True)],
        "spare": dataclasses.asdict(times),
    }
    return Setting(problem, traffic, objective, load, how)


def _on_engine(scenario: SecondInstance, table: LatencyTable, times: SpareTimes) -> tuple[EnvParams, int, int]:
    """The task's params with this engine's lengths and the spare's times; longest prompt and mean output, tokens."""
    params = make_params(get_task(scenario.task), table, NOT_NORMALISED)
    longest, output = int(max(table.axes["prompt_len_bucket"])), int(table.output_length)
    prompts = scenario.mean_prompt_share * longest / float(params.engine.prompt_mean)
    params = scaled_params(params, 1.0, prompts, longest)
    engine, day = params.engine, params.engine.day
    mean, cv = float(engine.prompt_mean), float(engine.prompt_cv)
    same = {"output_mean": float(output), "output_cv": OUTPUT_CV, "correlation": 0.0, "prefix_share": 0.0}
    day = day.replace(gaps_scv=np.ones_like(day.gaps_scv), **{k: np.full_like(day.rate, x) for k, x in same.items()})
    engine = engine.replace(
        day=day,
        prompt_mean=np.float32(cut_mean(np.asarray(mean), np.asarray(cv), longest)),
        output_mean=np.float32(output),
        output_cv=np.float32(OUTPUT_CV),
        length_correlation=np.float32(0.0),
        arrival_scv=np.float32(1.0),
        prefix_share=np.float32(0.0),
        start_s=np.float32(times.start_s),
        lease_s=np.float32(times.lease_s),
    )
    return params.replace(engine=engine), longest, output


def stretch(load: np.ndarray, peak: float, peak_s: int, seconds: int) -> Day:
    """The stretch of a day that holds its busiest ``peak_s`` seconds and whose mean load is nearest to the day's.

    Args:
        load: float64[seconds of the day], as it is expected before it is scaled.
        peak: load that the busiest seconds are to have.
        peak_s: how many of them.
        seconds: length of the stretch.
    """
    total = np.concatenate([[0.0], np.cumsum(load)])
    means = (total[peak_s:] - total[:-peak_s]) / peak_s
    busiest = int(np.argmax(means))
    last = len(load) - seconds
    low, high = max(busiest + peak_s - seconds, 0), min(busiest, last)
    starts = range(low, high + 1) if low <= high else [min(busiest, last)]  # a run shorter than the busiest seconds
    first = min(starts, key=lambda start: abs(float(load[start : start + seconds].mean() - load.mean())))
    return Day(float(peak / means[busiest]), first)


def cut_mean(mean: np.ndarray, cv: np.ndarray, longest: float) -> np.ndarray:
    """Mean of lognormal lengths of that mean and coefficient of variation, cut at ``longest``; float64[...]."""
    sigma = np.sqrt(np.log1p(np.square(np.maximum(cv, 1e-6))))
    mu = np.log(np.maximum(mean, 1.0)) - sigma**2 / 2
    edge = (math.log(longest) - mu) / sigma
    return mean * _normal(edge - sigma) + longest * (1.0 - _normal(edge))


def _normal(x: np.ndarray) -> np.ndarray:
    """The standard normal distribution function."""
    return 0.5 * (1.0 + np.vectorize(math.erf)(np.asarray(x) / math.sqrt(2.0)))
