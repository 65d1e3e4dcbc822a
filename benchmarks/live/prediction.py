"""Open-loop prediction from the measured table against the engine, at shares of saturation: mean ITL, TTFT's mean and
percentiles, share on time."""

from __future__ import annotations

from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.live.scenarios.objectives import TASK as SCENARIO_TASK
from inferencegym_jax.live.scenarios.objectives import objectives
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.outcome import Objective
from inferencegym_jax.live.trial.profile_engine import saturation
from inferencegym_jax.live.trial.runs import TrialSettings, predict, run_policy
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.simulated import simulate_traffic
from inferencegym_jax.live.trial.traffic import poisson_traffic
from inferencegym_jax.models import ServeAction
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params

PERCENTILES = (50, 90, 99)


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


def predict_and_measure(
    endpoint: Endpoint,
    table: LatencyTable,
    *,
    shares: tuple[float, ...],
    prompts: tuple[int, ...],
    seconds: float,
    warmup_s: float,
    max_num_seqs: int,
    report: Any,
) -> dict[str, Any]:
    """One row a (prompt length, share of saturation), and the median errors (of the share on time in shares).

    On time is what keeps task 7's objectives, scaled to this engine's bare times.

    Poisson arrivals; no gate (batch_size 512), so that the engine's own scheduler is what is predicted.

    Raises:
        ValueError: the runs are too short for anything to be measured after their warm-up.
    """
    if not seconds >= 2.0 * warmup_s:
        raise ValueError(f"seconds = {seconds:g}: must be at least {2.0 * warmup_s:g}, twice the warm-up")
    _, params = ig.make(1, table=table)
    engine = make_params(get_task(SCENARIO_TASK), table, NOT_NORMALISED).engine
    policy = ig.policies.static(ServeAction(batch_size=512))
    output = int(table.output_length)
    settings = TrialSettings(max_num_seqs=max_num_seqs)
    rows = []
    for prompt in prompts:
        most = saturation(table, prompt, output)
        for share in shares:
            traffic = poisson_traffic(share * most, seconds, prompt, output, seed=int(100 * share) + prompt)
            report(f"prompts of {prompt} at {share:g} of saturation ({share * most:.2f} requests/s)")
            aims = objectives(table, engine, prompt, output)
            objective = Objective((aims.ttft_ms,) * 3, aims.tpot_ms)
            foretold = predict(table, traffic, policy, params, settings)
            with LiveEnv(endpoint, params, lambda _, traffic=traffic: traffic) as env:
                seen, _ = run_policy(env, policy, 0, traffic)
            row: dict[str, Any] = {"prompt": prompt, "share": share, "rate": share * most, "requests": len(seen)}
            row |= {"ttft_objective_ms": aims.ttft_ms, "tpot_objective_ms": aims.tpot_ms}
            sides = figures(seen, warmup_s, objective), figures(foretold, warmup_s, objective)
            for label, measured in sides[0].items():
                predicted = sides[1][label]
                row |= {f"{label}_measured": measured, f"{label}_predicted": predicted}
                row[f"{label}_error"] = predicted - measured if label == "on_time" else predicted / measured - 1.0
            simulated = simulate_traffic(table, traffic, policy, warmup_s=warmup_s)
            row["itl_simulated"], row["ttft_simulated"] = simulated["itl_ms"], simulated["ttft_mean_ms"]
            rows.append(row)
    simulator = {
        f"simulator_{label}_median_error": float(
            np.median([abs(row[f"{label}_simulated"] / row[f"{label}_measured"] - 1.0) for row in rows])
        )
        for label in ("itl", "ttft")
    }
    errors = {
        f"{label}_median_error": float(np.median([abs(row[f"{label}_error"]) for row in rows]))
        for label in ("itl", "ttft", *(f"ttft_p{p}" for p in PERCENTILES), "on_time")
    }
    return {**simulator, "rows": rows, **errors}


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
