"""What a run of requests came to: goodput, TTFT, ITL, violations, with intervals, and differences between policies.

A segment is a few seconds of one repeat. All policies meet the same requests in it, so differences are paired by
segment, and the bootstrap draws segments, not requests: requests of the same second are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.numerics import bootstrap

SEGMENT_S = 5.0
RESAMPLES = 200  # of every measure: each goes through all requests
MEASURES = ("goodput", "ttft_mean_ms", "ttft_p50_ms", "ttft_p99_ms", "itl_ms", "violation_share", "tokens_per_sec")


@dataclass(frozen=True)
class Objective:
    """When a request is served well: its first token within its class's SLO and, if set, its mean ITL within
    another."""

    ttft_ms: tuple[float, ...]
    itl_ms: float = float("inf")

    def met(self, record: Record) -> bool:
        """Whether a request was completed within the objective."""
        if record.outcome != "completed" or record.ttft_ms is None:
            return False
        return record.ttft_ms <= self.ttft_ms[record.klass] and (record.tpot_ms or 0.0) <= self.itl_ms


def segments(records: Sequence[Record], warmup_s: float, seconds: float) -> list[list[Record]]:
    """Requests by arrival, in segments of ``SEGMENT_S``, without the warm-up's."""
    count = max(int(np.ceil((seconds - warmup_s) / SEGMENT_S)), 1)
    result: list[list[Record]] = [[] for _ in range(count)]
    for record in records:
        if record.arrival_s >= warmup_s:
            result[min(int((record.arrival_s - warmup_s) / SEGMENT_S), count - 1)].append(record)
    return result


def measures(records: Sequence[Record], seconds: float, objective: Objective) -> dict[str, float]:
    """The measures of a set of requests that arrived within ``seconds``; NaN where none tells."""
    ttft = [record.ttft_ms for record in records if record.ttft_ms is not None]
    itl = [record.tpot_ms for record in records if record.tpot_ms is not None]
    good = sum(objective.met(record) for record in records)
    p50, p99 = np.percentile(ttft, (50, 99)) if ttft else (np.nan, np.nan)
    return {
        "goodput": good / seconds,
        "ttft_mean_ms": float(np.mean(ttft)) if ttft else np.nan,
        "ttft_p50_ms": float(p50),
        "ttft_p99_ms": float(p99),
        "itl_ms": float(np.mean(itl)) if itl else np.nan,
        "violation_share": 1.0 - good / len(records) if records else np.nan,
        "tokens_per_sec": sum(record.tokens for record in records) / seconds,
    }


def summarise(
    runs: dict[str, list[list[Record]]], warmup_s: float, seconds: float, objective: Objective, reference: str
) -> dict[str, dict[str, Any]]:
    """Mean and 95 % interval of every measure by policy, and of the goodput's difference to a reference policy.

    Args:
        runs: policy -> repeats -> records; repeat i of every policy met the same traffic.
        warmup_s: of each repeat, left out.
        seconds: length of a repeat.
        objective: what counts as good.
        reference: policy that differences are taken to.

    Returns:
        policy -> measure -> {"mean", "low", "high"}, and "goodput_gain" the same way.
    """
    parts = {
        name: [part for records in repeats for part in segments(records, warmup_s, seconds)]
        for name, repeats in runs.items()
    }
    count = min(map(len, parts.values()))
    length = (seconds - warmup_s) / max(np.ceil((seconds - warmup_s) / SEGMENT_S), 1.0)
    good = {
        name: np.array([sum(objective.met(record) for record in part) / length for part in pieces[:count]])
        for name, pieces in parts.items()
    }
    result: dict[str, dict[str, Any]] = {}
    counts = bootstrap.draw_counts(count, RESAMPLES)
    for name, pieces in parts.items():
        everything = measures([record for part in pieces for record in part], length * len(pieces), objective)
        samples = [
            measures(
                [record for i in np.repeat(np.arange(count), drawn) for record in pieces[i]], length * count, objective
            )
            for drawn in counts
        ]
        result[name] = {}
        for key, value in everything.items():
            low, high = bootstrap.percentiles([sample[key] for sample in samples])
            result[name][key] = {"mean": value, "low": low, "high": high}
        result[name]["goodput_gain"] = bootstrap.mean_interval(good[name] - good[reference])
    return result


def ranking(values: dict[str, float]) -> list[str]:
    """Policies by value, best first."""
    return sorted(values, key=lambda name: -values[name])
