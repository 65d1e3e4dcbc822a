"""What a scenario's runs came to: share on time, instance-seconds, score, each with its interval, paired by segment.

``runs -> Segments -> summaries``, the same for measured and foretold runs. A segment is a few seconds of one repeat;
all policies met the same requests in it, so a resample draws the same segments of all of them. The score is the
grader's, against the best fixed policy of the same side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym_jax.live.trial.outcome import SEGMENT_S, Objective, segments
from inferencegym_jax.live.trial.runs import Run
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.numerics import bootstrap
from inferencegym_jax.scoring.aggregates import aggregate
from inferencegym_jax.scoring.episode_log import read_log
from inferencegym_jax.scoring.grader import components, weighted_score
from inferencegym_jax.tasks import TaskSpec

SHARES = ("on_time_share", "goodput_share")
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Segments:
    """Sums over the segments of a policy's runs, float64[segments], and how unsteady its knobs were."""

    asked: np.ndarray  # requests that arrived
    on_time: np.ndarray  # of them, completed within both objectives
    tokens_asked: np.ndarray  # output tokens of those that arrived
    on_time_tokens: np.ndarray
    instance_s: np.ndarray  # seconds of engines that were billed
    steps: np.ndarray  # seconds
    knob_jitter: float  # mean over the runs, see ``scoring.aggregates``

    def total(self) -> Totals:
        """Sums over every segment, once; of shape (1,)."""
        return self.drawn(np.ones((1, len(self.asked)), np.int64))

    def drawn(self, counts: np.ndarray) -> Totals:
        """Sums over resamples, ``counts`` int64[resamples, segments]; of shape (resamples,)."""
        asked, on_time, tokens, good, instance_s, steps = (
            counts @ column
            for column in (
                self.asked,
                self.on_time,
                self.tokens_asked,
                self.on_time_tokens,
                self.instance_s,
                self.steps,
            )
        )
        with np.errstate(invalid="ignore"):  # a resample in which nothing was asked tells nothing
            shares = on_time / asked, good / tokens
        return Totals(*shares, instance_s, steps, np.full(len(counts), self.knob_jitter), np.ones(len(counts)))


@dataclass(frozen=True)
class Totals:
    """What the grader reads of runs by request; arrays of one shape."""

    on_time_share: np.ndarray
    goodput_share: np.ndarray
    gpu_seconds: np.ndarray
    steps: np.ndarray
    knob_jitter: np.ndarray
    quality: np.ndarray

    @property
    def gpus(self) -> np.ndarray:
        """Mean engines that were paid for."""
        return self.gpu_seconds / self.steps


def segments_of(runs: Sequence[Run], spec: TaskSpec, objective: Objective, warmup_s: float, seconds: float) -> Segments:
    """The segments of a policy's runs, one after another, without their warm-up.

    Args:
        runs: a repeat each.
        spec: the task, which says whose knobs count.
        objective: when a request is on time.
        warmup_s: of each run, left out.
        seconds: length of a run.
    """
    first, rows, jitter = int(warmup_s), [], []
    for run in runs:
        parts = segments(run.records, first, seconds)
        bounds = np.minimum(first + SEGMENT_S * np.arange(len(parts) + 1), seconds).astype(int)
        paid = np.asarray([float(entry["outcome"]["gpu_seconds"]) for entry in run.log])
        for part, begin, end in zip(parts, bounds[:-1], bounds[1:], strict=True):
            good = [record for record in part if objective.met(record)]
            tokens = sum(record.output for record in part), sum(record.output for record in good)
            rows.append((len(part), len(good), *tokens, paid[begin:end].sum(), end - begin))
        metrics, action, outcome = read_log(run.log[first:], spec)
        jitter.append(float(aggregate(spec, metrics, action, outcome).knob_jitter))
    columns = np.asarray(rows, np.float64).T
    return Segments(*columns, knob_jitter=float(np.mean(jitter)))


def static_reference(spec: TaskSpec, fixed: Mapping[str, Totals]) -> dict[str, float]:
    """The normalisers that the best fixed policy gives: the one that the others beat by least, by its own measure."""
    reference: dict[str, float] = {}
    least = np.inf
    for one in fixed.values():
        own = {"static_gpus": float(one.gpus[0]), "static_on_time_share": float(one.on_time_share[0])}
        beaten = max(float((score(spec, other, own) - score(spec, one, own))[0]) for other in fixed.values())
        if beaten < least:
            least, reference = beaten, own
    return reference


def score(spec: TaskSpec, totals: Totals, static: Mapping[str, float]) -> np.ndarray:
    """The grader's score of open-loop tasks (requests on time, tokens on time, engines paid, steadiness)."""
    return weighted_score(components(spec, totals, static), np.clip)


def summaries(
    spec: TaskSpec, found: Mapping[str, Segments], fixed: Sequence[str], reference: str
) -> dict[str, dict[str, Any]]:
    """Every policy's figures, each ``{"mean", "low", "high"}`` with a 95 % bootstrap interval over segments.

    Args:
        spec: the task, whose grader scores.
        found: policy -> its segments; segment i of every policy met the same requests.
        fixed: policies that never change, of which the best one measures cost.
        reference: the policy that differences are taken to.

    Returns:
        policy -> on_time_share, goodput_share, instances (mean engines paid), score, and by how much each is above the
        reference's: over_reference -> on_time_share, score, and instance_seconds_saved, a share of the reference's.
    """
    count = len(found[reference].asked)
    counts = bootstrap.draw_counts_and_all(count)
    totals = {name: segments.drawn(counts) for name, segments in found.items()}
    static = static_reference(spec, {name: totals[name] for name in fixed})
    values = {
        name: {
            "on_time_share": one.on_time_share,
            "goodput_share": one.goodput_share,
            "instances": one.gpus,
            "score": score(spec, one, static),
        }
        for name, one in totals.items()
    }
    result: dict[str, dict[str, Any]] = {}
    for name, own in values.items():
        beside = values[reference]
        over = {key: own[key] - beside[key] for key in ("on_time_share", "score")}
        over["instance_seconds_saved"] = 1.0 - own["instances"] / beside["instances"]
        result[name] = {key: bootstrap.all_and_interval(column) for key, column in own.items()}
        result[name]["over_reference"] = {key: bootstrap.all_and_interval(column) for key, column in over.items()}
    return result


def latencies(records: Sequence[Record], warmup_s: float) -> dict[str, float]:
    """ms: percentiles of TTFT and means of TTFT and ITL over the requests that got a first token after the warm-up; NaN
    where none did."""
    kept = [record for record in records if record.arrival_s >= warmup_s]
    ttft = [record.ttft_ms for record in kept if record.ttft_ms is not None]
    itl = [record.tpot_ms for record in kept if record.tpot_ms is not None]
    percentiles = {f"ttft_p{p}_ms": float(np.percentile(ttft, p)) if ttft else np.nan for p in PERCENTILES}
    means = {"ttft_mean_ms": ttft, "itl_ms": itl}
    return percentiles | {name: float(np.mean(values)) if values else np.nan for name, values in means.items()}
