"""Which configuration should this engine run on this traffic?

``log + table -> all static actions and controllers (configuration_search) -> serving_quality -> Recommendation``

Which action is recommended, and why: ``choice.choose``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax import policies
from inferencegym_jax.episodes.policy import Policy
from inferencegym_jax.episodes.static_search import static_actions
from inferencegym_jax.models import KNOBS, EnvParams, ServeAction, check_action, shown
from inferencegym_jax.recommend.choice import choose, front
from inferencegym_jax.recommend.engine_flags import deployment, engine_flags
from inferencegym_jax.recommend.log_requests import TRACE_TASK, LoggedRequests, load_requests
from inferencegym_jax.recommend.quality import (
    Objective,
    Quality,
    between,
    check_objective,
    gain_intervals,
    tail_interval,
)
from inferencegym_jax.recommend.search import Replay, environment
from inferencegym_jax.table import LatencyTable, load_table, profile_of

SHORT_LOG_S = 60  # a log of less is suspected of another unit of time
OVERLOADED = 0.97  # share of the log's output tokens that an engine which keeps up has served by its end


@dataclass(frozen=True)
class Recommendation:
    """The answer.

    Attributes:
        knobs: of the recommended action.
        current: knobs of what runs now.
        objective: what counts as good.
        results: name -> measures, of "recommended", "current", "best" (by goodput alone) and of each controller.
        gains: "recommended" over current and each controller over the recommended: changes with intervals.
        meets_slo: whether the recommended action meets the objective.
        one_gpu: knobs and measures of the best on one GPU, where two are recommended.
        pareto: configurations that no other one beats in goodput, p99 TTFT and cost, by goodput.
        flags: engine -> commands.
        searched: static actions tried.
        traffic: about the log.
        notices: what a reader should know.
    """

    knobs: dict[str, Any]
    current: dict[str, Any]
    objective: Objective
    results: dict[str, dict[str, float]]
    gains: dict[str, dict[str, dict[str, float | None]]]
    meets_slo: bool
    one_gpu: dict[str, Any] | None
    pareto: list[dict[str, Any]]
    flags: dict[str, str]
    searched: int
    traffic: dict[str, Any]
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready numbers; the first keys are the recommended configuration's."""
        recommended = self.results["recommended"]
        return {
            "recommended": self.knobs,
            "goodput": recommended["goodput"],
            "ttft_p99_ms": recommended["ttft_p99_ms"],
            "cost_per_1k": recommended["cost_per_1k"],
            "meets_slo": self.meets_slo,
            "flags": self.flags,
            "current": self.current,
            "objective": dataclasses.asdict(self.objective),
            "results": self.results,
            "gains": self.gains,
            "one_gpu": self.one_gpu,
            "pareto": self.pareto,
            "searched": self.searched,
            "traffic": self.traffic,
            "notices": list(self.notices),
        }


def recommend(
    trace: str | Path,
    *,
    table: str | Path | LatencyTable | None = None,
    slo_ttft_ms: float = 300.0,
    slo_tpot_ms: float | None = None,
    attainment: float = 0.99,
    memory_gb: float | None = None,
    acceptance: float | None = None,
    current: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    controllers: Mapping[str, Policy] | None = None,
    unit: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recommendation:
    """Search all static actions of a table on a request log, and run controllers on it.

    Args:
        trace: request log (CSV or JSON lines: time, prompt tokens, output tokens).
        table: latency table; default the shipped one.
        slo_ttft_ms: objective on a request's time to first token.
        slo_tpot_ms: objective on a request's time per output token.
        attainment: share of requests that must be within them.
        memory_gb: what the engine may use; default: the memory of the table's GPU.
        acceptance: base acceptance rate of drafted tokens; default that of task 4.
        current: knobs of what runs now, the others at their defaults.
        fixed: knobs that may not change, with their values.
        controllers: name -> policy; default ``reactive`` and, where one ships, ``trained``.
        unit: of the log's times, where it cannot be told.
        progress: called with static actions done and in all.

    Raises:
        ValueError, TypeError: an argument out of range, or a knob that the table does not have; says what is allowed.
        FileNotFoundError, TraceError, TableError: the log or the table cannot be used.
    """
    objective = check_objective(slo_ttft_ms, slo_tpot_ms, attainment)
    loaded = load_table(table)
    memory = between("memory_gb", profile_of(loaded).memory_gb if memory_gb is None else memory_gb, 0.0, 1e6)
    requests = load_requests(trace, unit)
    env, params = environment(loaded, requests, memory, acceptance)
    now = _knobs(loaded, current, "current")
    fixed_knobs = {} if fixed is None else {name: _knobs(loaded, fixed, "fixed")[name] for name in fixed}
    actions = [
        action
        for action in static_actions(env, params)
        if all(action[name] == fixed_knobs[name] for name in fixed_knobs)
    ]
    if not actions:  # a value between the table's nodes: keep it, vary the rest
        actions = _unique([action | fixed_knobs for action in static_actions(env, params)])
    actions = _unique([now, *actions])
    policies_by_name = default_controllers(loaded, params) if controllers is None else dict(controllers)
    replay = Replay(env, params, requests, tuple(policies_by_name.values()), objective)
    quality, times = replay.run(actions, progress)
    return answer(loaded, requests, objective, memory, actions, list(policies_by_name), quality, times, fixed_knobs)


def _knobs(table: LatencyTable, given: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """All knobs: those given, the table's defaults for the rest."""
    values = dict(table.knob_defaults)
    for name, value in (given or {}).items():
        if name not in KNOBS:
            raise ValueError(f"{what}: unknown knob {shown(name)}; allowed are {', '.join(KNOBS)}")
        values[name] = value
    check_action(ServeAction(**values))
    for name, axis in table.axes.items():
        if name not in KNOBS:
            continue
        if KNOBS[name].kind in ("choice", "bool") or len(axis) == 1:
            if not any(math.isclose(float(values[name]), node) for node in axis):
                nodes = ", ".join(f"{node:g}" for node in axis)
                raise ValueError(f"{what}: {name} = {shown(values[name])}: this table has {nodes}")
    return values


def _unique(actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({tuple(action.values()): action for action in actions}.values())


def default_controllers(table: LatencyTable, params: EnvParams) -> dict[str, Policy]:
    """The reactive controller planned for the table and, where one ships for recorded traffic, the trained one."""
    controllers: dict[str, Policy] = {"reactive": policies.reactive_for(table, params)}
    try:
        from inferencegym_jax.policies.policy_file import trained

        controllers["trained"] = trained(TRACE_TASK)
    except (ImportError, FileNotFoundError):
        pass
    return controllers


MEASURES = tuple(
    "goodput attainment ttft_p50_ms ttft_p99_ms tpot_ms tokens_per_sec cost_per_1k memory_gb gpus out_of_memory".split()
)


def measures(quality: Quality, i: int) -> dict[str, float]:
    """The measures of one controller."""
    return {name: float(getattr(quality, name)[i]) for name in MEASURES}


def answer(
    table: LatencyTable,
    requests: LoggedRequests,
    objective: Objective,
    memory_gb: float,
    actions: list[dict[str, Any]],
    controllers: list[str],
    quality: Quality,
    times: Callable[[int], np.ndarray],
    fixed_knobs: Mapping[str, Any],
) -> Recommendation:
    """Put the answer together; ``actions[0]`` is what runs now, ``times`` gives the TTFTs of one of them.

    Raises:
        ValueError: the weights fit into the memory in no tier.
    """
    count = len(actions)
    profile = profile_of(table)
    base = np.asarray([float(profile.weights_gb[a["quant_tier"]]) + profile.runtime_gb for a in actions])
    statics = quality.take(np.arange(count))
    feasible = (base < memory_gb) & (statics.out_of_memory == 0)
    allowed = feasible & np.asarray(
        [all(action[name] == fixed_knobs[name] for name in fixed_knobs) for action in actions]
    )
    if not allowed.any():
        raise ValueError(
            f"memory_gb = {memory_gb:g}: weights and runtime alone need {base.min():.1f} GB; no configuration fits"
        )
    best = choose(actions, statics, allowed, objective)
    top = int(np.argmax(np.where(allowed, statics.goodput, -1.0)))
    results = {"recommended": measures(quality, best), "current": measures(quality, 0), "best": measures(quality, top)}
    cheaper = None
    if quality.gpus[best] > 1.0 and (single := allowed & (statics.gpus == 1.0)).any():
        i = choose(actions, statics, single, objective)
        cheaper = {"knobs": actions[i]} | measures(quality, i)
    ttft = functools.lru_cache(times)
    tail = tail_interval(ttft(best), requests)
    gains: dict[str, dict[str, dict[str, float | None]]] = {}
    pairs = {"recommended": (0, best)} | {name: (best, count + i) for i, name in enumerate(controllers)}
    for name, (a, b) in pairs.items():
        gains[name] = gain_intervals(quality.take([a]), quality.take([b]), requests.seconds)
        both = tail_interval(np.stack([ttft(a), ttft(b)], axis=-1), requests)
        low, high = (None, None) if both is None else both
        change = float(quality.ttft_p99_ms[b] - quality.ttft_p99_ms[a])
        gains[name]["ttft_p99_ms"] = {"change": change, "low": low, "high": high}
        results[name] = measures(quality, b)
    if tail is not None:
        results["recommended"] |= {"ttft_p99_low_ms": tail[0], "ttft_p99_high_ms": tail[1]}
    log = requests.log
    return Recommendation(
        knobs=actions[best],
        current=actions[0],
        objective=objective,
        results=results,
        gains=gains,
        meets_slo=bool(quality.attainment[best] >= objective.attainment),
        one_gpu=cheaper,
        pareto=[{"knobs": actions[i]} | measures(quality, i) for i in front(statics, allowed)],
        flags=engine_flags(deployment(actions[best], table)),
        searched=count,
        traffic={
            "name": log.name,
            "requests": log.requests,
            "seconds": log.seconds,
            "requests_per_sec": log.rate,
            "mean_prompt_tokens": log.mean_prompt,
            "mean_output_tokens": log.mean_output,
            "replayed_requests": requests.count,
            "replayed_seconds": requests.seconds,
        },
        notices=notices(table, requests, actions[best], feasible[0], results["recommended"]),
    )


def notices(
    table: LatencyTable,
    requests: LoggedRequests,
    knobs: Mapping[str, Any],
    current_fits: bool,
    reached: Mapping[str, float],
) -> tuple[str, ...]:
    """What a reader should know before acting on the answer; ``reached`` are the measures of the recommended action."""
    said = list(requests.log.notices)
    log = requests.log
    if log.seconds < SHORT_LOG_S:
        said.append(
            f"the log covers only {log.seconds} s ({log.rate:,.4g} requests/s): is the unit of its times right? (unit)"
        )
    wanted, served = float(requests.output.sum()) / requests.seconds, reached["tokens_per_sec"]
    if 0.0 < served < OVERLOADED * wanted:
        said.append(
            f"the log asks for {wanted:,.0f} output tokens/s, this configuration serves {served:,.0f}:"
            f" spread it over about {math.ceil(wanted / served)} such engines"
        )
    if requests.seconds < requests.log.seconds:
        said.append(
            f"the log is long: {len(requests.starts)} stretches of {requests.length} s were replayed,"
            f" {requests.seconds / requests.log.seconds:.0%} of it"
        )
    longest = table.axes["prompt_len_bucket"][-1]
    beyond = float((requests.prompt > longest).mean())
    if beyond > 0:
        said.append(f"{beyond:.2%} of the prompts are beyond the table's longest, {longest:g} tokens, and cost as that")
    if not current_fits:
        said.append("the current configuration does not fit into the memory")
    if knobs["quant_tier"] != 0:
        said.append(
            "a quantised model may answer differently: check its quality on your own prompts before deploying it"
        )
    if knobs["spec_length"]:
        said.append("speculation needs a draft head of the model; its acceptance on your prompts may differ")
    if knobs["prefill_disagg"]:
        said.append("prefill has a GPU and a server of its own: run each server's command in a shell of its own")
    return tuple(said)
