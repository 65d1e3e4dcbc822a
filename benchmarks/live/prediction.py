"""Predictions of the runs that were sent to the engine, from the table that was measured on it and from another one:
mean ITL, TTFT's mean and percentiles, share on time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import inferencegym_jax as ig
from benchmarks.live.sent import OPEN_GATE, Sent
from inferencegym_jax.cli.scenario_report import POINTS
from inferencegym_jax.live.scenarios.objectives import TASK as SCENARIO_TASK
from inferencegym_jax.live.scenarios.objectives import objectives
from inferencegym_jax.live.trial.engine_speed import slowed, speed_of
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.profile_engine import engine_times
from inferencegym_jax.live.trial.runs import TrialSettings, predict
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.simulated import simulate_traffic
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params

PERCENTILES = (50, 90, 99)
LABELS = ("itl", "ttft", *(f"ttft_p{p}" for p in PERCENTILES), "on_time")
TARGETS = {
    "itl_median_error": 0.06,
    "ttft_median_error": 0.05,
    "ttft_p99_median_error": 0.30,
    "on_time_median_error": POINTS,
}
TITLES = {
    "itl_median_error": "mean ITL, replay against engine",
    "ttft_median_error": "mean TTFT, replay against engine",
    "ttft_p99_median_error": "p99 TTFT, replay against engine",
    "on_time_median_error": "share on time, replay against engine",
    "simulator_itl_median_error": "mean ITL, compiled step against engine",
    "simulator_ttft_median_error": "mean TTFT, compiled step against engine",
}


def figures(records: list[Record], warmup_s: float, objective: Objective) -> dict[str, float]:
    """Of the requests after the warm-up: mean ITL and mean TTFT of the completed ones and percentiles of their TTFT,
    ms; share on time of all of them."""
    kept = [record for record in records if record.arrival_s >= warmup_s]
    done = [record for record in kept if record.outcome == "completed"]
    ttft = [record.ttft_ms for record in done if record.ttft_ms is not None]
    itl = [record.tpot_ms for record in done if record.tpot_ms is not None]
    found = {"itl": float(np.mean(itl)), "ttft": float(np.mean(ttft))}
    found |= {f"ttft_p{p}": float(np.percentile(ttft, p)) for p in PERCENTILES}
    return found | {"on_time": sum(map(objective.met, kept)) / len(kept)}


def judge(
    table: LatencyTable,
    runs: Sequence[Sent],
    *,
    warmup_s: float,
    report: Callable[[str], None],
    against: LatencyTable | None = None,
) -> dict[str, Any]:
    """What a table foretells of each run beside what was measured, by the replay and by the compiled step.

    On time is what keeps task 7's objectives, scaled to the bare times of the measured engine. Of a run whose
    tokens tell the engine's speed, the measured table foretells the same at that speed too: ``LABEL_then``.

    Args:
        table: measured on the engine that the runs were sent to.
        runs: sent.
        warmup_s: seconds of each run that are not counted.
        report: told what is predicted.
        against: another table of such an engine, made of published kernels, say; it predicts the same runs, nothing of
            it is fitted on them, and they are held to the same objectives.

    Returns:
        rows (one a run: measured, predicted, error, simulated), median errors over the rows (of the share on time in
        shares), those at the engine's speed of the moment as ``then``; against: the same of the other table, and
        ``iterations``, the two tables' cells side by side.

    Raises:
        ValueError: the runs are too short for anything to be measured after their warm-up.
        TableError: a table says too little of an engine; the message names what to add.
    """
    for run in runs:
        if not run.seconds >= 2.0 * warmup_s:
            raise ValueError(f"seconds = {run.seconds:g}: must be at least {2.0 * warmup_s:g}, twice the warm-up")
    engine = make_params(get_task(SCENARIO_TASK), table, NOT_NORMALISED).engine
    output = int(table.output_length)
    aims = {run.prompt: objectives(table, engine, run.prompt, output) for run in runs}
    held = {prompt: Objective((aim.ttft_ms,) * 3, aim.tpot_ms) for prompt, aim in aims.items()}
    measured = [figures(run.records, warmup_s, held[run.prompt]) for run in runs]

    def side(source: LatencyTable) -> dict[str, Any]:
        _, params = ig.make(1, table=source)
        policy = ig.policies.static(OPEN_GATE)
        rows: list[dict[str, Any]] = []
        for run, seen in zip(runs, measured, strict=True):
            report(f"predicting prompts of {run.prompt} at {run.share:g} of saturation from {source.name}")
            settings = TrialSettings(max_num_seqs=run.max_num_seqs)
            foretold = figures(predict(source, run.traffic, policy, params, settings), warmup_s, held[run.prompt])
            row: dict[str, Any] = {"prompt": run.prompt, "share": run.share, "rate": run.rate}
            row |= {"requests": len(run.records), "failed": sum(r.outcome == "failed" for r in run.records)}
            row |= {"ttft_objective_ms": aims[run.prompt].ttft_ms, "tpot_objective_ms": aims[run.prompt].tpot_ms}
            for label in LABELS:
                row |= {f"{label}_measured": seen[label], f"{label}_predicted": foretold[label]}
                row[f"{label}_error"] = foretold[label] - seen[label]
                if label != "on_time":
                    row[f"{label}_error"] /= seen[label]
            simulated = simulate_traffic(source, run.traffic, policy, warmup_s=warmup_s)
            row |= {"itl_simulated": simulated["itl_ms"], "ttft_simulated": simulated["ttft_mean_ms"]}
            if source is table and (speed := speed_of([run.records], source)) is not None:
                slower = slowed(source, speed)
                then = figures(predict(slower, run.traffic, policy, params, settings), warmup_s, held[run.prompt])
                simulated = simulate_traffic(slower, run.traffic, policy, warmup_s=warmup_s)
                then |= {"itl_simulated": simulated["itl_ms"], "ttft_simulated": simulated["ttft_mean_ms"]}
                row |= {"speed": dataclasses.asdict(speed)} | {f"{label}_then": x for label, x in then.items()}
            rows.append(row)
        errors: dict[str, Any] = median_errors(rows)
        if all("speed" in row for row in rows):
            errors["then"] = median_errors([at_the_speed_of_then(row) for row in rows])
        return {"rows": rows, **errors}

    found = side(table)
    if against is not None:
        found["against"] = {"table": against.name, "source": against.metadata.get("source", ""), **side(against)}
        found["against"]["iterations"] = iterations(table, against)
    return found


def at_the_speed_of_then(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose predictions are those at the engine's speed in the run."""
    result = dict(row)
    for label in LABELS:
        measured, then = row[f"{label}_measured"], row[f"{label}_then"]
        result |= {f"{label}_predicted": then, f"{label}_error": then - measured}
        if label != "on_time":
            result[f"{label}_error"] /= measured
    return result | {f"{label}_simulated": row[f"{label}_simulated_then"] for label in ("itl", "ttft")}


def median_errors(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over rows of the errors' sizes: of the replay, and of the compiled step (``simulator_``)."""
    errors = {
        f"{label}_median_error": float(np.median([abs(row[f"{label}_error"]) for row in rows])) for label in LABELS
    }
    for label in ("itl", "ttft"):
        off = [abs(row[f"{label}_simulated"] / row[f"{label}_measured"] - 1.0) for row in rows]
        errors[f"simulator_{label}_median_error"] = float(np.median(off))
    return errors


def target_of(error: str) -> float:
    """What a median error is to be at most, by its name; the compiled step's is the replay's."""
    return TARGETS[error.removeprefix("simulator_")]


def iterations(table: LatencyTable, against: LatencyTable) -> list[dict[str, float]]:
    """At every batch size and prompt length that was measured, ms of a decode iteration and what a lone prompt adds, by
    either table; requests are half through their outputs."""
    sides = {"measured": engine_times(table), "against": engine_times(against)}
    rows = []
    for prompt in map(int, table.axes["prompt_len_bucket"]):
        context = prompt + 0.5 * table.output_length
        for n in map(int, table.axes["batch_size"]):
            row = {"running": float(n), "prompt": float(prompt)}
            for name, times in sides.items():
                row |= {f"decode_ms_{name}": times.decode_ms(n, context), f"prompt_ms_{name}": times.prompt_ms(prompt)}
            rows.append(row)
    return rows


def table_difference(first: LatencyTable, second: LatencyTable) -> dict[str, float]:
    """Median difference, cell by cell, of two measurements of one engine, at the batch sizes and prompts that both
    have."""
    shared = [sorted(set(first.axes[key]) & set(second.axes[key])) for key in ("batch_size", "prompt_len_bucket")]

    def values(table: LatencyTable, metric: int) -> np.ndarray:
        rows = [table.axes["batch_size"].index(x) for x in shared[0]]
        columns = [table.axes["prompt_len_bucket"].index(x) for x in shared[1]]
        return table.values[0, 0, 0, :, 0, :, metric][np.ix_(rows, columns)]

    result: dict[str, float] = {"cells": float(len(shared[0]) * len(shared[1]))}
    for name, metric in (("ttft_p50", 0), ("tpot", 2)):
        result[name] = float(np.median(np.abs(values(second, metric) / values(first, metric) - 1.0)))
    return result
