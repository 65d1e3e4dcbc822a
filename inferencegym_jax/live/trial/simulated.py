"""What the library's open-loop environment says of some traffic on a measured table: the simulator's own prediction.

The traffic is counted into seconds, as any request log is, and the compiled step serves it. ``replay`` is its
request-by-request counterpart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.episodes.rollout import Policy
from inferencegym_jax.live.loop.policy_runner import PolicyRunner
from inferencegym_jax.live.trial.traffic import Traffic
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.traffic.dispersion import Moments, arrival_scv
from inferencegym_jax.traffic.request_log import RequestLog


def request_log(traffic: Traffic) -> RequestLog:
    """The traffic as the simulator reads a log: requests, mean prompt and mean output of every second, and how the
    requests of a second differ."""
    seconds = max(int(np.ceil(traffic.seconds)), 1)
    second = np.minimum(traffic.time_s.astype(int), seconds - 1)
    counts = np.bincount(second, minlength=seconds)
    lengths = [np.asarray(values, np.float64) for values in (traffic.prompt, traffic.output)]
    sums = [np.bincount(second, weights=values, minlength=seconds) for values in lengths]
    means = [
        np.where(counts, total / np.maximum(counts, 1), values.mean()).astype(np.float32)
        for total, values in zip(sums, lengths, strict=True)
    ]
    moments = Moments()
    moments.add(*lengths)
    prompt_cv, output_cv, correlation = moments.within(counts.astype(np.float64), *sums)
    return RequestLog(
        counts.astype(np.int32),
        *means,
        len(traffic),
        prompt_cv=prompt_cv,
        output_cv=output_cv,
        length_correlation=correlation,
        arrival_scv=arrival_scv(traffic.time_s),
    )


def simulate_traffic(
    table: LatencyTable, traffic: Traffic, policy: Policy, *, warmup_s: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """Serve ``traffic`` by the compiled open-loop step, noise off.

    Returns:
        itl_ms, mean over tokens, and ttft_mean_ms, mean over requests, both after ``warmup_s``.
    """
    log = request_log(traffic)
    env, params = ig.make(table=table, trace=log)
    params = params.replace(noise_sigma=np.float32(0.0), episode_length=np.int32(log.seconds + 1))
    runner = PolicyRunner(policy, seed)
    observation, state = env.reset_seed(0, params)
    rows: list[tuple[float, ...]] = []
    for _ in range(log.seconds):
        observation, state, _, _, _, info = env.step(None, state, runner.ask(observation), params)
        metrics: Any = info["metrics"]
        row = (info["workload"].arrivals, info["ttft_mean_ms"], metrics.tokens_per_sec, metrics.tpot_ms)
        rows.append(tuple(float(x) for x in row))
    arrivals, ttft, tokens, tpot = np.array(rows[int(warmup_s) :]).T
    return {
        "itl_ms": float(np.average(tpot, weights=np.maximum(tokens, 1e-9))),
        "ttft_mean_ms": float(np.average(ttft, weights=np.maximum(arrivals, 1e-9))),
    }
