"""A whole trial from what a user names: table, traffic, policies, objective; and the engine's best static action.

The task's calendar is scaled to the engine: rates are multiplied so that their mean over the calendar (of a task whose
traffic is a day: over the windows that are sent) is ``load`` times what the measured table can finish. Bursts and lulls
keep their proportions.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax import registry
from inferencegym_jax.live.capacity.knob import check_leases
from inferencegym_jax.live.capacity.settings import SpareSettings, check_apart
from inferencegym_jax.live.measure.beside import BESIDE_S, check_beside, load_of
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import measure_spare
from inferencegym_jax.live.trial.outcome import Objective, measures
from inferencegym_jax.live.trial.profile_engine import saturation
from inferencegym_jax.live.trial.request_log import read_log
from inferencegym_jax.live.trial.runs import TrialSettings, predict, results, run_trial
from inferencegym_jax.live.trial.traffic import Traffic, mean_rate, scaled_params, task_traffic
from inferencegym_jax.models import KNOBS, EnvParams, ServeAction
from inferencegym_jax.policies.builtin import static
from inferencegym_jax.policies.names import policy_of
from inferencegym_jax.registry import Problem
from inferencegym_jax.table.latency_table import LatencyTable, load_table
from inferencegym_jax.traffic.log_rows import ReadOptions


@dataclass(frozen=True)
class TrialRequest:
    """What a user asks of a trial; the fields are the command line's options.

    ``class_shares`` are those of interactive, batch and best-effort requests; None: the task's. ``reading`` says how to
    read ``trace`` where it does not say so itself. ``spare`` is the engine that the policies' second GPU asks for;
    ``beside_s`` the seconds of each slice in which what the two engines cost each other is measured, 0 if they share
    nothing.
    """

    endpoint: Endpoint
    policies: list[str]
    table: Path
    trace: Path | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
    task: int | str = 2
    load: float = 0.8
    rate_scale: float = 1.0
    prompt_scale: float = 1.0
    seconds: int = 60
    slo_ttft_ms: tuple[float, float, float] | None = None
    slo_itl_ms: float = math.inf
    class_shares: tuple[float, float, float] | None = None
    settings: TrialSettings = field(default_factory=TrialSettings)
    spare: SpareSettings | None = None
    beside_s: float = BESIDE_S

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("policies: none given; name at least one")
        if len(set(self.policies)) < len(self.policies):
            raise ValueError(f"policies = {','.join(self.policies)}: a name is there twice")
        if not 0 < self.load <= 10:
            raise ValueError(f"load = {self.load}: must be above 0 and at most 10")
        if self.class_shares is not None and not (
            min(self.class_shares) >= 0 and math.isclose(sum(self.class_shares), 1.0, abs_tol=1e-6)
        ):
            raise ValueError(f"class shares = {self.class_shares}: must be three shares of at least 0 that add up to 1")
        if self.spare is not None:
            check_apart(self.endpoint.base_url, self.spare.url)
        check_beside(self.beside_s)
        if self.seconds <= self.settings.warmup_s:
            raise ValueError(f"seconds = {self.seconds}: must be more than the warm-up of {self.settings.warmup_s:g}")


def compare(request: TrialRequest, report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run the trial.

    Returns:
        ``trial.results`` and how it was run: {"measured", "predicted", "score", "order", "instance_seconds",
        "requests", "how"}.

    Raises:
        ValueError, TableError, FileNotFoundError: naming what cannot be used.
        EngineError: the server cannot be used.
    """
    table = load_table(request.table)
    report("finding normalisers on the measured table")
    problem, traffic, how = scenario(request, table)
    settings = request.settings
    if request.spare is not None:
        check_leases(problem)
        report("starting and stopping the spare once, for its times and for what the two engines cost each other")
        load = load_of(table, request.beside_s) if request.beside_s else None
        times = asyncio.run(measure_spare(request.spare, request.endpoint, load))
        settings = dataclasses.replace(settings, spare=times)
        engine = problem.params.engine.replace(start_s=np.float32(times.start_s), lease_s=np.float32(times.lease_s))
        problem = dataclasses.replace(problem, params=problem.params.replace(engine=engine))
        how["spare"] = dataclasses.asdict(times)
    slo = request.slo_ttft_ms or tuple(float(x) for x in np.asarray(problem.params.slo_ms))
    params = problem.params.replace(slo_ms=np.asarray(slo, np.float32))
    problem = dataclasses.replace(problem, params=params)
    objective = Objective(slo, request.slo_itl_ms)
    if "best_static" in request.policies:
        report("searching the best static action on the measured table")
        size = best_batch_size(table, traffic(settings.seed + 1000), params, objective, settings)
        how["best_static"] = f"batch_size={size}"
        problem = dataclasses.replace(problem, own_best_static=ServeAction(batch_size=size))
    policies = {name: policy_of(name, problem, any_task=True) for name in request.policies}
    trial = run_trial(request.endpoint, policies, problem, traffic, settings, report, request.spare)
    trial_results = results(trial, float(request.seconds), settings, objective, request.policies[0])
    how |= {"slo_ttft_ms": [x if math.isfinite(x) else None for x in slo], "seconds": request.seconds}
    how |= {"repeats": request.settings.repeats, "warmup_s": request.settings.warmup_s}
    return {**trial_results, "how": how}


def scenario(request: TrialRequest, table: LatencyTable) -> tuple[Problem, Callable[[int], Traffic], dict[str, Any]]:
    """The task on this table, its params scaled to the engine; the traffic of a seed; and how it was scaled."""
    # an engine batches continuously, whatever loop the task has: so do its normalisers and policies here
    problem, output = registry.problem(request.task, table=table, dynamics="open_loop"), int(table.output_length)
    longest = int(max(table.axes["prompt_len_bucket"]))
    if request.trace is not None:
        traffic = read_log(request.trace, request.rate_scale, longest, request.seconds, request.reading)
        how = {"trace": str(request.trace), "rate_scale": request.rate_scale, "requests": len(traffic)}
        return problem, lambda _: traffic, how

    params = problem.params
    if request.class_shares is not None:
        params = params.replace(class_shares=np.asarray(request.class_shares, np.float32))
    shaped = scaled_params(params, 1.0, request.prompt_scale, longest)
    seeds = [request.settings.seed + repeat for repeat in range(request.settings.repeats)]

    def sent(params: EnvParams, seed: int) -> Traffic:
        return task_traffic(params, seed, request.seconds, output, longest)

    prompts = np.concatenate([sent(shaped, seed).prompt for seed in seeds])
    most = saturation(table, float(prompts.mean()), output)
    scaled = scaled_params(shaped, request.load * most / mean_rate(shaped, seeds, request.seconds))
    how = {
        "task": request.task,
        "saturation_requests_per_s": most,
        "rate": float(scaled.rate),
        "burst_rate": float(scaled.burst_rate),
        "mean_prompt": float(prompts.mean()),
        "output_tokens": output,
        "class_shares": [float(x) for x in np.asarray(scaled.class_shares)],
        "load": request.load,
    }
    problem = dataclasses.replace(problem, params=scaled)
    return problem, lambda seed: sent(scaled, seed), how


def best_batch_size(
    table: LatencyTable, traffic: Traffic, params: EnvParams, objective: Objective, settings: TrialSettings
) -> int:
    """The fixed batch_size with the highest predicted goodput on other traffic of the same kind; the smallest of
    equals."""
    high = int(min(KNOBS["batch_size"].high, 2 * max(table.axes["batch_size"])))
    sizes = sorted({int(round(x)) for x in np.geomspace(1, high, 16)})
    goodput = {}
    for size in sizes:
        records = predict(table, traffic, static(ServeAction(batch_size=size)), params, settings)
        goodput[size] = measures(records, traffic.seconds, objective)["goodput"]
    return max(sizes, key=lambda size: (round(goodput[size], 6), -size))
